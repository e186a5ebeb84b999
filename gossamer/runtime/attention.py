"""Softmax attention between feature-major layers, and how it is recognised in a captured network."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, fx, nn
from torch.nn import functional as F

from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.attention_code import AttentionField, scratch_floats
from gossamer.runtime.grouped import describe
from gossamer.runtime.kernels import AttentionKernels, load
from gossamer.runtime.spmm import workspace
from gossamer.runtime.tiled import Tiler, Tiles

__all__ = ["Attention", "TiledAttention", "attention_of"]

_WORTH_A_TEAM = 1 << 20
"""Multiply-adds from which on a team of threads saves time."""

Shapes = Mapping[fx.Node, tuple[int, ...]]


@final
@dataclass(frozen=True, eq=False)
class Attention:
    """Attention over heads, from three values [batch, tokens, heads · depth] to one.

    Args:
        query: node of the graph.
        key: node.
        value: node.
        heads: how many.
        causal: whether token i sees tokens 0 … i only.
        scale: of the products; None for 1/√depth.
        inside: the nodes between, which nothing else reads, in the order of the graph but for the last.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    heads: int
    causal: bool
    scale: float | None
    inside: tuple[fx.Node, ...]


def attention_of(node: fx.Node, shapes: Shapes) -> Attention | None:
    """What a node does if heads are merged there after PyTorch's attention, without a mask; else None.

    Args:
        node: of a captured graph: the last one, whose result is [batch, tokens, features].
        shapes: of its tensors.
    """
    merged = _merged(node, shapes)
    if merged is None:
        return None
    call, between = merged
    settings = _settings(call)
    if settings is None:
        return None
    sources: list[fx.Node] = []
    heads: set[tuple[int, ...]] = set()
    for value in call.args[:3]:
        split = _split(value, shapes)
        if split is None:
            return None
        source, chain = split
        sources.append(source)
        between = [*chain, *between]
        heads.add(shapes[chain[-1]][1:4:2])
    if len(heads) != 1 or shapes[sources[1]] != shapes[sources[2]] or shapes[node] != shapes[sources[0]]:
        return None
    causal, scale = settings
    query, key, val = sources
    return Attention(query, key, val, next(iter(heads))[0], causal, scale, tuple(dict.fromkeys(between)))


