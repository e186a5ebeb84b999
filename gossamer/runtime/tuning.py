"""Measured times of candidates, remembered on disk beside the kernels: the same layer is not measured twice.

What decides is the kind of layer, not its weights: shape, density, tokens, threads, processor, and the code that ran.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

import torch
from torch import nn

from gossamer.jit.cpu import host, wanted_level
from gossamer.jit.kernel_cache import cache_directory, read_private, source_key, write_private
from gossamer.runtime.kernels import ATTENTION, CONVOLUTIONS, GATES, ROWS, TILES, VECTORS

__all__ = ["Memory", "convolution_key", "layer_key"]


def layer_key(shape: tuple[int, int], density: float, tokens: int, dtype: torch.dtype) -> str:
    """What the times of a Linear layer depend on, as text; densities within 7% are one."""
    return f"linear {shape[0]}x{shape[1]} {_rounded(density)} tokens {tokens} {dtype}"


def convolution_key(layer: nn.Conv1d | nn.Conv2d, density: float, inputs: tuple[int, ...], dtype: torch.dtype) -> str:
    """What the times of a convolution depend on, as text."""
    steps = f"stride {layer.stride} padding {layer.padding} dilation {layer.dilation} groups {layer.groups}"
    return f"convolution {tuple(layer.weight.shape)} {steps} {_rounded(density)} inputs {inputs} {dtype}"


def _rounded(density: float) -> str:
    step = 0.0 if density <= 0 else round(math.log(density, 1.15))
    return f"density 1.15^{step}"


@final
class Memory:
    """Times by key.

    Args:
        directory: private, as for kernels; None forgets at the end of the process.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._seen: dict[str, dict[str, float]] = {}
        self._context = ""

    @classmethod
    def of_this_machine(cls) -> Memory:
        """In the user's own directory; without a compiler, nothing is remembered on disk."""
        return cls(cache_directory())

    def times(self, key: str, names: tuple[str, ...], measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Milliseconds by name.

        Args:
            key: what is measured.
            names: of all candidates; times of other sets of candidates do not count.
            measure: is called if nothing is known.
        """
        full = f"{key} {sorted(names)} threads {torch.get_num_threads()}"
        if full not in self._seen:
            stored = self._read(full, names)
            if stored is None:
                stored = dict(measure())
                self._write(full, stored)
            self._seen[full] = stored
        return self._seen[full]

    def _file(self, key: str) -> str:
        if not self._context:
            processor = host(wanted_level())
            codes = [source_key(processor, code) for code in (ROWS, TILES, CONVOLUTIONS, ATTENTION, GATES, VECTORS)]
            self._context = repr((codes, torch.__version__))
        return hashlib.sha256(f"{self._context} {key}".encode()).hexdigest() + ".json"

    def _read(self, key: str, names: tuple[str, ...]) -> dict[str, float] | None:
        if self._directory is None:
            return None
        try:
            content = read_private(self._directory, self._file(key))
            document = None if content is None else json.loads(content)
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or set(document) != set(names):
            return None
        if not all(isinstance(ms, float) and 0 < ms < 1e9 for ms in document.values()):
            return None
        return document

    def _write(self, key: str, times: Mapping[str, float]) -> None:
        if self._directory is None:
            return
        try:
            name = self._file(key)
        except OSError:  # the package runs from an archive
            return
        write_private(self._directory, name, json.dumps(dict(times)).encode())
