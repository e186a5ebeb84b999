"""Small causal language models that decode with a cache, written in the ways that are common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Cache", "Plain", "Styled", "StyledOutput", "thinned"]


def thinned(network: nn.Module, density: float = 0.1) -> nn.Module:
    """Zeros in every Linear layer but the head."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and "head" not in name:
                layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) < density)
    return network.eval()


class Block(nn.Module):
    """Attention over what is cached and what is new, then two Linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in (q, k, v))
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        # Position i of the new tokens sees everything up to itself.
        if past is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = torch.ones(length, k.shape[2], dtype=torch.bool).tril(k.shape[2] - length)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second(x)))), (k, v)


class Plain(nn.Module):
    """``forward(tokens, past=None)`` returns scores and a list of keys and values."""

    def __init__(self, levels: int = 2, width: int = 64, heads: int = 4, vocabulary: int = 50) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(128, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(levels))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, tokens: Tensor, past: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        begin = 0 if past is None else past[0][0].shape[2]
        x = self.tokens(tokens) + self.places(torch.arange(begin, begin + tokens.shape[1]))
        kept = []
        for i, block in enumerate(self.blocks):
            x, cached = block(x, None if past is None else past[i])
            kept.append(cached)
        return self.head(self.norm(x)), kept


class Cache:
    """Keys and values that grow in place, one object for all layers."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []


@dataclass
class StyledOutput:
    """What `Styled` returns."""

    logits: Tensor
    past_key_values: Cache | None


class Styled(nn.Module):
    """Arguments by keyword, a cache that is changed in place, an object as output, arguments that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Plain()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> StyledOutput:
        del attention_mask, kwargs
        assert input_ids is not None
        cache = Cache() if past_key_values is None and use_cache else past_key_values
        logits, kept = self.model(input_ids, cache.kept if cache is not None and cache.kept else None)
        if cache is not None:
            cache.kept = kept
        return StyledOutput(logits, cache)
