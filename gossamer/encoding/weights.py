"""Weights made of other weights: masked, kept, summed, scaled, turned, reordered, joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import (
    INPUT_STATISTICS,
    Category,
    Codec,
    Encoding,
    Pattern,
    Role,
    Value,
    child,
    computable,
    leaf,
    require,
)
from gossamer.encoding.patterns import Mask
from gossamer.errors import CompositionError

__all__ = ["Concat", "Kept", "Masked", "Permuted", "Ref", "Scaled", "Sum", "View"]


@final
@dataclass(frozen=True, eq=False)
class Masked(Encoding):
    """w = value at the live positions, zero elsewhere. Only live values exist, also for optimisers.

    Args:
        where: pattern of live positions, shape of the weight.
        value: `Value` [live], in row-major order of the positions.
    """

    where: Pattern = field(metadata=child(category=Category.POSITIONS))
    value: Value = field(metadata=child())

    def __post_init__(self) -> None:
        require(isinstance(self.where, Pattern), self, f"where = {type(self.where).__name__}", "a pattern")
        require(isinstance(self.value, Value), self, f"value = {type(self.value).__name__}", "packed values")
        found = self.value.dense_shape()
        require(len(found) == 1, self, f"value of shape {found}", "[live]")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the pattern."""
        return self.where.dense_shape()

    def to_dense(self) -> Tensor:
        """Live values in place, zeros elsewhere."""
        positions = self.where.positions()
        live = self.value.values(positions)
        empty = torch.zeros(prod(self.dense_shape()), dtype=live.dtype, device=live.device)
        return empty.index_add(0, positions, live).view(self.dense_shape())

    def validate(self) -> None:
        """As many values as live positions, and groups for all of the weight."""
        live = self.where.positions().numel()
        found = self.value.dense_shape()
        require(found == (live,), self, f"values {found}", f"one per live position, [{live}]")
        self.value.validate_over(prod(self.dense_shape()))


