"""A sparse weight packed for one or a few tokens, and the layer that multiplies with it."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.description import described
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.kernels import VectorKernels, load
from gossamer.runtime.linear import checked_rows
from gossamer.runtime.spmm import Workspace, check_sparse, workspace
from gossamer.runtime.threads import OpenMP, openmp
from gossamer.runtime.vector_fields import PIECES, Field
from gossamer.runtime.vector_packing import BITMAP_ROWS, WIDTH, pack_bitmap, pack_slices
from gossamer.runtime.vector_values import Storage, StoredValues, store_values

__all__ = ["Positions", "VectorLinear", "VectorProduct", "has_bitmaps", "plain", "vector_kernels_at"]

Array = npt.NDArray[Any]

_WORTH_A_TEAM = 120_000
"""Non-zeros times passes over the weight, about 40 µs of one thread, from which on a team of threads saves time."""


class Positions(IntEnum):
    """How the places of non-zeros are held."""

    INDEX = 0  # 16 bits per non-zero
    BITMAP = 1  # one bit per weight; needs AVX-512


@final
class VectorProduct(CompiledProduct):
    """Y = f(X·Wᵀ + b) for a weight W [M, K] with zeros, meant for 1 to 8 tokens, right for any number.

    Immutable: one object may be used by many threads and modules.

    Args:
        shape: (M, K).
        positions: int [n], where W is not zero: row · K + column, ascending.
        values: what is there.
        bias: float32 [M] or None.
        held: how positions are held.
        activation: f.
        kernels: compiled code.
        openmp: where threads come from.
        scratch: memory for interleaved tokens; None for the common one.
        team_from: non-zeros times passes over the weight from which on a product runs on several threads.

    Raises:
        PlanError: sizes or positions do not fit, or there are no bitmaps at this instruction set.

    Cost: by index 2 bytes per non-zero, by bitmap 1/8 byte per weight, and the stored values; rows of unequal length
        are padded. One pass over the weight for up to 8 tokens (16 with AVX-512; 4 by bitmap).
    Exact: each output is one sum in float32 in an order that depends on W alone, not on the number of threads.
    """

    __slots__ = (
        "_address",
        "_arrays",
        "_kernels",
        "_most",
        "_once",
        "_openmp",
        "_run",
        "_small",
        "_team_from",
        "_workspace",
        "activation",
        "columns",
        "held",
        "kind",
        "nonzeros",
        "rows",
    )

    def __init__(
        self,
        shape: tuple[int, int],
        positions: Array,
        values: StoredValues,
        bias: Array | None,
        *,
        held: Positions,
        activation: Activation,
        kernels: VectorKernels,
        openmp: OpenMP,
        scratch: Workspace | None = None,
        team_from: int = _WORTH_A_TEAM,
    ) -> None:
        rows, columns = shape
        check_sparse(rows, columns, positions, np.broadcast_to(np.float32(0), values.codes.shape), bias)
        by_index = held is Positions.INDEX
        run = kernels.by_index if by_index else kernels.by_bitmap
        once = kernels.by_index_once if by_index else kernels.by_bitmap_once
        if run is None or once is None:
            raise PlanError("bitmap: found an instruction set without expansion, expected AVX-512")
        lanes = kernels.processor.lanes
        small = np.int32 if rows * columns < 1 << 31 else np.int64  # dividing 32-bit integers is twice as fast
        row, column = np.divmod(positions.astype(small, copy=False), small(max(1, columns)))
        offsets = np.zeros(rows, np.float32) if bias is None else bias
        if held is Positions.INDEX:
            made = pack_slices(row, column, rows, columns, lanes)
            tall = lanes // made.split
            order = made.order[:, :tall]
            scale, shift = (_by_lane(array, order, lanes) for array in (values.scale, offsets))
            work = np.diff(made.starts, append=len(made.index) // lanes)
            arrays = {
                Field.INDEX: _aligned(made.index),
                Field.VALUES: _packed(values, made.place, len(made.index) + 2 * lanes),
                Field.STARTS: made.starts,
                Field.STEPS: made.steps,
                Field.LENGTHS: made.lengths,
                Field.ORDER: made.order,
            }
            slices, split = len(order), made.split
        else:
            bits = pack_bitmap(row, column, rows, columns)
            scale, shift = (
                np.concatenate([a, np.zeros(-rows % BITMAP_ROWS)]).astype(np.float32) for a in (values.scale, offsets)
            )
            work = np.diff(bits.starts, append=len(positions)) + bits.masks.shape[1] * BITMAP_ROWS * 5
            arrays = {
                Field.VALUES: _packed(values, bits.place, len(positions) + 2 * lanes),  # read beyond the last one
                Field.STARTS: bits.starts,
                Field.MASKS: bits.masks,
            }
            slices, split = len(bits.starts), 1
        arrays |= {
            Field.TABLE: values.table,
            Field.SCALE: scale,
            Field.BIAS: shift,
            Field.BOUNDS: _bounds(work),
        }
        numbers = {
            Field.ROWS: rows,
            Field.COLUMNS: columns,
            Field.PANELS: max(1, -(-columns // WIDTH)),
            Field.SLICES: slices,
            Field.SPLIT: split,
            Field.STORAGE: int(values.kind),
            Field.BITS: values.kind.bits,
            Field.ACTIVATION: int(activation),
        }
        description = described(Field, {**numbers, **{f: a.ctypes.data for f, a in arrays.items()}}, openmp)
        self.rows, self.columns, self.nonzeros = rows, columns, len(positions)
        self.held, self.kind, self.activation = held, values.kind, activation
        self._kernels, self._openmp, self._workspace, self._run = kernels, openmp, scratch or workspace(), run
        self._once, self._most, self._team_from = once, kernels.most_tokens, team_from
        self._small = self.nonzeros < team_from
        self._arrays = (arrays, description)
        self._address: int = description.ctypes.data

    def __call__(self, x: Tensor) -> Tensor:
        """f(X·Wᵀ + b).

        Args:
            x: float32 [tokens, K] on the CPU; rows may lie apart, the elements of a row are adjacent. Not checked.

        Returns:
            float32 [tokens, M], contiguous.
        """
        tokens = x.shape[0]
        y = x.new_empty(tokens, self.rows)  # explicit sizes: a tuple takes PyTorch longer to read
        if tokens == 1:
            self.once(x.data_ptr(), y.data_ptr())
            return y
        if tokens == 0:
            return y
        threads = self.threads(tokens)
        scratch = self._workspace.address(self.columns * self._most * threads) if self.held is Positions.INDEX else 0
        stride = self.columns if x.is_contiguous() else x.stride()[0]
        self._run(self._address, x.data_ptr(), stride, y.data_ptr(), tokens, scratch, threads)
        return y

    def once(self, x: int, y: int) -> None:
        """The same for one token between two addresses."""
        if self._small or (threads := self._openmp.threads()) == 1:
            self._once(self._address, x, y)
        else:
            self._run(self._address, x, 0, y, 1, 0, min(PIECES, threads))

    def threads(self, tokens: int) -> int:
        """Threads that a product with so many tokens is worth."""
        if self.nonzeros * -(-tokens // self._most) < self._team_from:
            return 1
        return min(PIECES, self._openmp.threads())

    def with_activation(self, activation: Activation) -> VectorProduct:
        """The same weight, shared, with another f."""
        made = object.__new__(VectorProduct)
        for name in VectorProduct.__slots__:
            setattr(made, name, getattr(self, name))
        arrays, description = self._arrays
        description = description.copy()
        description[Field.ACTIVATION] = int(activation)
        made._arrays = (arrays, description)
        made._address = description.ctypes.data
        made.activation = activation
        return made

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, positions, codebook and scales; without the bias."""
        arrays, _ = self._arrays
        skip = {Field.BIAS}
        if self.kind is not Storage.INT8:
            skip.add(Field.SCALE)
        return sum(a.nbytes for field, a in arrays.items() if field not in skip)


