"""Networks of `benchmarks.runtime`: plain PyTorch, random weights, pruned by magnitude tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "NETWORKS",
    "Encoder",
    "EncoderSize",
    "MobileNet",
    "ResNet",
    "bert_base",
    "mlp",
    "mobilenet_v2",
    "prune",
    "resnet50",
    "vit_b16",
]


@dataclass(frozen=True)
class EncoderSize:
    """Of a transformer encoder.

    Args:
        layers: how many blocks.
        hidden: features of a token.
        heads: of the attention.
        inner: features between the two layers of the feed-forward part.
        norm: "post" as in BERT, "pre" as in ViT.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    norm: Literal["post", "pre"]


class Attention(nn.Module):
    """Softmax attention of every token over all tokens."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.query, self.key, self.value, self.out = (nn.Linear(size.hidden, size.hidden) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).reshape(batch, length, hidden)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual and a norm."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.post = size.norm == "post"
        self.attention = Attention(size)
        self.first, self.second = nn.LayerNorm(size.hidden, eps=1e-12), nn.LayerNorm(size.hidden, eps=1e-12)
        self.up, self.down = nn.Linear(size.hidden, size.inner), nn.Linear(size.inner, size.hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.first(x + self.dropout(self.attention.out(self.attention(x))))
            return self.second(x + self.dropout(self.down(F.gelu(self.up(x)))))
        x = x + self.dropout(self.attention.out(self.attention(self.first(x))))
        return x + self.dropout(self.down(F.gelu(self.up(self.second(x)))))


class Encoder(nn.Module):
    """A transformer encoder over token numbers, or over patches of an image.

    Args:
        size: of its blocks.
        vocabulary: of tokens; 0 for images of 3 channels in patches of 16.
        positions: at most so many tokens.
    """

    def __init__(self, size: EncoderSize, *, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size.hidden) if vocabulary else None
        self.patches = None if vocabulary else nn.Conv2d(3, size.hidden, 16, stride=16)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, size.hidden))
        self.norm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is not None:
            x = self.tokens(x)
        elif self.patches is not None:
            x = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.blocks(self.norm(x + self.positions[: x.shape[1]]))
        return out


def bert_base() -> Encoder:
    """As large as BERT-base: 12 layers of 768 features, 30,522 tokens."""
    return Encoder(EncoderSize(12, 768, 12, 3072, "post"), vocabulary=30522, positions=512).eval()


def vit_b16() -> Encoder:
    """As large as ViT-B/16 at 224²: 196 patches, no class token."""
    return Encoder(EncoderSize(12, 768, 12, 3072, "pre"), vocabulary=0, positions=196).eval()


def mlp() -> nn.Sequential:
    """Four layers of 4096 features and a classifier."""
    layers: list[nn.Module] = []
    for a, b in pairwise([4096] * 5):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 10)).eval()


def normed(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, and its norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 with a shortcut; the stride is that of the 3×3."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.relu = nn.ReLU(inplace=True)
        self.path = nn.Sequential(
            *normed(inputs, inner, 1),
            self.relu,
            *normed(inner, inner, 3, stride=stride),
            self.relu,
            *normed(inner, outputs, 1),
        )
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*normed(inputs, outputs, 1, stride=stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.path(x) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A residual network of bottlenecks for images of 3 channels.

    Args:
        stages: how many blocks with 64, 128, 256 and 512 inner channels.
        classes: of the classifier.
    """

    def __init__(self, stages: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate(stages):
            inner = 64 << stage
            for i in range(count):
                blocks.append(Bottleneck(inputs, inner, 2 if stage and not i else 1))
                inputs = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class Inverted(nn.Module):
    """1×1 to more channels, 3×3 channel by channel, 1×1 to fewer; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, growth: int) -> None:
        super().__init__()
        inner = growth * inputs
        grow = [*normed(inputs, inner, 1), nn.ReLU6(inplace=True)] if growth > 1 else []
        depthwise = [*normed(inner, inner, 3, stride=stride, groups=inner), nn.ReLU6(inplace=True)]
        self.path = nn.Sequential(*grow, *depthwise, *normed(inner, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.path(x) if self.adds else self.path(x)
        return out


class MobileNet(nn.Module):
    """A network of inverted residuals for images of 3 channels.

    Args:
        stages: growth, channels, blocks and first stride of each stage.
        classes: of the classifier.
    """

    def __init__(self, stages: tuple[tuple[int, int, int, int], ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*normed(3, 32, 3, stride=2), nn.ReLU6(inplace=True)]
        inputs = 32
        for growth, outputs, count, stride in stages:
            for i in range(count):
                layers.append(Inverted(inputs, outputs, 1 if i else stride, growth))
                inputs = outputs
        self.layers = nn.Sequential(*layers, *normed(inputs, 1280, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return out


@torch.no_grad()
def with_statistics(network: nn.Module) -> nn.Module:
    """Gives every BatchNorm statistics and gains unlike those of a new one, in place."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            norm.weight.uniform_(0.3, 0.9)
            norm.bias.normal_(std=0.1)
    return network.eval()


def resnet50() -> nn.Module:
    """As large as ResNet-50."""
    return with_statistics(ResNet((3, 4, 6, 3), 1000))


def mobilenet_v2() -> nn.Module:
    """As large as MobileNetV2."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    return with_statistics(MobileNet(stages, 1000))


@torch.no_grad()
def prune(network: nn.Module, sparsity: float, *, rows: int = 1) -> nn.Module:
    """Zeroes the smallest weights of every Linear and convolution, in place.

    Classifiers of 10 or 1000 classes, embeddings, stems and depthwise convolutions stay dense.

    Args:
        network: is changed.
        sparsity: share of each weight that becomes zero.
        rows: of the blocks that are zero or not as a whole.
    """
    for layer in network.modules():
        linear = isinstance(layer, nn.Linear) and layer.out_features not in (10, 1000)
        convolution = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > 3
        if linear or convolution:
            weight: Tensor = layer.weight  # type: ignore[assignment]
            blocks = weight.view(weight.shape[0] // rows, rows, -1)
            size = blocks.abs().sum(dim=1)
            count = round(sparsity * size.numel())
            if count:
                dead = size <= size.flatten().kthvalue(count).values
                blocks[dead[:, None].expand_as(blocks)] = 0
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "bert-base": (bert_base, lambda batch: torch.randint(30522, (batch, 128))),
    "resnet-50": (resnet50, lambda batch: torch.randn(batch, 3, 224, 224)),
    "vit-b16": (vit_b16, lambda batch: torch.randn(batch, 3, 224, 224)),
    "mobilenet-v2": (mobilenet_v2, lambda batch: torch.randn(batch, 3, 224, 224)),
    "mlp-4096": (mlp, lambda batch: torch.randn(batch, 4096)),
}
"""What is measured: the network, and its inputs for a batch size."""
