"""Names of dtypes in safetensors files, and tensors as bytes."""

from __future__ import annotations

import types
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DataError, FormatError

__all__ = ["BITS", "DTYPES", "EVERY_DTYPE", "dtype_name", "from_bytes", "named_dtype", "to_bytes"]

DTYPES: Mapping[str, torch.dtype] = types.MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
_NAMES: Mapping[torch.dtype, str] = types.MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

EVERY_DTYPE: Mapping[str, torch.dtype] = types.MappingProxyType(
    {
        **DTYPES,
        "C64": torch.complex64,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F4": torch.float4_e2m1fn_x2,
    }
)
"""What dense files of others may hold and PyTorch can; the container's own arrays keep to `DTYPES`."""

BITS: Mapping[str, int] = types.MappingProxyType(
    {
        **{name: 8 * dtype.itemsize for name, dtype in EVERY_DTYPE.items()},
        "F4": 4,  # PyTorch's item of this dtype is a pair
        "F6_E2M3": 6,
        "F6_E3M2": 6,
    }
)
"""Bits of an item, of every dtype of safetensors 0.8."""


def dtype_name(dtype: torch.dtype) -> str:
    """Name in the file.

    Raises:
        DataError: a dtype that cannot be stored.
    """
    if dtype not in _NAMES:
        raise DataError(f"found a tensor of {dtype}, expected one of {', '.join(DTYPES)}")
    return _NAMES[dtype]


def named_dtype(name: object) -> torch.dtype:
    """Dtype of a name.

    Raises:
        FormatError: an unknown name.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise FormatError(f"found dtype {str(name)[:20]!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def to_bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The tensor's little-endian bytes in row-major order, uint8 [n · itemsize]; a view where possible."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return np.zeros(0, np.uint8)
    return flat.view(torch.uint8).numpy()


def from_bytes(raw: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `to_bytes`; a copy."""
    if raw.size == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(raw.copy()).view(dtype).view(shape)
