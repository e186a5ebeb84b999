"""Factorized weights as the small operators that they stand for: ordinary modules, never the dense weight.

Each computes what its layer computes with ``tree.to_dense()``. Their parameters are the factors (with gradients), so
they train, copy, export and save like any other module.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.encoding.factors import CP, LowRank, Monarch, TensorTrain, Tucker
from gossamer.encoding.interpolation import Interpolation
from gossamer.encoding.node import Encoding
from gossamer.encoding.weights import Sum

__all__ = [
    "Interpolated",
    "MonarchEmbedding",
    "MonarchLinear",
    "Parallel",
    "TensorTrainEmbedding",
    "TensorTrainLinear",
    "factorized",
    "name_of",
    "operator_of",
]

Conv = nn.Conv1d | nn.Conv2d
_SEARCHED = 10  # longest chain whose orders are compared: 2¹⁰ states


def factorized(tree: Encoding) -> bool:
    """Whether a weight is made of factors that can run as operators of their own."""
    return name_of(tree) is not None


def name_of(tree: Encoding) -> str | None:
    """What the operator is called in explanations, or None: the weight is in one piece."""
    names: dict[type[Encoding], str] = {
        LowRank: "low rank",
        Tucker: "tucker",
        CP: "cp",
        TensorTrain: "tensor train",
        Monarch: "monarch",
    }
    if isinstance(tree, Sum) and any(factorized(t) for t in tree.terms):
        return "sum"
    return names.get(type(tree))


def operator_of(tree: Encoding, layer: nn.Module) -> nn.Module | None:
    """The layer as small operators.

    Args:
        tree: of the layer's weight.
        layer: Linear, Conv1d, Conv2d of one group padded with zeros, or Embedding without max_norm.

    Returns:
        A module that computes the same, in the dtype and on the device of the layer's weight, or None: the weight is
        in one piece, or the layer is another one. Factors are copies, each dense.

    Example:
        >>> import torch
        >>> from gossamer.encoding import Dense
        >>> tree = LowRank(Dense(torch.ones(4, 1)), Dense(torch.ones(1, 3)))
        >>> operator_of(tree, nn.Linear(3, 4, bias=False))(torch.ones(1, 3)).tolist()
        [[3.0, 3.0, 3.0, 3.0]]
    """
    if isinstance(layer, nn.Linear):
        return _as_linear(tree, layer)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1 and layer.padding_mode == "zeros":
        return _as_convolution(tree, layer)
    if isinstance(layer, nn.Embedding) and layer.max_norm is None:
        return _as_embedding(tree, layer)
    return None


def _as_linear(tree: Encoding, layer: nn.Linear) -> nn.Module | None:
    if isinstance(tree, LowRank) and isinstance(tree.u, Interpolation):
        last = Interpolated(_linear(_own(tree.u.rest, layer)), tree.u.order(), -1, _bias(layer.bias))
        return nn.Sequential(_linear(_own(tree.v, layer)), last)
    if isinstance(tree, LowRank):
        return nn.Sequential(_linear(_own(tree.v, layer)), _linear(_own(tree.u, layer), layer.bias))
    if isinstance(tree, Tucker):
        out, into = tree.factors
        parts = [] if into is None else [_linear(_own(into, layer).T)]
        parts.append(_linear(_own(tree.core, layer), None if out is not None else layer.bias))
        parts += [] if out is None else [_linear(_own(out, layer), layer.bias)]
        return nn.Sequential(*parts)
    if isinstance(tree, CP):
        out, into = tree.factors
        return nn.Sequential(_linear(_own(into, layer).T), _linear(_own(out, layer), layer.bias))
    if isinstance(tree, TensorTrain):
        return TensorTrainLinear([_own(c, layer) for c in tree.cores], _bias(layer.bias))
    if isinstance(tree, Monarch):
        return MonarchLinear(_own(tree.left, layer), _own(tree.right, layer), _bias(layer.bias))
    if isinstance(tree, Sum) and factorized(tree):
        first, *others = tree.terms
        bare = _linear(layer.weight.detach())
        terms = [_as_linear(first, layer) or _linear(_own(first, layer), layer.bias)]
        return Parallel(terms + [_as_linear(t, bare) or _linear(_own(t, layer)) for t in others])
    return None


def _as_convolution(tree: Encoding, layer: Conv) -> nn.Module | None:
    dims = layer.weight.dim() - 2
    ones, last = (1,) * dims, layer.bias

    def point(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        return _convolution(layer, weight.reshape(*weight.shape, *ones), bias, (1, 0, 1))

    if isinstance(tree, LowRank) and isinstance(tree.u, Interpolation):
        end = Interpolated(point(_own(tree.u.rest, layer)), tree.u.order(), -1 - dims, _bias(last))
        return nn.Sequential(_convolution(layer, _own(tree.v, layer)), end)
    if isinstance(tree, LowRank):
        return nn.Sequential(_convolution(layer, _own(tree.v, layer)), point(_own(tree.u, layer), last))
    if isinstance(tree, Tucker):
        out, into = tree.factors[:2]
        core = _own(Tucker(tree.core, (None, None, *tree.factors[2:])), layer)
        parts = [] if into is None else [point(_own(into, layer).T)]
        parts.append(_convolution(layer, core, None if out is not None else last))
        parts += [] if out is None else [point(_own(out, layer), last)]
        return nn.Sequential(*parts)
    if isinstance(tree, CP):
        out, into = tree.factors[:2]
        parts = [point(_own(into, layer).T)]
        for dim, factor in enumerate(tree.factors[2:]):
            taps = _own(factor, layer).T  # [rank, taps]
            shape = [1] * dims
            shape[dim] = taps.shape[1]
            parts.append(_depthwise(layer, taps.reshape(taps.shape[0], 1, *shape), dim))
        return nn.Sequential(*parts, point(_own(out, layer), last))
    if isinstance(tree, Sum) and factorized(tree):
        first, *others = tree.terms
        bare = _convolution(layer, layer.weight.detach())
        terms = [_as_convolution(first, layer) or _convolution(layer, _own(first, layer), last)]
        return Parallel(terms + [_as_convolution(t, bare) or _convolution(layer, _own(t, layer)) for t in others])
    return None


def _as_embedding(tree: Encoding, layer: nn.Embedding) -> nn.Module | None:
    if isinstance(tree, LowRank):
        return nn.Sequential(_embedding(_own(tree.u, layer)), _linear(_own(tree.v, layer).T))
    if isinstance(tree, TensorTrain):
        return TensorTrainEmbedding([_own(c, layer) for c in tree.cores])
    if isinstance(tree, Monarch):
        return MonarchEmbedding(_own(tree.left, layer), _own(tree.right, layer))
    if isinstance(tree, Sum) and factorized(tree):
        return Parallel([_as_embedding(t, layer) or _embedding(_own(t, layer)) for t in tree.terms])
    return None


@final
class Parallel(nn.Module):
    """y = Σ term(x): a sum of weights as a sum of outputs."""

    def __init__(self, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, x: Tensor) -> Tensor:
        """All terms on the same input."""
        first, *others = self.terms
        y = first(x)
        for term in others:
            y = y + term(x)
        return cast(Tensor, y)


@final
class Interpolated(nn.Module):
    """y = [z, rest(z)] in another order: what low rank with rows of the identity does last.

    Args:
        rest: makes the other outputs of z.
        order: int64 [out], place of each output in [z, rest(z)].
        dim: of the channels, counted from the end.
        bias: [out] or None.
    """

    order: Tensor

    def __init__(self, rest: nn.Module, order: Tensor, dim: int, bias: Tensor | None) -> None:
        super().__init__()
        self.rest, self.dim = rest, dim
        self.register_buffer("order", order)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, z: Tensor) -> Tensor:
        """[..., rank, *places] → [..., out, *places]."""
        y = torch.cat([z, self.rest(z)], self.dim).index_select(self.dim, self.order)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * (-1 - self.dim))


@final
class TensorTrainLinear(nn.Module):
    """y = x·Wᵀ + b for a chain of cores; core by core, in the order of the fewest multiply-adds.

    Args:
        cores: [r_{k−1}, m_k, n_k, r_k] with r₀ = r_d = 1; out = Π m, in = Π n.
        bias: [out] or None.

    Cost: see ``macs``, multiply-adds per row of x. Chains of more than 10 cores are taken from the left.

    Source: Novikov et al. 2015, arXiv 1509.06569, section 3; the order by dynamic programming over what has been taken.
    """

    def __init__(self, cores: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.cores = nn.ParameterList([nn.Parameter(c) for c in cores])
        self.bias = None if bias is None else nn.Parameter(bias)
        shapes = [tuple(c.shape) for c in cores]
        self.order, self.macs = _cheapest(shapes)
        taken = [frozenset(self.order[:i]) for i in range(len(cores))]
        self._steps = [(*_axes(t, k), _numbers(shapes, t, k + 1)) for t, k in zip(taken, self.order, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        # z is [batch, …]: for every core its rows if it was taken, else its columns; between a core that was taken and
        # one that was not, their bond. What a core sums over therefore always lies side by side.
        z = x
        for core, (into, out, rest) in zip((self.cores[k] for k in self.order), self._steps, strict=True):
            z = z.reshape(-1, prod(core.shape[i] for i in into), rest)
            z = _product(core.permute(*out, *into).reshape(-1, z.shape[1]), z)
        rows = prod(core.shape[1] for core in self.cores)
        y = z.reshape(*x.shape[:-1], rows)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        shapes = " · ".join(str(list(c.shape)) for c in self.cores)
        return f"{shapes}, order={self.order}, macs={self.macs}"


def _product(matrix: Tensor, z: Tensor) -> Tensor:
    """[p, q] · [batch, q, rest] → [batch, p, rest]; a single column is a plain Linear layer."""
    return F.linear(z.squeeze(-1), matrix).unsqueeze(-1) if z.shape[-1] == 1 else matrix @ z


def _axes(taken: frozenset[int], k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes of core k [r, m, n, r'] that are summed over, and those that stay, when some cores were taken before."""
    left, right = k - 1 in taken, k + 1 in taken
    into = (*((0,) if left else ()), 2, *((3,) if right else ()))
    return into, (*(() if left else (0,)), 1, *(() if right else (3,)))


