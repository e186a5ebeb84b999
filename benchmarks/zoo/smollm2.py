"""SmolLM2-135M, a Llama-style language model, with the weights of a GGUF file; as it comes, or rotated."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.filled import filled

__all__ = ["SmolLM2", "load_smollm2", "rotated", "smollm2", "smollm2_untied", "tokenizer_of"]

_BASE, _EPS = 100_000.0, 1e-5
_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


class Attention(nn.Module):
    """Causal attention with rotary positions on neighbouring pairs; several query heads share a key head."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, shared * self.size, bias=False)
        self.value = nn.Linear(width, shared * self.size, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width]; cos and sin [t, size / 2]."""
        n, t, width = x.shape
        q = _turned(self.query(x).view(n, t, self.heads, self.size).transpose(1, 2), cos, sin)  # [n, heads, t, size]
        k = _turned(self.key(x).view(n, t, self.shared, self.size).transpose(1, 2), cos, sin)
        v = self.value(x).view(n, t, self.shared, self.size).transpose(1, 2)
        times = self.heads // self.shared
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(n, t, width))


class Mlp(nn.Module):
    """SiLU-gated feed-forward part."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and feed-forward part, each behind its norm and added to what came in."""

    def __init__(self, width: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=_EPS)
        self.attention = Attention(width, heads, shared)
        self.mlp_norm = nn.RMSNorm(width, eps=_EPS)
        self.mlp = Mlp(width, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[n, t, width] → [n, t, width]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class SmolLM2(nn.Module):
    """Token ids to the scores of each next token.

    Args:
        tied: whether the output layer is the embedding.
        words: size of the vocabulary.
        layers: number of layers.
        width: of the states.
        heads: of queries.
        shared: heads of keys and values.
        inner: width of the feed-forward part.
    """

    def __init__(
        self, tied: bool = True, words: int = 49152, layers: int = 30, width: int = 576, heads: int = 9,
        shared: int = 3, inner: int = 1536,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, heads, shared, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.size = width // heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers [n, t] → float [n, t, words]."""
        place = torch.arange(tokens.shape[1], dtype=torch.float32)
        turn = place[:, None] * _BASE ** (-torch.arange(0, self.size, 2, dtype=torch.float32) / self.size)
        cos, sin = turn.cos(), turn.sin()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def smollm2() -> nn.Module:
    """The architecture without weights worth having: 134.5 million parameters, output layer and embedding are one.

    Source: Allal et al. 2025, arXiv 2502.02737.
    """
    return SmolLM2()


def smollm2_untied() -> nn.Module:
    """The same with an output layer of its own, as a rotated network needs it."""
    return SmolLM2(tied=False)


def load_smollm2(path: Path) -> nn.Module:
    """The network with the weights of the GGUF file, in eval mode.

    They were rounded to 4 bits in groups of 32 when the file was made, so rounding them to 4 bits again shows no error:
    `rotated` gives the same function with weights that lie on no grid.

    Args:
        path: SmolLM2-135M-Instruct.Q4_1.gguf.

    Raises:
        DataError: another model's file.
    """
    model = smollm2()
    weights = {}
    for name, tensor in _tensors(path).items():
        if name.startswith("blk."):
            _, number, inner, _ = name.split(".")
            weights[f"layers.{number}.{_NAMES[inner]}.weight"] = tensor
        else:
            outer = {"token_embd.weight": "embedding.weight", "output_norm.weight": "norm.weight"}
            weights[outer.get(name, name)] = tensor
    weights["head.weight"] = weights["embedding.weight"]
    return filled(model, weights, path, "SmolLM2")


def _tensors(path: Path) -> dict[str, Tensor]:
    import gguf

    found = {}
    for part in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(part.data, part.tensor_type)
        found[part.name] = torch.from_numpy(np.array(values)).float()
    return found


def rotated(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same function with the gains of the norms folded away and the states turned by a random rotation.

    Args:
        model: as loaded; not changed.
        seed: of the rotation.

    Source: Ashkboos et al. 2024, arXiv 2404.00456, section 3.
    """
    assert isinstance(model, SmolLM2)
    with torch.no_grad():
        width = model.norm.weight.numel()
        noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        turn = torch.linalg.qr(noise)[0]
        weights = {k: v.double() for k, v in model.state_dict().items()}
        weights["head.weight"] = weights["head.weight"] * weights["norm.weight"] @ turn
        weights["embedding.weight"] = weights["embedding.weight"] @ turn
        for number in range(len(model.layers)):
            at = f"layers.{number}."
            for norm, readers in (
                ("attention_norm", ("attention.query", "attention.key", "attention.value")),
                ("mlp_norm", ("mlp.gate", "mlp.up")),
            ):
                for reader in readers:
                    # [out, width] · [width, width] → [out, width]
                    weights[f"{at}{reader}.weight"] = (
                        weights[f"{at}{reader}.weight"] * weights[f"{at}{norm}.weight"] @ turn
                    )
            for writer in ("attention.output", "mlp.down"):
                weights[f"{at}{writer}.weight"] = turn.T @ weights[f"{at}{writer}.weight"]
        for name in weights:
            if name.endswith("norm.weight"):
                weights[name] = torch.ones(width, dtype=torch.float64)
    other = smollm2_untied()
    other.load_state_dict({k: v.float() for k, v in weights.items()})
    return other.eval()


@lru_cache(maxsize=2)
def tokenizer_of(path: Path) -> object:
    """The tokenizer whose vocabulary and merges the GGUF file holds, a `tokenizers.Tokenizer`."""
    import gguf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fields = gguf.GGUFReader(path).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    pairs = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    return made
