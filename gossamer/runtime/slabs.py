"""Memory for outputs that is used again as soon as nobody holds the outputs any more.

Large tensors are new pages at every call, which the kernel clears one by one: writing 51 MB takes 18 ms more than it
does the second time. Slabs are kept, in huge pages where Linux has them.
"""

from __future__ import annotations

import mmap
import weakref
from math import prod
from threading import Lock
from typing import final

import numpy as np
import torch
from torch import Tensor

__all__ = ["Slabs", "empty", "huge_pages"]

_HUGE = 1 << 21
_FROM = 1 << 17  # bytes; smaller tensors come from the allocator, which has such pages at hand
_KEPT = 1 << 28  # bytes of free slabs at most


@final
class Slabs:
    """Slabs of one network. May be used by several threads; copies of the network share it.

    Example:
        >>> slabs = Slabs()
        >>> first = slabs.empty(1, 64, 56, 56)
        >>> address = first.data_ptr()
        >>> del first
        >>> slabs.empty(1, 64, 50, 50).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[mmap.mmap] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Slabs:
        return self

    def __reduce__(self) -> tuple[type[Slabs], tuple[()]]:
        return Slabs, ()

    def empty(self, *shape: int) -> Tensor:
        """A contiguous float32 tensor of undefined content, aligned to a page; its memory comes back when it is gone.

        Args:
            shape: sizes.
        """
        count = prod(shape)
        if 4 * count < _FROM:
            return torch.empty(shape)
        slab = self._take(4 * count)
        numbers = np.frombuffer(slab, np.float32, count, _start(slab))
        weakref.finalize(numbers, self._give, slab).atexit = False
        return torch.from_numpy(numbers).view(shape)  # holds the array

    def _take(self, size: int) -> mmap.mmap:
        needed = _needed(size)
        with self._lock:
            fitting = [i for i, slab in enumerate(self._free) if needed <= len(slab) <= 2 * needed]
            if fitting:  # of those of a size the last one given back, which may still be in a cache
                return self._free.pop(min(reversed(fitting), key=lambda i: len(self._free[i])))
        return _mapped(needed)

    def _give(self, slab: mmap.mmap) -> None:
        with self._lock:
            self._free.append(slab)
            while sum(map(len, self._free)) > _KEPT:
                self._free.pop(0)


def huge_pages(size: int) -> tuple[object, int, int]:
    """Memory that begins with a huge page: what keeps it, its address and how many bytes of it may be used.

    Args:
        size: bytes at least.
    """
    slab = _mapped(_needed(size))
    start = _start(slab)
    usable = np.frombuffer(slab, np.uint8, len(slab) - _HUGE, start)
    return usable, usable.ctypes.data, len(usable)


def _needed(size: int) -> int:
    return -(-size // _HUGE) * _HUGE + _HUGE  # room to begin at a whole huge page


def _mapped(size: int) -> mmap.mmap:
    slab = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        slab.madvise(mmap.MADV_HUGEPAGE)
    return slab


def _start(slab: mmap.mmap) -> int:
    address: int = np.frombuffer(slab, np.uint8).ctypes.data
    return -address % _HUGE


def empty(memory: Slabs | None, *shape: int) -> Tensor:
    """A float32 tensor of undefined content from slabs, or from PyTorch's allocator without any."""
    return torch.empty(shape) if memory is None else memory.empty(*shape)