def _numbers(shapes: Sequence[tuple[int, ...]], taken: frozenset[int], start: int = 0) -> int:
    """Numbers per input after some cores were taken; from a core on: what lies to the right of the one before."""
    size = 1
    for k in range(start, len(shapes)):
        size *= shapes[k][1 if k in taken else 2]
        if k + 1 < len(shapes) and (k in taken) != (k + 1 in taken):
            size *= shapes[k][3]
    return size


def _cheapest(shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], int]:
    """Order in which the cores are multiplied onto an input, and its multiply-adds."""
    count = len(shapes)

    def step(taken: frozenset[int], k: int) -> int:
        into, _ = _axes(taken, k)
        return _numbers(shapes, taken | {k}) * prod(shapes[k][i] for i in into)

    if count > _SEARCHED:
        order = tuple(range(count))
        return order, sum(step(frozenset(order[:k]), k) for k in order)
    best: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {frozenset(): (0, ())}
    for _ in range(count):
        longer: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {}
        for taken, (macs, order) in best.items():
            for k in sorted(set(range(count)) - taken):
                offer = (macs + step(taken, k), (*order, k))
                longer[taken | {k}] = min(offer, longer.get(taken | {k}, offer))
        best = longer
    ((macs, order),) = best.values()
    return order, macs