@final
@dataclass(frozen=True, eq=False)
class Kept(Encoding):
    """Structured shrink: ``inner`` is physically small; `to_dense` is the original shape with ``fill`` in the gaps.

    Args:
        inner: the small weight.
        keep: per dimension the mask of what stayed, bool over ``size // repeat`` units, or None: everything.
        repeat: per dimension, consecutive indices that live or die together (pixels of a flattened channel).
        fill: value of what was removed: 0, or 1 for a variance.
    """

    inner: Encoding = field(metadata=child(weight=True))
    keep: tuple[Mask | None, ...] = field(metadata=child(category=Category.POSITIONS))
    repeat: tuple[int, ...]
    fill: float = 0.0

    def __post_init__(self) -> None:
        small = self.inner.dense_shape()
        expected = f"one per dimension of {small}"
        require(len(self.keep) == len(small) == len(self.repeat), self, f"{len(self.keep)} keeps", expected)
        require(all(r >= 1 for r in self.repeat), self, f"repeat {self.repeat}", "at least 1")
        for mask in self.keep:
            good = mask is None or len(mask.weight_shape) == 1
            require(good, self, f"keep {mask}", "a mask of one dimension")

    def dense_shape(self) -> tuple[int, ...]:
        """The original shape."""
        sizes = zip(self.inner.dense_shape(), self.keep, self.repeat, strict=True)
        return tuple(s if k is None else k.weight_shape[0] * r for s, k, r in sizes)

    def kept_indices(self, dim: int) -> Tensor | None:
        """Indices along a dimension that stayed, int64, or None: all of them."""
        mask, repeat = self.keep[dim], self.repeat[dim]
        if mask is None:
            return None
        units = mask.positions().long()
        return (units[:, None] * repeat + torch.arange(repeat, device=units.device)).reshape(-1)

    def to_dense(self) -> Tensor:
        """The original shape: what stayed in place, ``fill`` elsewhere."""
        w = self.inner.to_dense()
        for dim, size in enumerate(self.dense_shape()):
            index = self.kept_indices(dim)
            if index is not None:
                full = torch.full(
                    (*w.shape[:dim], size, *w.shape[dim + 1 :]), self.fill, dtype=w.dtype, device=w.device
                )
                w = full.index_copy(dim, index.to(w.device), w)
        return w

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Statistics of the inputs that stayed."""
        if field != "inner":
            return {}
        rest = self.dense_shape()[1:]
        index = torch.arange(prod(rest)).view(rest)
        for dim in range(1, len(self.keep)):
            kept = self.kept_indices(dim)
            index = index if kept is None else index.index_select(dim - 1, kept)
        flat = index.reshape(-1)
        below = {k: v for k, v in evidence.items() if k == "count"}
        rows, kept = self.dense_shape()[0], self.kept_indices(0)
        held = torch.arange(rows) if kept is None else kept
        for key in ("sum", "sq", "zeros", "gram"):
            own = _of_rows(key, evidence[key], held, rows) if key in evidence else None
            if own is not None:
                below[key] = own[..., flat, :][..., flat] if key == "gram" else own[..., flat]
        for key in evidence.keys() - INPUT_STATISTICS:
            if tuple(evidence[key].shape) != self.dense_shape():
                continue
            below[key] = evidence[key]
            for dim in range(len(self.keep)):
                kept = self.kept_indices(dim)
                below[key] = below[key] if kept is None else below[key].index_select(dim, kept)
        return below

    def validate(self) -> None:
        """As many kept indices as the small weight has."""
        for dim, small in enumerate(self.inner.dense_shape()):
            mask = self.keep[dim]
            if mask is not None:
                kept = mask.positions().numel() * self.repeat[dim]
                require(kept == small, self, f"{kept} kept along dimension {dim}", f"{small}")


@final
@dataclass(frozen=True, eq=False)
class Sum(Encoding):
    """w = Σ terms (low rank + sparse, shared + residual).

    Args:
        terms: two or more weights of one shape.
    """

    terms: tuple[Encoding, ...] = field(metadata=child(weight=True))

    def __post_init__(self) -> None:
        shapes = [t.dense_shape() for t in self.terms]
        require(len(shapes) >= 2 and len(set(shapes)) == 1, self, f"terms {shapes}", "two or more of one shape")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of every term."""
        return self.terms[0].dense_shape()

    def to_dense(self) -> Tensor:
        """The sum, in float32 for half-precision terms."""
        total = computable(self.terms[0].to_dense())
        for term in self.terms[1:]:
            total = total + computable(term.to_dense())
        return total

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Every term sees the layer's inputs, and has the gradient of the sum."""
        del field
        return evidence


@final
@dataclass(frozen=True, eq=False)
class Scaled(Encoding):
    """w = diag(output_scale) · inner · diag(input_scale), seen as a matrix [out, rest].

    Args:
        inner: [out, *rest].
        input_scale: [Π rest] or None.
        output_scale: [out] or None.

    Source: Lin et al. 2023, AWQ, arXiv 2306.00978, section 3.2; Xiao et al. 2022, SmoothQuant, arXiv 2211.10438.
    """

    inner: Encoding = field(metadata=child(weight=True))
    input_scale: Encoding | None = field(metadata=child(category=Category.SCALES))
    output_scale: Encoding | None = field(metadata=child(category=Category.SCALES))

    def __post_init__(self) -> None:
        shape = self.inner.dense_shape()
        for scale, size in ((self.input_scale, prod(shape[1:])), (self.output_scale, shape[0] if shape else 0)):
            if scale is not None:
                require(scale.dense_shape() == (size,), self, f"scale of {scale.dense_shape()}", f"[{size}]")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the inner weight."""
        return self.inner.dense_shape()

    def to_dense(self) -> Tensor:
        """The scaled weight, in float32 for half-precision leaves."""
        w = computable(self.inner.to_dense()).flatten(1)
        if self.input_scale is not None:
            w = w * computable(self.input_scale.to_dense())
        if self.output_scale is not None:
            w = w * computable(self.output_scale.to_dense())[:, None]
        return w.view(self.dense_shape())

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inner weight multiplies inputs times the input scale; its gradient has both scales as factors."""
        if field != "inner":
            return {}
        below = {k: v for k, v in evidence.items() if k in INPUT_STATISTICS}
        if self.input_scale is not None:
            s = computable(self.input_scale.to_dense()).detach()
            powers = {"sum": s, "sq": s * s, "gram": s[:, None] * s}
            below = {k: v * powers[k] if k in powers else v for k, v in below.items()}
        if "grad" in evidence:
            grad = evidence["grad"].flatten(1)
            if self.input_scale is not None:
                grad = grad * computable(self.input_scale.to_dense()).detach()
            if self.output_scale is not None:
                grad = grad * computable(self.output_scale.to_dense()).detach()[:, None]
            below["grad"] = grad.view(self.dense_shape())
        return below


