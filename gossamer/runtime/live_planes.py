"""Activations of convolutions that train: blocks of images with one image per lane of a vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.jit.cpu import Level, host, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.description import described
from gossamer.runtime.kernels import LiveConvolutionKernels, load
from gossamer.runtime.live_planes_code import PlanesField
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import OpenMP, openmp

__all__ = ["Blocks", "PlanesMath", "interleaved", "planes_math"]

_WORTH_COPYING_TOGETHER = 1 << 16
"""Floats from which on a change of layout is worth a team."""

Array = npt.NDArray[Any]


@final
@dataclass(frozen=True, eq=False)
class Blocks:
    """Planes of several images, [blocks, rows, channels, columns, lanes] within a frame of zeros.

    Args:
        data: float32, one dimension, aligned; lanes beyond the last image are zero, or of no meaning in results.
        images: how many.
        channels: of each.
        size: rows and columns of each.
        frame: rows of zeros before each block and columns before each line; they also end what is before.
        lanes: images per block.
    """

    data: Tensor
    images: int
    channels: int
    size: tuple[int, int]
    frame: tuple[int, int]
    lanes: int

    @staticmethod
    def empty(
        memory: Slabs, images: int, channels: int, size: tuple[int, int], frame: tuple[int, int], lanes: int
    ) -> Blocks:
        """Blocks of undefined content."""
        blocks, line = -(-images // lanes), (size[1] + frame[1]) * lanes
        rows = blocks * (size[0] + frame[0]) + frame[0]
        data = memory.empty(rows * channels * line + frame[1] * lanes)
        return Blocks(data, images, channels, size, frame, lanes)

    @property
    def blocks(self) -> int:
        """How many."""
        return -(-self.images // self.lanes)

    @property
    def line(self) -> int:
        """Floats from channel to channel."""
        return (self.size[1] + self.frame[1]) * self.lanes

    @property
    def row(self) -> int:
        """Floats from image row to image row."""
        return self.channels * self.line

    @property
    def block(self) -> int:
        """Floats from block to block."""
        return (self.size[0] + self.frame[0]) * self.row

    @property
    def first(self) -> int:
        """Floats before the first number that is not of the frame."""
        return self.frame[0] * self.row + self.frame[1] * self.lanes

    @property
    def address(self) -> int:
        """Of the first number that is not of the frame."""
        return self.data.data_ptr() + 4 * self.first

    def planes(self) -> Tensor:
        """[N, C, rows, columns] in the same memory."""
        shape = (self.blocks, *self.size, self.channels, self.lanes)
        strides = (self.block, self.row, self.lanes, self.line, 1)
        inside = self.data.as_strided(shape, strides, self.first)
        return inside.permute(0, 4, 3, 1, 2).reshape(-1, self.channels, *self.size)[: self.images]


@final
class PlanesMath(CompiledProduct):
    """The kernels at one instruction set, and changes of layout.

    Args:
        kernels: compiled code.
        pool: where threads come from.
        memory: for activations.
    """

    def __init__(self, kernels: LiveConvolutionKernels, pool: OpenMP, memory: Slabs) -> None:
        self.kernels, self.openmp, self.memory = kernels, pool, memory
        self.lanes = kernels.processor.lanes

    def pack(self, x: Tensor, frame: tuple[int, int]) -> Blocks:
        """float32 [N, C, rows, columns], contiguous or channels last → blocks within a frame of zeros.

        Others are copied first, unless only images or planes lie apart.
        """
        images, channels, high, wide = x.shape
        last = interleaved(x)
        if not last and (x.stride(3) != 1 or x.stride(2) != wide):
            x = x.contiguous()
        made = Blocks.empty(self.memory, images, channels, (high, wide), frame, self.lanes)
        whole = made.data[: made.blocks * made.block].view(made.blocks, -1)
        whole[:, : frame[0] * made.row].zero_()
        made.data[made.blocks * made.block :].zero_()
        kernels = self.kernels
        self._run(kernels.pack_last if last else kernels.pack, x, made, channels if last else x.stride(1))
        return made

    def unpack(self, x: Blocks, *, last: bool = False) -> Tensor:
        """Blocks → float32 [N, C, rows, columns].

        Args:
            x: what is read.
            last: whether the result's memory has channels last; it is contiguous else.
        """
        if last:
            made = self.memory.empty(x.images, *x.size, x.channels).permute(0, 3, 1, 2)
            self._run(self.kernels.unpack_last, made, x, x.channels)
            return made
        made = self.memory.empty(x.images, x.channels, *x.size)
        self._run(self.kernels.unpack, made, x, made.stride(1))
        return made

    def _run(self, kernel: Any, planes: Tensor, blocks: Blocks, step: int) -> None:
        description, _table = _description(blocks, self.openmp)
        threads = 1 if planes.numel() < _WORTH_COPYING_TOGETHER else self.openmp.threads()
        place = description.ctypes.data
        kernel(place, planes.data_ptr(), planes.stride(0), step, blocks.address, blocks.images, threads)


def interleaved(x: Tensor) -> bool:
    """Whether planes lie interleaved in memory and not one after the other."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _description(x: Blocks, pool: OpenMP) -> tuple[Array, Array]:
    rows, columns = (np.arange(n) for n in x.size)
    table = (4 * (rows[:, None] * x.row + columns * x.lanes)).ravel().astype(np.uint32)
    numbers = {
        PlanesField.CHANNELS: x.channels,
        PlanesField.POSITIONS: len(table),
        PlanesField.TABLE: table.ctypes.data,
        PlanesField.LINE: 4 * x.line,
        PlanesField.BLOCK: 4 * x.block,
        PlanesField.HEIGHT: x.size[0],
        PlanesField.ROW: 4 * x.row,
        PlanesField.FRAME: x.frame[1],
        PlanesField.WIDTH: x.size[1],
    }
    return described(PlanesField, numbers, pool), table


def planes_math(level: Level | None = None) -> PlanesMath:
    """The kernels at an instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: this processor lacks the instruction set.
    """
    return _planes_math(wanted_level() if level is None else level)


@cache
def _planes_math(level: Level) -> PlanesMath:
    return PlanesMath(load(LiveConvolutionKernels, host(level), cache_directory()), openmp(), Slabs())
