"""Attention modules: where their heads are, and what remains of them when some heads are removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AttentionPart", "FewerHeads", "attention_parts"]

_QUERY = ("q_proj", "query", "q_lin", "q", "to_q", "wq")
_KEY = ("k_proj", "key", "k_lin", "k", "to_k", "wk")
_VALUE = ("v_proj", "value", "v_lin", "v", "to_v", "wv")
_OUT = ("out_proj", "o_proj", "out_lin", "out", "o", "to_out", "wo", "proj", "c_proj", "dense")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_WIDTHS = ("all_head_size", "inner_dim", "embed_dim")  # what such modules call heads × head_dim


@dataclass(frozen=True)
class AttentionPart:
    """Where one attention module keeps its heads.

    Args:
        module: its name.
        heads: how many it has.
        head_dim: rows of the query, key and value weights per head.
        rows: names of the tensors of which a head owns rows, in blocks of heads · head_dim rows.
        blocks: how many such blocks each of ``rows`` has: 3 for a packed projection.
        columns: name of the output projection's weight, of which a head owns columns.
    """

    module: str
    heads: int
    head_dim: int
    rows: tuple[str, ...]
    blocks: tuple[int, ...]
    columns: str


def attention_parts(model: nn.Module) -> Iterator[AttentionPart]:
    """Every attention whose heads can be told apart: `nn.MultiheadAttention`, or modules of separate Linear layers.

    A module of the second kind has Linear children for query, key, value and output under one of the usual names (the
    output may be the parent's ``output.dense``) and one attribute with the number of heads.

    Example:
        >>> [(p.heads, p.head_dim) for p in attention_parts(nn.MultiheadAttention(8, 2))]
        [(2, 4)]
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight is not None
            if module.bias_k is not None or module.add_zero_attn:
                continue
            names = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
            blocks = [3] if packed else [1, 1, 1]
            if module.in_proj_bias is not None:
                names, blocks = [*names, "in_proj_bias"], [*blocks, 3]
            rows = tuple(_join(name, key) for key in names)
            out = _join(name, "out_proj.weight")
            yield AttentionPart(name, module.num_heads, module.head_dim, rows, tuple(blocks), out)
        elif part := _separate(model, name, module):
            yield part


def _join(owner: str, key: str) -> str:
    return f"{owner}.{key}" if owner else key


def _child(module: nn.Module, names: tuple[str, ...]) -> str:
    return next((n for n in names if isinstance(getattr(module, n, None), nn.Linear)), "")


def _separate(model: nn.Module, name: str, module: nn.Module) -> AttentionPart | None:
    attribute = heads_attribute(module)
    found = [_child(module, names) for names in (_QUERY, _KEY, _VALUE)]
    if not attribute or not all(found):
        return None
    out = _join(name, _child(module, _OUT)) if _child(module, _OUT) else ""
    if not out and name:
        parent = name.rpartition(".")[0]
        out = _join(parent, "output.dense")
        try:
            model.get_submodule(out)
        except AttributeError:
            return None
    heads = cast(int, getattr(module, attribute))
    layers = [cast(nn.Linear, getattr(module, key)) for key in found]
    width = layers[0].out_features
    reader = model.get_submodule(out) if out else None
    same = all(layer.out_features == width for layer in layers)
    if not (isinstance(reader, nn.Linear) and reader.in_features == width and same and width % heads == 0):
        return None
    rows = [_join(name, f"{key}.weight") for key in found]
    held = dict(module.named_parameters())
    rows += [_join(name, f"{key}.bias") for key in found if f"{key}.bias" in held]
    return AttentionPart(name, heads, width // heads, tuple(rows), (1,) * len(rows), f"{out}.weight")


def heads_attribute(module: nn.Module) -> str:
    """The attribute that holds the number of heads, or the empty string."""
    return next((n for n in _HEADS if isinstance(getattr(module, n, None), int)), "")


def set_heads(module: nn.Module, part: AttentionPart, heads: int) -> None:
    """Make a module of separate layers believe that it has fewer heads."""
    setattr(module, heads_attribute(module), heads)
    for name in _WIDTHS:
        if getattr(module, name, None) == part.heads * part.head_dim:
            setattr(module, name, heads * part.head_dim)


@final
class FewerHeads(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with fewer heads than embed_dim / head_dim; torch's own cannot be so.

    Made by `of`, in place: the tensors keep their names. Masks, ``need_weights`` and ``batch_first`` work as before.
    """

    @staticmethod
    def of(module: nn.MultiheadAttention, heads: int) -> None:
        """Turn a module into one of ``heads`` heads; its tensors are cut by the caller."""
        module.num_heads = heads
        # Torch's fused encoder layer takes any MultiheadAttention for a full one unless this says otherwise.
        module._qkv_same_embed_dim = False
        module.__class__ = FewerHeads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `nn.MultiheadAttention`; ``is_causal`` is a hint there, ``attn_mask`` says what is masked."""
        del is_causal
        batched = query.dim() == 3
        q, k, v = (x if batched else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (self._split(x) for x in self._project(q, k, v))
        bias = self._bias(q, k, key_padding_mask, attn_mask)
        p = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5  # [B, heads, Q, d] @ [B, heads, d, K]
            weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), p)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, p)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, Q, heads · d] → [B, Q, embed]
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _project(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        packed = cast("Tensor | None", self.in_proj_bias)
        biases = (None, None, None) if packed is None else packed.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)  # [B, heads, T, d]

    def _bias(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, broadcastable to [B, heads, Q, K], or None."""
        total: Tensor | None = None
        if mask is not None:
            total = _additive(mask, q.dtype)
            if mask.dim() == 3:  # [B · heads of the whole module, Q, K]: the same for every head, or it means a head
                total = total.view(q.shape[0], -1, *mask.shape[1:])[:, : self.num_heads]
        if padding is not None:
            padded = _additive(padding, q.dtype).view(-1, 1, 1, k.shape[2])
            total = padded if total is None else total + padded
        return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
