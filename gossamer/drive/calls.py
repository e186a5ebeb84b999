"""How a network is called with a batch: one convention for every driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gossamer.errors import DataError

__all__ = ["call", "inputs_of", "rejected"]


def inputs_of(batch: Any) -> Any:
    """What the network takes of a batch: the first of (inputs, targets), or a batch of inputs alone."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch


def call(network: nn.Module, inputs: Any) -> Any:
    """Run a network: a mapping gives keywords, a tuple or list positional arguments, anything else is the only one.

    Example:
        >>> import torch
        >>> call(nn.Bilinear(2, 3, 4), (torch.zeros(1, 2), torch.zeros(1, 3))).shape
        torch.Size([1, 4])
    """
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


def rejected(where: str, error: Exception) -> DataError:
    """What to say of a sample that the network does not take."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return DataError(f"{where}: the network rejects it: {reason}")