@final
class VectorLinear(nn.Module):
    """y = f(x·Wᵀ + b) for a weight W [M, K] with zeros and few tokens at a time; on the CPU, without gradients.

    A drop-in replacement of ``torch.nn.Linear``. Larger inputs run on the same packed weight, 8 or 16 tokens per pass
    over it; nothing else is built for them. It has no parameters, and copies share the weight.

    Args:
        weight: float32 [M, K]; copied.
        bias: float32 [M] or None; copied.
        held: how positions are held.
        stored: the kind of stored values; or the values, in ascending order of positions, which must be the weight's.
        activation: f.
        level: instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: kernels cannot be compiled here, or the weight cannot be stored as asked.

    Example:
        >>> layer = VectorLinear(torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]), None)
        >>> layer(torch.tensor([1.0, 10.0, 100.0]))
        tensor([20., -1.])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        held: Positions = Positions.INDEX,
        stored: Storage | StoredValues = Storage.FLOAT32,
        activation: Activation = Activation.NONE,
        level: Level | None = None,
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        flat = weight.detach().cpu().contiguous().view(-1)
        positions = np.flatnonzero((flat != 0).numpy())  # of booleans: four times as fast as of floats
        if isinstance(stored, Storage):
            stored = store_values(flat.numpy()[positions], positions // max(1, columns), rows, stored)
        self._single = (1, columns)
        self.product = VectorProduct(
            (rows, columns),
            positions,
            stored,
            None if bias is None else bias.detach().cpu().numpy(),
            held=held,
            activation=activation,
            kernels=vector_kernels_at(level),
            openmp=openmp(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """f(x·Wᵀ + b).

        Args:
            x: float32 [..., K] on the CPU, any strides.

        Returns:
            float32 [..., M], contiguous.

        Raises:
            RuntimeError: x has another dtype, device or width, or a gradient is asked for.
        """
        product = self.product
        if x.shape == self._single and plain(x):
            y = x.new_empty(1, product.rows)
            product.once(x.data_ptr(), y.data_ptr())
            return y
        y = product(checked_rows(x, product.columns, "VectorLinear"))
        return y if x.ndim == 2 else y.view(*x.shape[:-1], product.rows)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self.product.resident_bytes

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        p = self.product
        zeros = 1 - p.nonzeros / max(1, p.columns * p.rows)
        how = f"{p.held.name.lower()}, {p.kind.name.lower()}, {p.activation.name.lower()}"
        return f"in_features={p.columns}, out_features={p.rows}, sparsity={zeros:.3f}, {how}"


def plain(x: Tensor) -> bool:
    """Whether a kernel can read an input where it is; cheaper than finding out what is wrong with it."""
    if x.dtype is not torch.float32 or not x.is_cpu or not x.is_contiguous() or x.is_neg():
        return False
    return not x.requires_grad or not torch.is_grad_enabled()


def vector_kernels_at(level: Level | None = None) -> VectorKernels:
    """Compiled code at an instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: kernels cannot be compiled here.
    """
    if reason := unavailable():
        raise PlanError(f"sparse kernels: {reason}, expected a processor that LLVM can compile for at run time")
    return _kernels(wanted_level() if level is None else level)


def has_bitmaps() -> bool:
    """Whether the instruction set in use expands by bitmap."""
    return vector_kernels_at().by_bitmap is not None


@cache
def _kernels(level: Level) -> VectorKernels:
    return load(VectorKernels, host(level), cache_directory())


def _by_lane(per_row: Array, order: Array, lanes: int) -> Array:
    """Numbers of rows at the first lane of each."""
    slices, tall = order.shape
    made = np.zeros((slices, tall, lanes // tall), np.float32)
    if per_row.size:
        made[:, :, 0] = per_row[order]
    return made


def _packed(values: StoredValues, place: Array, size: int) -> Array:
    """Codes at their places, two of them per byte where they have four bits."""
    made = _aligned(np.zeros(size + size % 2, values.codes.dtype))
    made[place] = values.codes
    if values.kind is Storage.CODEBOOK4:
        made = _aligned(made[0::2] | made[1::2] << np.uint8(4))
    return made


def _aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    made: Array = memory[start : start + array.nbytes].view(array.dtype)
    made[:] = array
    return made


def _bounds(work: Array) -> Array:
    """Where slices are cut into pieces of about equal work."""
    total = np.concatenate([[0], np.cumsum(work + 1)])
    bounds = np.searchsorted(total, total[-1] * np.arange(PIECES + 1) / PIECES, side="left").astype(np.int64)
    bounds[0], bounds[-1] = 0, len(work)
    return np.ascontiguousarray(bounds)
