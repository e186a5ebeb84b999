"""A network's weights from disk: safetensors, or a weights-only ``.pt``. Never a pickle that runs code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import DataError, FormatError
from gossamer.network.inspect import assign, specs, tensors
from gossamer.store.dtypes import from_bytes, named_dtype
from gossamer.store.safetensors_file import dense_file_bytes, open_layout

__all__ = ["dense_bytes_of", "load_weights_into", "read_weights"]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name.

    Args:
        path: ``.safetensors``, or ``.pt``/``.pth``/``.bin`` with nothing but tensors in it.

    Raises:
        DataError: no such file.
        FormatError: damaged, or a pickle with more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: found no such file, expected weights as .safetensors or weights-only .pt")
    if path.suffix in (".pt", ".pth", ".bin"):
        return _torch(path)
    layout, whole = open_layout(path)
    found = {}
    for name, array in layout.arrays.items():
        raw = np.frombuffer(whole[layout.data_start + array.start : layout.data_start + array.stop], np.uint8)
        found[name] = from_bytes(raw, named_dtype(array.dtype), array.shape)
    return found


def _torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # about the protocol of a pickle that is about to be refused
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead torch's reader into errors of any kind
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path}: found no weights-only file, expected a state_dict of tensors: {reason}") from error
    if not (isinstance(loaded, Mapping) and all(isinstance(v, Tensor) for v in loaded.values())):
        raise FormatError(f"{path}: found {type(loaded).__name__}, expected a state_dict of tensors only")
    return dict(loaded)


def load_weights_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Put a weights file into a network; names and shapes must agree.

    A tied tensor may be in the file once, under any of its names. The file's dtype becomes the network's.

    Raises:
        DataError: a tensor is missing, left over, or of another shape; names the file, the tensor, found and expected.
    """
    found = read_weights(path)
    wanted = specs(model)
    known = {n for s in wanted for n in s.names}
    extra = sorted(found.keys() - known)
    if extra:
        raise DataError(
            f"{path}: found tensor {extra[0]!r}, expected only those of the network, such as {wanted[0].name!r}"
        )
    mine = tensors(model)
    with torch.no_grad():
        for spec in wanted:
            name = next((n for n in spec.names if n in found), None)
            if name is None:
                raise DataError(f"{path}: found no tensor {spec.name!r}, expected shape {spec.shape}")
            if tuple(found[name].shape) != spec.shape:
                raise DataError(
                    f"{path}: tensor {name!r}: found shape {tuple(found[name].shape)}, expected {spec.shape}"
                )
            target = mine[spec.name]
            if target.dtype == found[name].dtype:
                target.copy_(found[name])
            else:
                assign(model, spec.names, found[name].clone())
    return model


def dense_bytes_of(network: nn.Module) -> int:
    """Size of a network's ordinary safetensors file; a tensor of several names counts once, as in such a file.

    Example:
        >>> dense_bytes_of(nn.Linear(100, 10)) > 4 * 1010
        True
    """
    held = network.state_dict()
    return dense_file_bytes({s.name: held[s.name] for s in specs(network) if s.name in held})
