"""Attention modules: where their heads are, and what remains of them when some heads are removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.network.inspect import is_transformers_conv1d

__all__ = [
    "AttentionPart",
    "FewerHeads",
    "Owned",
    "additive",
    "attention_parts",
    "projections",
    "score_bias",
    "set_heads",
]

_QUERY = ("q_proj", "query", "q_lin", "q", "to_q", "wq")
_KEY = ("k_proj", "key", "k_lin", "k", "to_k", "wk")
_VALUE = ("v_proj", "value", "v_lin", "v", "to_v", "wv")
_FUSED = ("c_attn", "qkv", "qkv_proj", "query_key_value", "in_proj", "Wqkv")
_OUT = ("out_proj", "o_proj", "out_lin", "out", "o", "to_out", "wo", "proj", "c_proj", "dense")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
_HEAD_DIM = ("head_dim", "attention_head_size")
_WIDTHS = ("all_head_size", "inner_dim", "embed_dim", "split_size")  # what such modules call heads × head_dim


@dataclass(frozen=True)
class Owned:
    """Where the rows (or columns) of one tensor belong to heads: head h owns rows h · width … of each block.

    Args:
        tensor: its name.
        width: consecutive rows per head and block.
        blocks: how often all heads follow one another: 3 for queries, keys and values in one weight.
    """

    tensor: str
    width: int
    blocks: int = 1

    def index(self, heads: int) -> Tensor:
        """Rows of each head, int64 [heads, blocks · width]."""
        rows = torch.arange(self.blocks * heads * self.width).view(self.blocks, heads, self.width)
        return rows.transpose(0, 1).reshape(heads, -1)


@dataclass(frozen=True)
class AttentionPart:
    """Where one attention module keeps its heads.

    Args:
        module: its name.
        heads: how many it has that can go: where several queries share a key and a value, such groups.
        head_dim: rows of a query's, key's or value's weight per head.
        rows: what heads own rows of, the query's weight first.
        columns: the output projection's weight, of which heads own columns.
        queries: query heads per key, 1 unless they share one.
        fused: whether one weight makes queries, keys and values. Which of its rows are whose has to be tried.
    """

    module: str
    heads: int
    head_dim: int
    rows: tuple[Owned, ...]
    columns: Owned
    queries: int = 1
    fused: bool = False

    def interleaved(self) -> AttentionPart:
        """The other way in which a fused weight may hold them: query, key and value of each head side by side."""
        return replace(self, rows=tuple(Owned(r.tensor, r.blocks * r.width) for r in self.rows))


def attention_parts(model: nn.Module) -> Iterator[AttentionPart]:
    """Every attention whose heads can be told apart: `nn.MultiheadAttention`, or modules of linear layers.

    A module of the second kind has children under one of the usual names: for query, key and value, or one for all
    three together, and for the output (which may be the parent's ``output.dense``). They are Linear layers or the
    Conv1D of transformers. An attribute says how many heads there are, or how wide one is.

    Example:
        >>> [(p.heads, p.head_dim) for p in attention_parts(nn.MultiheadAttention(8, 2))]
        [(2, 4)]
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight is not None
            if module.bias_k is not None or module.add_zero_attn:
                continue
            width = module.head_dim
            names = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
            rows = [Owned(_join(name, key), width, 3 if packed else 1) for key in names]
            if module.in_proj_bias is not None:
                rows.append(Owned(_join(name, "in_proj_bias"), width, 3))
            out = Owned(_join(name, "out_proj.weight"), width)
            yield AttentionPart(name, module.num_heads, width, tuple(rows), out)
        elif part := _separate(model, name, module) or _fused(model, name, module):
            yield part


def _join(owner: str, key: str) -> str:
    return f"{owner}.{key}" if owner else key


def _sizes(module: object) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer, None for anything else."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Module) and is_transformers_conv1d(module):
        inputs, outputs = cast(Tensor, module.weight).shape
        return outputs, inputs
    return None


def _child(module: nn.Module, names: tuple[str, ...]) -> str:
    return next((n for n in names if _sizes(getattr(module, n, None)) is not None), "")


def _output(model: nn.Module, name: str, module: nn.Module) -> tuple[str, int]:
    """Name and width of what reads the heads; empty if it is not there."""
    inside = _child(module, _OUT)
    out = _join(name, inside) if inside else _join(name.rpartition(".")[0], "output.dense") if name else ""
    try:
        sizes = _sizes(model.get_submodule(out)) if out else None
    except AttributeError:
        sizes = None
    return (out, sizes[1]) if sizes is not None else ("", 0)


def _heads_of(module: nn.Module, width: int) -> int:
    """Query heads of a module whose queries are that wide, 0 if that is not to be found out."""
    heads = _integer(module, _HEADS)
    one = _integer(module, _HEAD_DIM)
    heads = heads if heads else width // one if one else 0
    return heads if heads and width % heads == 0 else 0


def _integer(module: nn.Module, names: tuple[str, ...]) -> int:
    return next((v for n in names if type(v := getattr(module, n, None)) is int and v > 0), 0)


def _owned(name: str, module: nn.Module, key: str, width: int, blocks: int = 1) -> list[Owned]:
    """Weight of a child, and bias if it has one."""
    biased = getattr(getattr(module, key), "bias", None) is not None
    return [Owned(_join(name, f"{key}.{t}"), width, blocks) for t in (("weight", "bias") if biased else ("weight",))]


def _separate(model: nn.Module, name: str, module: nn.Module) -> AttentionPart | None:
    keys = [_child(module, names) for names in (_QUERY, _KEY, _VALUE)]
    if not all(keys):
        return None
    width, shared, values = (cast("tuple[int, int]", _sizes(getattr(module, key)))[0] for key in keys)
    heads = _heads_of(module, width)
    out, read = _output(model, name, module)
    if not heads or read != width or shared != values or shared % (width // heads):
        return None
    one = width // heads
    groups = shared // one
    if not groups or heads % groups or _integer(module, _KEY_HEADS) not in (0, groups):
        return None
    queries = heads // groups
    found = [_owned(name, module, key, one * (queries if key is keys[0] else 1)) for key in keys]
    rows = (*(f[0] for f in found), *(bias for f in found for bias in f[1:]))
    return AttentionPart(name, groups, one, rows, Owned(f"{out}.weight", one * queries), queries)


def _fused(model: nn.Module, name: str, module: nn.Module) -> AttentionPart | None:
    key = _child(module, _FUSED)
    sizes = _sizes(getattr(module, key)) if key else None
    if sizes is None or sizes[0] % 3:
        return None
    width = sizes[0] // 3
    heads = _heads_of(module, width)
    out, read = _output(model, name, module)
    if not heads or read != width or _integer(module, _KEY_HEADS) not in (0, heads):
        return None
    one = width // heads
    return AttentionPart(
        name, heads, one, tuple(_owned(name, module, key, one, 3)), Owned(f"{out}.weight", one), fused=True
    )


def set_heads(module: nn.Module, part: AttentionPart, heads: int) -> None:
    """Make a module of linear layers believe that it has fewer heads (or groups of heads, where they share keys)."""
    before = part.heads * part.queries
    for names, was, now in (
        (_HEADS, before, heads * part.queries),
        (_KEY_HEADS, part.heads, heads),
        (_WIDTHS, before * part.head_dim, heads * part.queries * part.head_dim),
    ):
        for name in names:
            if type(getattr(module, name, None)) is int and getattr(module, name) == was:
                setattr(module, name, now)


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
        bias = score_bias(q, k, key_padding_mask, attn_mask)
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
        return tuple(F.linear(x, w, b) for x, (w, b) in zip((q, k, v), projections(self), strict=True))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)  # [B, heads, T, d]


def projections(module: nn.MultiheadAttention) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Weight and bias for queries, keys and values, in this order; parts of one parameter where they are packed."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    packed = cast("Tensor | None", module.in_proj_bias)
    biases = (None, None, None) if packed is None else packed.chunk(3)
    return tuple(zip(weights, biases, strict=True))


def score_bias(q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """What masks of `nn.MultiheadAttention` add to the scores, broadcastable to [.., heads, Q, K], or None.

    Args:
        q: queries [B, heads, Q, d], or [heads, Q, d].
        k: keys, likewise.
        padding: [B, K] or [K], boolean or additive.
        mask: [Q, K] or [B · heads of the whole module, Q, K]; of the latter the first heads count.
    """
    total: Tensor | None = None
    if mask is not None:
        total = additive(mask, q.dtype)
        if mask.dim() == 3:  # the same for every head, or it means a head
            batch = q.shape[0] if q.dim() == 4 else 1
            total = total.view(batch, -1, *mask.shape[1:])[:, : q.shape[-3]]
            total = total if q.dim() == 4 else total[0]
    if padding is not None:
        padded = additive(padding, q.dtype)
        padded = padded.view(-1, 1, 1, k.shape[-2]) if padding.dim() == 2 else padded.view(1, 1, k.shape[-2])
        total = padded if total is None else total + padded
    return total


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: −∞ where a boolean one is true.

    Example:
        >>> additive(torch.tensor([False, True]), torch.float32)
        tensor([0., -inf])
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