@final
class MonarchLinear(nn.Module):
    """y = x·Wᵀ + b for a Monarch matrix: two batched products of small matrices.

    Args:
        left: [l, s, k], out = l·s.
        right: [k, l, b], in = k·b.
        bias: [out] or None.

    Cost: in · l + out · k multiply-adds per row of x.
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        k, _, b = self.right.shape
        z = x.reshape(-1, k, b).transpose(0, 1) @ self.right.transpose(1, 2)  # [k, n, b] · [k, b, l] → [k, n, l]
        z = z.permute(2, 1, 0) @ self.left.transpose(1, 2)  # [l, n, k] · [l, k, s] → [l, n, s]
        y = z.transpose(0, 1).reshape(*x.shape[:-1], self.left.shape[0] * self.left.shape[1])
        return y if self.bias is None else y + self.bias


@final
class TensorTrainEmbedding(nn.Module):
    """Rows of a chain of cores, looked up without the other rows: index → digits, one slice of every core.

    Args:
        cores: [r_{k−1}, m_k, n_k, r_k]; tokens = Π m, width = Π n.
    """

    def __init__(self, cores: Sequence[Tensor]) -> None:
        super().__init__()
        self.cores = nn.ParameterList([nn.Parameter(c) for c in cores])
        self.rows = tuple(c.shape[1] for c in cores)

    def forward(self, index: Tensor) -> Tensor:
        """Integers [...] → [..., width]."""
        flat = index.reshape(-1)
        row: Tensor | None = None
        for k, core in enumerate(self.cores):
            # The first digit is not reduced, so that an index beyond the table is refused by index_select.
            digit = flat // prod(self.rows[k + 1 :])
            digit = digit % self.rows[k] if k else digit
            r, _, n, s = core.shape
            piece = core.index_select(1, digit).transpose(0, 1).reshape(-1, r, n * s)  # [tokens, r, n·r']
            # [tokens, columns, r] · [tokens, r, n·r'] → [tokens, columns·n, r']
            row = piece.view(-1, n, s) if row is None else (row @ piece).view(-1, row.shape[1] * n, s)
        assert row is not None
        return row.reshape(*index.shape, row.shape[1])


@final
class MonarchEmbedding(nn.Module):
    """Rows of a Monarch matrix, looked up without the other rows.

    Args:
        left: [l, s, k], tokens = l·s.
        right: [k, l, b], width = k·b.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def forward(self, index: Tensor) -> Tensor:
        """Integers [...] → [..., width]."""
        flat = index.reshape(-1)
        k, _, b = self.right.shape
        scale = self.left.flatten(0, 1).index_select(0, flat)  # [tokens, k]
        block = self.right.index_select(1, flat // self.left.shape[1]).transpose(0, 1)  # [tokens, k, b]
        return (scale.unsqueeze(-1) * block).reshape(*index.shape, k * b)


def _own(tree: Encoding, layer: nn.Module) -> Tensor:
    """A factor as a tensor of its own, like the layer's weight."""
    like = cast(Tensor, layer.weight)
    return tree.to_dense().detach().to(like.device, like.dtype, copy=True).contiguous()


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()


def _fill(made: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    made.register_parameter("weight", nn.Parameter(weight.contiguous()))
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")  # draws no random numbers
    _fill(made, weight, bias)
    return made


def _embedding(weight: Tensor) -> nn.Embedding:
    made = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    _fill(made, weight, None)
    return made


def _convolution(
    like: Conv, weight: Tensor, bias: Tensor | None = None, steps: tuple[int, int, int] | None = None
) -> Conv:
    """A convolution with these weights; stride, padding and dilation as given or as the layer's."""
    stride, padding, dilation = steps or (like.stride, like.padding, like.dilation)
    return _made(like, weight, bias, stride, padding, dilation, 1)


def _depthwise(like: Conv, weight: Tensor, dim: int) -> nn.Module:
    """A convolution along one dimension only, every channel on its own."""

    def along(found: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
        return tuple(s if i == dim else otherwise for i, s in enumerate(found))

    padding = like.padding if isinstance(like.padding, str) else along(like.padding, 0)
    return _made(like, weight, None, along(like.stride, 1), padding, along(like.dilation, 1), weight.shape[0])


def _made(
    like: Conv, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Conv:
    kind = nn.Conv2d if isinstance(like, nn.Conv2d) else nn.Conv1d
    channels = (weight.shape[1] * groups, weight.shape[0])
    made = kind(*channels, cast(Any, tuple(weight.shape[2:])), stride, padding, dilation, groups, device="meta")
    _fill(made, weight, bias)
    return made