@final
@dataclass(frozen=True, eq=False)
class View(Encoding):
    """w = inner.permute(order): the same numbers in another orientation.

    Sources use it so that methods only ever see output-first weights.

    Args:
        inner: the weight as methods see it.
        order: a permutation of its dimensions.
    """

    inner: Encoding = field(metadata=child(weight=True))
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        dims = len(self.inner.dense_shape())
        require(sorted(self.order) == list(range(dims)), self, f"order {self.order}", f"a permutation of {dims}")

    def dense_shape(self) -> tuple[int, ...]:
        """Permuted shape."""
        inner = self.inner.dense_shape()
        return tuple(inner[i] for i in self.order)

    def to_dense(self) -> Tensor:
        """The permuted weight, contiguous."""
        return self.inner.to_dense().permute(self.order).contiguous()

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Evidence is kept in output-first coordinates already."""
        del field
        return evidence


@final
@dataclass(frozen=True, eq=False)
class Permuted(Encoding):
    """w[:, order[j]] = inner[:, j], seen as a matrix [out, rest]: the columns of ``inner`` lie in another order.

    N:M groups of ``inner`` then join columns that are not neighbours in w.

    Args:
        inner: [out, *rest].
        order: int16 (int32 from 2¹⁵ columns on) [Π rest], the place in w of each column of ``inner``.

    Source: Pool and Yu 2021, "Channel permutations for N:M sparsity", NeurIPS.
    """

    inner: Encoding = field(metadata=child(weight=True))
    order: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.POSITIONS))

    def __post_init__(self) -> None:
        shape = self.inner.dense_shape()
        columns = prod(shape[1:])
        require(len(shape) >= 2, self, f"inner of shape {shape}", "[out, *rest]")
        expected = torch.int16 if columns < 1 << 15 else torch.int32
        require(self.order.dtype == expected, self, f"order of {self.order.dtype}", f"{expected}")
        require(tuple(self.order.shape) == (columns,), self, f"order of {tuple(self.order.shape)}", f"[{columns}]")

    @classmethod
    def of(cls, inner: Encoding, order: Tensor) -> Permuted:
        """With the order, any integers, in the dtype that its length asks for."""
        return cls(inner, order.to(torch.int16 if len(order) < 1 << 15 else torch.int32))

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the inner weight."""
        return self.inner.dense_shape()

    def leaf_bits(self, field: str) -> int:
        """⌈log2 columns⌉ per column."""
        del field
        return self.order.numel() * (self.order.numel() - 1).bit_length() if self.order.numel() else 0

    def to_dense(self) -> Tensor:
        """The weight with its columns in place."""
        return self.inner.to_dense().flatten(1)[:, self.order.long().argsort()].view(self.dense_shape())

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inner weight sees the inputs in its order."""
        if field != "inner":
            return {}
        order, shape = self.order.long(), self.dense_shape()
        turned = {}
        for name, found in evidence.items():
            if name == "gram":
                turned[name] = found[..., order, :][..., order]
            elif tuple(found.shape) == shape:
                turned[name] = found.flatten(1)[:, order].view(shape)
            elif name in INPUT_STATISTICS:
                turned[name] = found[..., order] if found.shape[-1] == len(order) else found
        return turned

    def validate(self) -> None:
        """Every column once."""
        places = self.order.long().sort().values
        good = torch.equal(places, torch.arange(len(places)))
        require(good, self, "an order with columns twice or none", f"a permutation of {len(places)}")


def _of_rows(key: str, found: Tensor, rows: Tensor, out: int) -> Tensor | None:
    """A statistic of the inputs as some of the weight's rows see it.

    Args:
        key: its name.
        found: [in] ("gram": [in, in]), or with a dimension for groups before that; "count" [1].
        rows: int64, ascending.
        out: rows of the whole weight; each group has as many.

    Returns:
        The same for the groups that the rows belong to; None if these have different numbers of rows.
    """
    if found.dim() == (2 if key == "gram" else 1):
        return found
    groups = len(found)
    if out % groups:
        return None
    owners, counts = (rows.to(found.device) // (out // groups)).unique(return_counts=True)  # type: ignore[no-untyped-call]
    return found[owners] if bool((counts == counts[0]).all()) else None


@final
@dataclass(frozen=True, eq=False)
class Concat(Encoding):
    """w = parts joined along the first dimension (the packed gates of an LSTM or GRU).

    Args:
        parts: one or more weights that agree in all but the first dimension.
    """

    members: tuple[Encoding, ...] = field(metadata=child(weight=True))

    def __post_init__(self) -> None:
        shapes = [p.dense_shape() for p in self.members]
        good = bool(shapes) and all(len(s) >= 1 and s[1:] == shapes[0][1:] for s in shapes)
        require(good, self, f"parts {shapes}", "one or more that differ in the first dimension only")

    def dense_shape(self) -> tuple[int, ...]:
        """Sum of the first dimensions."""
        shapes = [p.dense_shape() for p in self.members]
        return (sum(s[0] for s in shapes), *shapes[0][1:])

    def to_dense(self) -> Tensor:
        """The joined weight, in float32 for half-precision parts."""
        return torch.cat([computable(p.to_dense()) for p in self.members])

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All parts see the same inputs; each has its rows of what has the shape of the weight."""
        sizes = [member.dense_shape()[0] for member in self.members]
        number = int(field.partition(".")[2])
        start = sum(sizes[:number])
        rows = torch.arange(start, start + sizes[number])
        below = {}
        for key, found in evidence.items():
            own = _of_rows(key, found, rows, sum(sizes)) if key in INPUT_STATISTICS else found[rows]
            if own is not None:
                below[key] = own
        return below


