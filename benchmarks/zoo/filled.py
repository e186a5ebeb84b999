"""A network with the weights of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from gossamer.errors import DataError

__all__ = ["filled"]


def filled(model: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str) -> nn.Module:
    """The model with these weights, in eval mode.

    Args:
        model: of the right architecture; changed.
        weights: all of its tensors.
        path: where they come from, for messages.
        name: of the network, for messages.

    Raises:
        DataError: names or shapes differ.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{path}: found other weights than {name}'s: {' '.join(str(error).split())[:200]}") from error
    return model.eval()
