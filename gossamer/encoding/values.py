"""Numbers: stored as they are, on a uniform grid, as an index into a codebook, or all the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import (
    Category,
    Codec,
    Encoding,
    Role,
    Value,
    child,
    computable,
    leaf,
    require,
)

__all__ = ["Affine", "Codebook", "Constant", "Dense", "Grouped", "Grouping"]

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def index_bits(index: Tensor, entries: int) -> int:
    """Bits of indices into a table at fixed width: ⌈log2 entries⌉ each, at least one."""
    return index.numel() * max(1, (entries - 1).bit_length())


def check_index(node: Encoding, index: Tensor, entries: int) -> None:
    """Refuse indices that point beyond a table.

    Raises:
        FormatError: names the node's kind and the largest index.
    """
    largest = int(index.max()) if index.numel() else 0
    require(largest < entries, node, f"index {largest}", f"below {entries}")


@dataclass(frozen=True)
class Grouping:
    """Which elements share a scale or a codebook: runs of ``size`` columns within rows of ``columns`` elements.

    In dense coordinates, also over packed survivors. Per tensor: one row of all elements in one group.
    Per channel: rows of one output channel, each one group.

    Args:
        columns: elements per row of the flattened dense weight, ≥ 1.
        size: elements per group along a row, 1 ≤ size ≤ columns; the last group of a row may be shorter.

    Example:
        >>> Grouping(columns=4, size=3).of(torch.arange(8)).tolist()
        [0, 0, 0, 1, 2, 2, 2, 3]
    """

    columns: int
    size: int

    def count(self, elements: int) -> int:
        """Number of groups in a dense weight of that many elements."""
        return ceil(elements / self.columns) * ceil(self.columns / self.size)

    def of(self, positions: Tensor) -> Tensor:
        """Group number of each flat position, int64, shape of ``positions``."""
        per_row = ceil(self.columns / self.size)
        if per_row == 1 and self.columns == self.size:
            return (positions // self.columns).long()
        return ((positions // self.columns) * per_row + (positions % self.columns) // self.size).long()


@final
@dataclass(frozen=True, eq=False)
class Dense(Value):
    """The numbers themselves: w = array.

    Args:
        array: any shape and dtype, also another than the logical one (a cast). Integers and booleans never train.
        fixed: a float that must not train either (a buffer such as BatchNorm's running mean, a cast weight).
    """

    array: Tensor = field(metadata=leaf(Role.TRAINABLE, Codec.FLOATS))
    fixed: bool = False

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    def values(self, positions: Tensor | None) -> Tensor:
        """The array; 8-bit floats, with which nothing can be computed, as float32."""
        del positions
        return self.array.float() if self.array.dtype in _FLOAT8 else self.array


_PIECE: Final = 1 << 16  # elements
_PAGE: Final = 1 << 21  # bytes of a large page


def blank_tensor(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An undefined tensor; a large one begins with a large page, which NumPy asks for from 4 MiB on.

    Touching small pages first takes longer than computing what they hold. Room before the page is never touched.
    """
    size = shape.numel() * 4
    if device.type == "cpu" and dtype == torch.float32 and size >= _PAGE:
        room = np.empty(size + _PAGE, dtype=np.uint8)
        first = -room.ctypes.data % _PAGE
        return torch.from_numpy(room[first : first + size].view(np.float32).reshape(tuple(shape)))
    return torch.empty(shape, dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class Grouped(Value, ABC):
    """Shared by all kinds of quantized values: who is in which group."""

    columns: int
    group_size: int

    def check_grouping(self) -> None:
        """Refuse a grouping that makes no sense.

        Raises:
            FormatError: columns or group size out of range.
        """
        require(self.columns >= 1, self, f"columns = {self.columns}", "at least 1")
        sizes = f"1 to {self.columns}"
        require(1 <= self.group_size <= self.columns, self, f"group_size = {self.group_size}", sizes)

    def grouping(self) -> Grouping:
        """The grouping as an object."""
        return Grouping(self.columns, self.group_size)

    @abstractmethod
    def stored_groups(self) -> int:
        """Number of groups that there are scales or tables for."""

    def validate_over(self, elements: int) -> None:
        """One group for all, or a group for every element."""
        found, expected = self.stored_groups(), self.grouping().count(elements)
        require(self.columns <= max(1, elements), self, f"columns = {self.columns}", f"at most {elements}")
        require(found in (1, expected), self, f"{found} groups", f"1 or {expected}")

    def groups_of(self, like: Tensor, positions: Tensor | None) -> Tensor:
        """Group number of each stored element, int64, shape of ``like``."""
        if positions is None:
            positions = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
        return self.grouping().of(positions).view(like.shape)

    def spread(self, per_group: Tensor, like: Tensor, positions: Tensor | None) -> Tensor:
        """Each stored element's entry of a tensor [groups], shape of ``like``."""
        rows, per_row = like.numel() // self.columns, ceil(self.columns / self.group_size)
        if positions is None and rows * self.columns == like.numel() and rows * per_row == per_group.numel():
            blocks = per_group.view(rows, per_row, 1).expand(-1, -1, self.group_size)
            return blocks.reshape(rows, -1)[:, : self.columns].reshape(like.shape)  # much faster than by index
        return per_group[self.groups_of(like, positions)]


@final
@dataclass(frozen=True, eq=False)
class Affine(Grouped):
    """A uniform grid: w = scale[g] · (q − zero_point[g]), g the element's group.

    Args:
        q: uint8, dense shape or [live]; 0 ≤ q < 2**bits.
        scale: `Value` of shape [groups], in the unit of the weights per step; trainable.
        zero_point: uint8 [groups], or one int for all groups (symmetric grids need no tensor).
        bits: 1 to 8.

    Source: Jacob et al. 2018, arXiv 1712.05877, section 2.1.
    """

    q: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    scale: Encoding = field(metadata=child(category=Category.SCALES))
    zero_point: Tensor | int = field(metadata=leaf(Role.FIXED, Codec.SYMBOLS, Category.SCALES))
    bits: int = 8

    def __post_init__(self) -> None:
        self.check_grouping()
        require(1 <= self.bits <= 8, self, f"bits = {self.bits}", "1 to 8")
        require(self.q.dtype == torch.uint8, self, f"q of {self.q.dtype}", "uint8")
        require(len(self.scale.dense_shape()) == 1, self, f"scale of shape {self.scale.dense_shape()}", "[groups]")
        if isinstance(self.zero_point, Tensor):
            require(
                tuple(self.zero_point.shape) == self.scale.dense_shape(),
                self,
                f"zero_point of shape {tuple(self.zero_point.shape)}",
                f"one per scale, {self.scale.dense_shape()}",
            )
        else:
            require(0 <= self.zero_point <= 255, self, f"zero_point = {self.zero_point}", "0 to 255")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the stored integers."""
        return tuple(self.q.shape)

    def values(self, positions: Tensor | None) -> Tensor:
        """scale · (q − zero_point), in the scale's dtype or float32 if that is half."""
        scale = computable(self.scale.to_dense())
        if positions is None and not (torch.is_grad_enabled() and scale.requires_grad) and self._regular(scale):
            return self._at_once(scale)
        if scale.numel() == 1:
            zero = self.zero_point.to(scale.dtype) if isinstance(self.zero_point, Tensor) else self.zero_point
            return (self.q.to(scale.dtype) - zero) * scale
        spread = self.spread(scale, self.q, positions)
        if isinstance(self.zero_point, Tensor):
            zero = self.spread(self.zero_point.to(scale.dtype), self.q, positions)
            return (self.q.to(scale.dtype) - zero) * spread
        return (self.q.to(scale.dtype) - self.zero_point) * spread

    def _regular(self, scale: Tensor) -> bool:
        """Whether the weight is a whole number of rows of whole groups, each with a scale, and large."""
        # neither fake nor traced: tracing makes tensors of sizes
        plain = type(self.q) is Tensor and type(scale) is Tensor and isinstance(scale.numel(), int)
        if not plain or torch.compiler.is_compiling():
            return False
        rows, per_row = self.q.numel() // self.columns, self.columns // self.group_size
        whole = rows * self.columns == self.q.numel() and per_row * self.group_size == self.columns
        return whole and rows * per_row == scale.numel() and self.q.numel() >= _PIECE

    def _at_once(self, scale: Tensor) -> Tensor:
        """The same numbers in one pass over memory, compiled; or a piece that fits the caches at a time."""
        zeros = self.zero_point.to(scale.dtype) if isinstance(self.zero_point, Tensor) else None
        q, out = self.q.contiguous(), blank_tensor(self.q.shape, scale.dtype, self.q.device)
        if q.device.type == "cpu" and scale.dtype == torch.float32 and type(out) is Tensor:
            from gossamer.encoding.grid_kernel import grid_kernel  # loads the compiler

            made = grid_kernel()
            if made is not None:
                zeros = torch.full_like(scale, float(self.zero_point)) if zeros is None else zeros.contiguous()
                scale = scale.contiguous()
                addresses = (out.data_ptr(), q.data_ptr(), scale.data_ptr(), zeros.data_ptr())
                made.scale(*addresses, scale.numel(), self.group_size)
                return out
        shape = (-1, self.columns // self.group_size, self.group_size)
        scales = scale.view(-1, shape[1], 1)
        step = max(1, _PIECE // self.columns)
        for start in range(0, len(scales), step):
            rows = slice(start, start + step)
            piece = out.view(shape)[rows].copy_(q.view(shape)[rows])
            piece.sub_(self.zero_point if zeros is None else zeros.view(scales.shape)[rows]).mul_(scales[rows])
        return out

    def stored_groups(self) -> int:
        """One per scale."""
        return self.scale.dense_shape()[0]

    def leaf_bits(self, field: str) -> int:
        """``bits`` per integer; other leaves at their own width."""
        return self.q.numel() * self.bits if field == "q" else super().leaf_bits(field)

    def validate(self) -> None:
        """Integers lie on the grid."""
        largest = int(self.q.max()) if self.q.numel() else 0
        require(largest < 1 << self.bits, self, f"q = {largest}", f"below {1 << self.bits}")


@final
@dataclass(frozen=True, eq=False)
class Codebook(Grouped):
    """Shared values: w = table[g, index], g the element's group.

    Args:
        index: uint8, dense shape or [live].
        table: the centroids, `Value` of shape [groups, entries]; trainable.

    Source: Han, Mao, Dally 2016, Deep Compression, arXiv 1510.00149, section 3.
    """

    index: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    table: Encoding = field(metadata=child(category=Category.CODEBOOKS))

    def __post_init__(self) -> None:
        self.check_grouping()
        require(self.index.dtype == torch.uint8, self, f"index of {self.index.dtype}", "uint8")
        found = self.table.dense_shape()
        require(len(found) == 2 and 1 <= found[1] <= 256, self, f"table of shape {found}", "[groups, 1 to 256]")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the index."""
        return tuple(self.index.shape)

    def stored_groups(self) -> int:
        """One per row of the table."""
        return self.table.dense_shape()[0]

    def entries(self) -> int:
        """Centroids per group."""
        return self.table.dense_shape()[1]

    def values(self, positions: Tensor | None) -> Tensor:
        """The centroid of each element, in the table's dtype or float32 if that is half."""
        table = computable(self.table.to_dense())
        groups, entries = table.shape
        flat = self.index.int()
        if groups > 1:
            flat = flat + self.groups_of(self.index, positions).int() * entries
        return table.reshape(-1).index_select(0, flat.reshape(-1)).view(self.index.shape)

    def leaf_bits(self, field: str) -> int:
        """⌈log2 entries⌉ per index; the table at its own width."""
        return index_bits(self.index, self.entries()) if field == "index" else super().leaf_bits(field)

    def validate(self) -> None:
        """Indices point into the table."""
        check_index(self, self.index, self.entries())


@final
@dataclass(frozen=True, eq=False)
class Constant(Value):
    """The same number everywhere: w = value. Has no leaves, so it costs nothing beyond its shape.

    Args:
        weight_shape: of the tensor.
        value: finite; float32 in computation, exact in the logical dtype if that holds it.
    """

    weight_shape: tuple[int, ...]
    value: float

    def dense_shape(self) -> tuple[int, ...]:
        """As given."""
        return self.weight_shape

    def values(self, positions: Tensor | None) -> Tensor:
        """The number, repeated."""
        del positions
        return torch.full(self.weight_shape, self.value)


def whole(shape: tuple[int, ...]) -> Grouping:
    """Per-tensor grouping of a weight of that shape: one group."""
    elements = max(1, prod(shape))
    return Grouping(elements, elements)
