"""PyTorch's own OpenMP runtime, so that kernels and PyTorch share one pool of threads."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import final

import torch

__all__ = ["WORTH_A_TEAM", "OpenMP", "openmp"]

WORTH_A_TEAM = 120_000
"""Multiply-adds of vectors, about 40 µs of one thread, from which on starting a team of threads saves time."""

_NAMES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")


@final
class OpenMP:
    """Addresses of the functions that start a parallel region, and how many threads it may have.

    The pool does not survive a fork: its threads are gone in the child, and a region would wait for them for ever.
    A forked process therefore computes on one thread.

    Args:
        addresses: of GOMP_parallel, omp_get_thread_num, omp_get_num_threads and GOMP_barrier; None without OpenMP.
    """

    __slots__ = ("_forked", "addresses")

    def __init__(self, addresses: tuple[int, int, int, int] | None) -> None:
        self.addresses = addresses
        self._forked = addresses is None
        if addresses is not None and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._forked = True

    def threads(self) -> int:
        """What ``torch.get_num_threads()`` says; 1 without OpenMP and in a forked process.

        Example:
            >>> OpenMP(None).threads()
            1
        """
        return 1 if self._forked else torch.get_num_threads()


@cache
def openmp() -> OpenMP:
    """The OpenMP runtime that PyTorch is linked with, found among the libraries that are already loaded."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            # Looking a name up in a loaded library also searches the libraries that it was linked with.
            loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            a, b, c, d = (ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in _NAMES)
        except (OSError, AttributeError):
            continue
        if a and b and c and d:
            return OpenMP((a, b, c, d))
    return OpenMP(None)