@final
@dataclass(frozen=True, eq=False)
class Ref(Encoding):
    """The weight of that name, for steps that must not hold both in memory; `link` puts the object itself in.

    Args:
        name: name of another tensor's tree.
        weight_shape: its shape.
    """

    name: str
    weight_shape: tuple[int, ...]

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight referred to."""
        return self.weight_shape

    def to_dense(self) -> Tensor:
        """Impossible before linking.

        Raises:
            CompositionError: always.
        """
        raise CompositionError(f"found an unlinked reference to {self.name!r}, expected link() to have been called")


def link(trees: Mapping[str, Encoding]) -> dict[str, Encoding]:
    """Replace every `Ref` by the tree it names; sharing becomes object identity.

    Raises:
        CompositionError: a name that is not there, a shape that does not fit, or a circle.
    """
    done: dict[str, Encoding] = {}

    def resolve(node: Encoding, above: tuple[str, ...]) -> Encoding:
        if isinstance(node, Ref):
            return by_name(node, above)
        new = {n: resolve(p, above) for n, p in node.parts() if isinstance(p, Encoding)}
        return node.with_parts(new)

    def by_name(ref: Ref, above: tuple[str, ...]) -> Encoding:
        if ref.name in above:
            raise CompositionError(f"references go in a circle: {' → '.join((*above, ref.name))}")
        if ref.name not in trees:
            raise CompositionError(f"found a reference to {ref.name!r}, expected one of {sorted(trees)}")
        if ref.name not in done:
            done[ref.name] = resolve(trees[ref.name], (*above, ref.name))
        found = done[ref.name].dense_shape()
        if found != ref.weight_shape:
            raise CompositionError(f"{ref.name!r} has shape {found}, the reference expected {ref.weight_shape}")
        return done[ref.name]

    for name, tree in trees.items():
        if name not in done:
            done[name] = resolve(tree, (name,))
    return {name: done[name] for name in trees}
