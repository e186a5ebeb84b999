"""Memory for outputs that is used again as soon as nobody holds the outputs any more.

Large tensors are new pages at every call, which the kernel clears one by one: writing 51 MB takes 18 ms more than it
does the second time. Slabs are kept, in huge pages where Linux has them.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress
from math import prod
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Slabs", "empty", "huge_pages"]

Array = npt.NDArray[Any]

_HUGE = 1 << 21
_FROM = 1 << 20  # bytes; smaller ones come from the allocator, or those that a user keeps would take 2 MB each
_KEPT = 1 << 28  # bytes of free slabs at most


@final
class _Slab:
    """Memory that begins with a huge page."""

    __slots__ = ("memory", "size", "start")

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, -(-size // _HUGE) * _HUGE + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.start: int = -np.frombuffer(self.memory, np.uint8).ctypes.data % _HUGE
        self.size = len(self.memory) - _HUGE


class _Lease(weakref.ref[Array]):
    """Watches the array that stands for a tensor's memory."""

    __slots__ = ("slab",)
    slab: _Slab


@final
class Slabs:
    """Slabs of one network. May be used by several threads; copies of the network share it.

    Example:
        >>> slabs = Slabs()
        >>> first = slabs.empty(4, 64, 56, 56)
        >>> address = first.data_ptr()
        >>> del first
        >>> slabs.empty(4, 64, 50, 50).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._free: deque[_Slab] = deque()  # needs no lock, which a forked process could find closed for ever
        self._lent: dict[int, _Lease] = {}  # by identity: a reference hashes what it refers to

    def __deepcopy__(self, memo: dict[int, object]) -> Slabs:
        return self

    def __reduce__(self) -> tuple[type[Slabs], tuple[()]]:
        return Slabs, ()

    def empty(self, *shape: int) -> Tensor:
        """A contiguous float32 tensor of undefined content, aligned to a page; its memory comes back when it is gone.

        Args:
            shape: sizes.
        """
        size = 4 * prod(shape)
        if size < _FROM:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        slab = self._take(size)
        numbers: Array = np.ndarray(shape, np.float32, slab.memory, slab.start)
        lease = _Lease(numbers, self._give)
        lease.slab = slab
        self._lent[id(lease)] = lease
        return torch.from_numpy(numbers)  # holds the array

    def _take(self, size: int) -> _Slab:
        found: list[_Slab] = []  # the last one given back first: it may still be in a cache
        with suppress(IndexError):
            while True:  # other threads that ask meanwhile find none, and make new ones
                found.append(self._free.pop())
        fitting = [slab for slab in found if size <= slab.size <= max(2 * size, _HUGE)]
        best = min(fitting, key=lambda slab: slab.size, default=None)
        kept, left = [], _KEPT
        for slab in found:
            left -= 0 if slab is best else slab.size
            if slab is not best and left >= 0:
                kept.append(slab)
        self._free.extendleft(kept)
        return _Slab(size) if best is None else best

    def _give(self, lease: weakref.ref[Array]) -> None:
        assert isinstance(lease, _Lease)
        del self._lent[id(lease)]
        self._free.append(lease.slab)


def huge_pages(size: int) -> tuple[object, int, int]:
    """Memory that begins with a huge page: what keeps it, its address and how many bytes of it may be used.

    Args:
        size: bytes at least.
    """
    slab = _Slab(size)
    usable = np.frombuffer(slab.memory, np.uint8, slab.size, slab.start)
    return usable, usable.ctypes.data, slab.size


def empty(memory: Slabs | None, *shape: int) -> Tensor:
    """A float32 tensor of undefined content from slabs, or from PyTorch's allocator without any."""
    return torch.empty(shape, dtype=torch.float32, device="cpu") if memory is None else memory.empty(*shape)
