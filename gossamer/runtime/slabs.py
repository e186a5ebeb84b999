"""Memory for outputs that is used again as soon as nobody holds the outputs any more.

Large tensors are new pages at every call, which the kernel clears one by one: writing 51 MB takes 18 ms more than it
does the second time. Slabs are kept, in huge pages where Linux has them.
"""

from __future__ import annotations

import mmap
import weakref
from math import prod
from threading import RLock
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Slabs", "empty", "huge_pages"]

Array = npt.NDArray[Any]

_HUGE = 1 << 21
_FROM = 1 << 17  # bytes; smaller tensors come from the allocator, which has such pages at hand
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
        >>> first = slabs.empty(1, 64, 56, 56)
        >>> address = first.data_ptr()
        >>> del first
        >>> slabs.empty(1, 64, 50, 50).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._lock = RLock()  # an array may be collected, and given back, while this thread holds the lock
        self._free: list[_Slab] = []
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
            return torch.empty(shape)
        slab = self._take(size)
        numbers: Array = np.ndarray(shape, np.float32, slab.memory, slab.start)
        lease = _Lease(numbers, self._give)
        lease.slab = slab
        self._lent[id(lease)] = lease
        return torch.from_numpy(numbers)  # holds the array

    def _take(self, size: int) -> _Slab:
        with self._lock:
            # Of those of a size the last one given back, which may still be in a cache.
            fitting = [s for s in reversed(self._free) if size <= s.size <= max(2 * size, _HUGE)]
            if fitting:
                slab = min(fitting, key=lambda s: s.size)
                self._free.remove(slab)
                return slab
        return _Slab(size)

    def _give(self, lease: weakref.ref[Array]) -> None:
        assert isinstance(lease, _Lease)
        with self._lock:
            del self._lent[id(lease)]
            self._free.append(lease.slab)
            while sum(s.size for s in self._free) > _KEPT:
                self._free.pop(0)


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
    return torch.empty(shape) if memory is None else memory.empty(*shape)
