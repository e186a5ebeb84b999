"""Reads the weights of a CTranslate2 ``model.bin``; sizes are checked before anything is taken from the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import FormatError

__all__ = ["read_ct2"]

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


@final
class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def text(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise FormatError(f"{self.path}: found {len(self.data)} bytes, expected at least {self.at + count}")
        self.at += count
        return self.data[self.at - count : self.at]


def read_ct2(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        path: the file.

    Raises:
        FormatError: truncated, or of unknown types.
    """
    reader = _Reader(path)
    reader.number("I"), reader.text(), reader.number("I")  # version, model, revision
    found = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        if kind not in _DTYPES:
            raise FormatError(f"{path}: {name}: found type {kind}, expected one of {sorted(_DTYPES)}")
        values = np.frombuffer(reader.take(size), _DTYPES[kind])
        if values.size != int(np.prod(shape)):
            raise FormatError(f"{path}: {name}: found {values.size} values, expected shape {shape}")
        found[name] = torch.from_numpy(values.reshape(shape).copy())
    return found