def _settings(call: fx.Node) -> tuple[bool, float | None] | None:
    """Whether attention is causal, and its scale; None if it has a mask or anything else."""
    if call.target is not F.scaled_dot_product_attention or len(call.args) < 3:
        return None
    names = ("attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, call.args[3:], strict=False)) | dict(call.kwargs)
    causal: Any = given.pop("is_causal", False)
    scale: Any = given.pop("scale", None)
    plain = given.pop("attn_mask", None) is None and given.pop("dropout_p", 0.0) == 0.0
    plain = plain and not given.pop("enable_gqa", False) and not given
    known = isinstance(causal, bool) and (scale is None or isinstance(scale, float))
    return (causal, scale) if plain and known else None


def _exchanges(node: object) -> bool:
    """Whether a node exchanges the second and the third dimension of four."""
    if not isinstance(node, fx.Node) or node.op != "call_method":
        return False
    if node.target == "transpose":
        return sorted(d % 4 for d in node.args[1:] if isinstance(d, int)) == [1, 2]
    return node.target == "permute" and _sizes(node) == (0, 2, 1, 3)


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """Arguments of a method that takes numbers, one by one or as a tuple."""
    given = node.args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def _keeps_first_two(node: fx.Node) -> bool:
    """Whether a node cuts up or joins only what comes after [batch, tokens, …], for every batch and length.

    Sizes that are written down as numbers hold for one batch and length only.
    """
    sizes = _sizes(node)
    if node.target == "flatten":
        return sizes in ((2,), (2, -1), (2, 3), (-2,), (-2, -1))
    if node.target == "unflatten":
        return len(sizes) == 2 and sizes[0] in (2, -1)
    if len(sizes) == 1:
        return isinstance(sizes[0], fx.Node)  # computed from another shape
    first, second = sizes[:2]
    return all(isinstance(size, fx.Node) or size == -1 for size in (first, second))


def _alone(node: fx.Node) -> bool:
    return len(node.users) == 1


def _split(value: Any, shapes: Shapes) -> tuple[fx.Node, list[fx.Node]] | None:
    """[batch, tokens, features] split into [batch, heads, tokens, depth]: where from, and the nodes between."""
    if not _exchanges(value) or not _alone(value):
        return None
    view = value.args[0]
    if not isinstance(view, fx.Node) or view.target not in ("view", "reshape", "unflatten") or not _alone(view):
        return None
    if not _keeps_first_two(view):
        return None
    source = view.args[0]
    if not isinstance(source, fx.Node) or any(n not in shapes for n in (value, view, source)):
        return None
    batch, tokens, *split = shapes[view]
    fits = len(split) == 2 and shapes[source] == (batch, tokens, split[0] * split[1])
    return (source, [view, value]) if fits else None


def _merged(node: fx.Node, shapes: Shapes) -> tuple[fx.Node, list[fx.Node]] | None:
    """[batch, heads, tokens, depth] merged into [batch, tokens, features]: the node before, and the nodes between."""
    if node.op != "call_method" or node.target not in ("reshape", "view", "flatten") or node not in shapes:
        return None
    if node.kwargs or not _keeps_first_two(node):
        return None
    before, between = node.args[0], []
    if isinstance(before, fx.Node) and before.target == "contiguous":
        between.append(before)
        before = before.args[0]
    if not isinstance(before, fx.Node) or not _exchanges(before):
        return None
    call = before.args[0]
    between = [before, *between]
    if not isinstance(call, fx.Node) or call not in shapes or not all(_alone(n) for n in (call, *between)):
        return None
    batch, heads, tokens, depth = shapes[call]
    return (call, [call, *between]) if shapes[node] == (batch, tokens, heads * depth) else None


@final
class TiledAttention(nn.Module):
    """softmax(scale · Q·Kᵀ)·V per head, from tiles to tiles.

    Args:
        heads: how many.
        causal: whether token i sees tokens 0 … i only.
        scale: of the products; None for 1/√depth.
        operations: at the instruction set of its neighbours.

    Cost: 2 · queries · keys · features multiply-adds a batch entry; keys · 4 vectors of scratch per thread.
    """

    def __init__(self, heads: int, *, causal: bool, scale: float | None, operations: Tiler) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.scale = scale
        self._tiler = operations
        self._kernels = _kernels_like(operations)

    def forward(self, query: Tiles, key: Tiles, value: Tiles) -> Tiles:
        """Tiles [batch, tokens, features] each, keys and values of one shape.

        Raises:
            RuntimeError: features that heads do not divide, or shapes that PyTorch's attention would not take.
        """
        features = query.data.shape[1]
        if features % self.heads:
            raise RuntimeError(f"attention: found {features} features, expected a multiple of {self.heads}")
        plain = len(query.outer) == 2 and query.outer[0] == key.outer[0] and query.tokens and key.tokens
        if not plain or key.outer != value.outer or key.data.shape[1] != features or value.data.shape[1] != features:
            return self._by_torch(query, key, value)
        (images, queries), keys, depth = query.outer, key.outer[1], features // self.heads
        lanes = self._kernels.processor.lanes
        room = scratch_floats(queries, keys, depth, lanes)
        made = query.data.new_empty(query.data.shape)
        description = describe(self._tiler.openmp)
        scale = depth**-0.5 if self.scale is None else self.scale
        for field, number in {
            AttentionField.HEADS: self.heads,
            AttentionField.DEPTH: depth,
            AttentionField.QUERIES: queries,
            AttentionField.KEYS: keys,
            AttentionField.QUERY_TILE: query.data.shape[2],
            AttentionField.KEY_TILE: key.data.shape[2],
            AttentionField.VALUE_TILE: value.data.shape[2],
            AttentionField.SCALE: struct.unpack("<I", struct.pack("<f", scale))[0],
            AttentionField.CAUSAL: int(self.causal),
            AttentionField.QUERY_TILES: query.data.shape[0],
            AttentionField.SCRATCH: room,
        }.items():
            description[field] = number
        work = 2 * images * queries * keys * features
        threads = 1 if work < _WORTH_A_TEAM else min(self._tiler.openmp.threads(), images * self.heads)
        self._kernels.attend(
            description.ctypes.data,
            query.data.data_ptr(),
            key.data.data_ptr(),
            value.data.data_ptr(),
            made.data_ptr(),
            workspace().address(room * threads),
            images,
            threads,
        )
        return Tiles(made, query.outer, query.tokens, query.dtype)

    def _by_torch(self, query: Tiles, key: Tiles, value: Tiles) -> Tiles:
        q, k, v = (self._heads(self._tiler.unpack(t)) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self._tiler.pack(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _kernels_like(operations: Tiler) -> AttentionKernels:
    return load(AttentionKernels, operations.kernels.processor, cache_directory())
