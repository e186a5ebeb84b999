"""all-MiniLM-L6-v2, a BERT of six layers, in plain layers under the names of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.filled import filled

__all__ = ["MiniLM", "load_minilm", "minilm"]

_EPSILON = 1e-12
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")  # sentences are pooled by the mean


class Embeddings(nn.Module):
    """Words, positions and the one kind of token, summed and normalised."""

    def __init__(self, words: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, _EPSILON)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, t] → [n, t, width]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        kind = self.token_type_embeddings(torch.zeros_like(places))
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(places) + kind)


class SelfAttention(nn.Module):
    """softmax(q kᵀ / √head_dim) v per head; the number of heads follows from the weights, so heads can be removed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [n, t, width], mask bool [n, 1, 1, t] → [n, t, heads · head_dim]."""
        split = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [n, heads, t, head_dim]
        return mixed.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """norm(dense(x) + residual)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, _EPSILON)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[n, t, inputs], [n, t, width] → [n, t, width]."""
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(width, heads)
        self.output = Output(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, t, width] → the same."""
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    """gelu(dense(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] → [n, t, inner]."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Attention, then the feed-forward part, each normalised after its residual sum."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = Intermediate(width, inner)
        self.output = Output(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, t, width] → the same."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, t, width] → the same."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class MiniLM(nn.Module):
    """Sentence embeddings: mean of the last states over the real tokens, of length one.

    Args:
        words: size of the vocabulary.
        positions: longest sequence.
        layers: number of layers.
        width: of the states.
        heads: of attention.
        inner: width of the feed-forward part.
    """

    def __init__(
        self, words: int = 30522, positions: int = 512, layers: int = 6, width: int = 384, heads: int = 12,
        inner: int = 1536,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embeddings = Embeddings(words, positions, width)
        self.encoder = Encoder(layers, width, heads, inner)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers [n, 2, t], ids and mask (1 = a real token) → float [n, width]."""
        ids, mask = tokens[:, 0], tokens[:, 1]
        states = self.encoder(self.embeddings(ids), mask[:, None, None].bool())  # [n, t, width]
        weights = mask.to(states.dtype)[..., None]  # [n, t, 1]
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def minilm() -> nn.Module:
    """The architecture without weights worth having: 22,565,376 parameters.

    Source: Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084.
    """
    return MiniLM()


def load_minilm(path: Path) -> nn.Module:
    """The network with the weights of a safetensors checkpoint, in eval mode.

    Args:
        path: model.safetensors; its pooler is not used.

    Raises:
        DataError: names or shapes differ.
    """
    model = minilm()
    weights = {name: tensor for name, tensor in load_file(path).items() if name not in _UNUSED}
    return filled(model, weights, path, "MiniLM")
