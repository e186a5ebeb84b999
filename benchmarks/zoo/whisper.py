"""Whisper-base, speech to text, with fp16 weights from CTranslate2's format."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.ct2 import read_ct2
from benchmarks.zoo.filled import filled

__all__ = ["Whisper", "load_whisper", "whisper"]


class Attention(nn.Module):
    """Heads over own states (one packed projection) or over others' (queries here, keys and values there)."""

    def __init__(self, width: int, heads: int, *, own: bool) -> None:
        super().__init__()
        self.heads, self.own = heads, own
        self.norm = nn.LayerNorm(width)
        if own:
            self.packed = nn.Linear(width, 3 * width)
        else:
            self.query = nn.Linear(width, width)
            self.packed = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor | None = None, causal: bool = False) -> Tensor:
        """[n, t, width], [n, s, width] or None → [n, t, width], to be added."""
        y = self.norm(x)
        if self.own:
            q, k, v = self.packed(y).chunk(3, -1)
        else:
            q, (k, v) = self.query(y), self.packed(other).chunk(2, -1)
        mixed = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v), is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [n, heads, t, size]


class Mlp(nn.Module):
    """Feed-forward part behind its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width], to be added."""
        return self.output(F.gelu(self.inner(self.norm(x))))


class EncoderLayer(nn.Module):
    """Attention over sound."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, own=True)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width]."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class DecoderLayer(nn.Module):
    """Attention over the text so far, and over sound."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, own=True)
        self.listening = Attention(width, heads, own=False)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, sound: Tensor) -> Tensor:
        """[n, t, width], [n, s, width] → [n, t, width]."""
        x = x + self.attention(x, causal=True)
        x = x + self.listening(x, sound)
        return x + self.mlp(x)


class Encoder(nn.Module):
    """Mel spectra to states, one for 20 ms."""

    def __init__(self, width: int, heads: int, layers: int, bands: int, length: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        """[n, bands, 2 · t] → [n, t, width]."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.places[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Tokens and sound to scores of the next tokens; the output layer is the embedding."""

    def __init__(self, width: int, heads: int, layers: int, words: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, sound: Tensor) -> Tensor:
        """Integers [n, t], [n, s, width] → [n, t, words]."""
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, sound)
        return F.linear(self.norm(x), self.embedding.weight)  # [n, t, width] · [width, words]


class Whisper(nn.Module):
    """Encoder and decoder; defaults are those of the base size."""

    def __init__(self, width: int = 512, heads: int = 8, layers: int = 6, words: int = 51865) -> None:
        super().__init__()
        self.encoder = Encoder(width, heads, layers, 80, 1500)
        self.decoder = Decoder(width, heads, layers, words, 448)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """[n, 80, 3000], integers [n, t] → scores [n, t, words]."""
        return self.decoder(tokens, self.encoder(mel))


def whisper() -> nn.Module:
    """The architecture without weights worth having: 72.6 million parameters.

    Source: Radford et al. 2022, arXiv 2212.04356.
    """
    return Whisper()


def load_whisper(path: Path) -> nn.Module:
    """The network with the weights of a CTranslate2 file, computing in fp32, in eval mode.

    Raises:
        DataError: another model's file.
    """
    model = whisper()
    weights = {}
    for name, tensor in read_ct2(path).items():
        mine = _renamed(name)
        if mine is not None:
            weights[mine] = tensor.float()
    return filled(model, weights, path, "Whisper")


def _renamed(name: str) -> str | None:
    side, _, rest = name.partition("/")
    if side not in ("encoder", "decoder"):
        return None
    rest = {"position_encodings/encodings": "places", "embeddings/weight": "embedding.weight"}.get(rest, rest)
    parts = [{"gamma": "weight", "beta": "bias"}.get(p, p) for p in rest.split("/")]
    if parts[0].startswith("layer_") and parts[0] != "layer_norm":
        number, part = parts[0].removeprefix("layer_"), parts[1]
        inner = {
            "self_attention": {"linear_0": "packed", "linear_1": "output", "layer_norm": "norm"},
            "attention": {"linear_0": "query", "linear_1": "packed", "linear_2": "output", "layer_norm": "norm"},
            "ffn": {"linear_0": "inner", "linear_1": "output", "layer_norm": "norm"},
        }
        if part not in inner or len(parts) != 4:
            return None
        mine = {"self_attention": "attention", "attention": "listening", "ffn": "mlp"}[part]
        return f"{side}.layers.{number}.{mine}.{inner[part][parts[2]]}.{parts[3]}"
    known = parts[0] in ("conv1", "conv2", "layer_norm", "places", "embedding.weight")
    return ".".join([side, *("norm" if p == "layer_norm" else p for p in parts)]) if known else None
