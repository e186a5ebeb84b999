"""Networks whose training steps are timed; plain PyTorch, so that a peer's environment can build them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "Network", "conv_net", "mlp", "replaced", "sparse_layers"]


@dataclass(frozen=True)
class Network:
    """What is trained.

    Args:
        make: the dense network, freshly initialised.
        inputs: (batch, generator) → inputs of one step.
        targets: (batch, generator) → targets of one step.
        batch: samples per step.
        optimizer: parameters → optimiser.
        dense: names of layers that stay dense: stems and classifiers, which are a small part of the work.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]
    targets: Callable[[int, torch.Generator], Tensor]
    batch: int
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    dense: tuple[str, ...] = ()


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between; images are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Causal self-attention with packed projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.packed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] → the same."""
        n, tokens, width = x.shape
        q, k, v = self.packed(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [n, heads, tokens, width / heads]
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """Attention and a GELU network, each after a LayerNorm and around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] → the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A language model over bytes."""

    def __init__(self, width: int, layers: int, heads: int, tokens: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, tokens] → scores [n, vocabulary, tokens]."""
        x = self.blocks(self.embedding(ids) + self.places)
        return self.head(self.norm(x)).transpose(1, 2)


class Basic(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] → [n, outputs, h / stride, w / stride]."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def conv_net(*widths: int, stem_stride: int = 1, classes: int = 10) -> nn.Sequential:
    """A stem, then one basic block per width, each after the first at half the resolution of the one before."""
    stages = [Basic(widths[max(0, i - 1)], width, 2 if i else 1) for i, width in enumerate(widths)]
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    )


def _images(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 1, 28, 28, generator=generator)


def _classes(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(10, (batch,), generator=generator)


def _bytes(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(256, (batch, 128), generator=generator)


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, fused=True)


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


NETWORKS = {
    "mlp-784-2048-2048-2048-10": Network(
        lambda: mlp(784, 2048, 2048, 2048, 10), _images, _classes, 256, _sgd, dense=("7",)
    ),
    "transformer-512x6": Network(lambda: Decoder(512, 6, 8, 128), _bytes, _bytes, 16, _adam),
    "resnet-64-128-256": Network(lambda: conv_net(64, 128, 256), _images, _classes, 32, _sgd, dense=("0.0", "6")),
}


def sparse_layers(model: nn.Module, dense: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Linear and convolution layers that become sparse, in order; 1×1 shortcuts stay dense as in the literature."""
    for name, module in list(model.named_modules()):
        is_conv = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        if (isinstance(module, nn.Linear) or is_conv) and name not in dense:
            yield name, module


def replaced(model: nn.Module, dense: tuple[str, ...], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with every sparse layer made anew, in place."""
    for name, module in sparse_layers(model, dense):
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, make(module))
    return model
