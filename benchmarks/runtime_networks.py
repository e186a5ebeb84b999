"""Networks of `benchmarks.runtime`: plain PyTorch, random weights, pruned by magnitude tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Encoder", "EncoderSize", "bert_base", "mlp", "prune", "vit_b16"]


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


@torch.no_grad()
def prune(network: nn.Module, sparsity: float) -> nn.Module:
    """Zeroes the smallest weights of every Linear layer but the classifier, in place; embeddings and stems stay dense.

    Args:
        network: is changed.
        sparsity: share of each weight that becomes zero.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > 10:
            size = layer.weight.abs().flatten()
            count = round(sparsity * size.numel())
            if count:
                layer.weight[layer.weight.abs() <= size.kthvalue(count).values] = 0
    return network
