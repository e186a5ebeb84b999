"""What multiply-adds from registers alone reach: the peak that kernels are compared with."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gossamer.jit import emit
from gossamer.jit.cpu import host, wanted_level
from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.jit.kernel_cache import Code, Engine, cache_directory, object_code_of

__all__ = ["Peak", "peak"]

_CHAINS = 12  # sums side by side: more than latency times units on any processor known


def _fma_loop(lanes: int) -> str:
    module = ir.Module("peak")
    made = function(module, "peak", [PTR, I64], exported=True)
    numbers, count = made.args
    e = Emitter(made, lanes)
    factor = e.spread(e.read(numbers, 0, F32))
    sums = [e.load(numbers, i * lanes) for i in range(_CHAINS)]

    def step(_: Any, carried: list[Any]) -> list[Any]:
        return [e.fma(s, factor, factor) for s in carried]

    for i, s in enumerate(e.loop(0, count, step, sums)):
        e.store(s, numbers, i * lanes)
    e.at.ret_void()
    return str(module)


class Peak:
    """Times a loop of multiply-adds that touches no memory."""

    def __init__(self) -> None:
        processor = host(wanted_level())
        code = Code("peak", _fma_loop, (sys.modules[__name__], emit))
        self._engine = Engine(object_code_of(code, processor, cache_directory()), processor)
        self._run = self._engine.function("peak", 2)
        self._lanes = processor.lanes
        self._numbers = np.full(_CHAINS * self._lanes, 0.5, np.float32)

    def gflops(self, steps: int = 100_000) -> float:
        """Of one run of ``steps`` times twelve vectors, tenths of a millisecond: shorter ones are unsteady."""
        self._numbers[:] = 0.5
        start = time.perf_counter()
        self._run(self._numbers.ctypes.data, steps)
        return 2e-9 * _CHAINS * self._lanes * steps / (time.perf_counter() - start)


@cache
def peak() -> Peak:
    """The loop, compiled once."""
    return Peak()
