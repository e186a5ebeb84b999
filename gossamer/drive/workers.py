"""A few threads over many tensors, with results in order and a bound on what is in memory at once."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar, final

import torch

__all__ = ["Workers"]

T = TypeVar("T")
_ARENA_MAX, _MMAP_THRESHOLD = -8, -3  # of glibc's malloc.h


def _one_heap() -> None:
    """Let all threads share one heap, and give large blocks back at once: a heap for each thread grew to three times as
    much over 240 tensors. Only where the C library is glibc; holds for the process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, 16 << 20)


@final
class Workers:
    """Threads that each compute on one core; PyTorch, NumPy's sums and reading let go of the interpreter's lock.

    Args:
        threads: how many.
        sizes: bytes of each item by name.
        budget: bytes of the items that may be worked on at once; an item larger than this is worked on alone.
    """

    def __init__(self, threads: int, sizes: Mapping[str, int], budget: int) -> None:
        self._threads, self._sizes, self._budget = threads, sizes, budget
        self._torch_threads = torch.get_num_threads()
        _one_heap()
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def map(self, work: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
        """``work(name)`` of each, in order; what has not been asked for waits, and counts as in memory."""
        waiting: deque[tuple[int, Future[T]]] = deque()
        held = 0
        for name in names:
            size = self._sizes[name]
            while waiting and (held + size > self._budget or len(waiting) >= 2 * self._threads):
                before, done = waiting.popleft()
                yield done.result()
                held -= before
            held += size
            waiting.append((size, self._pool.submit(work, name)))
        while waiting:
            yield waiting.popleft()[1].result()
