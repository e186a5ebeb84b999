"""NaN and infinities among the inputs, which are nobody's fault but the data's."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import DataError

__all__ = ["check_finite"]


def check_finite(inputs: Tensor, where: str) -> None:
    """Refuse inputs that are not finite.

    Args:
        inputs: any shape and dtype.
        where: beginning of the message.

    Raises:
        DataError: says how many there are, and where the first one is.

    Example:
        >>> check_finite(torch.zeros(3, 2), "inputs")
        >>> try:
        ...     check_finite(torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]]), "inputs")
        ... except DataError as error:
        ...     print(error)
        inputs: found 2 of 4 values that are not finite, the first at [1, 0], expected none
    """
    finite = inputs.isfinite()
    wrong = inputs.numel() - int(finite.sum())
    if wrong:
        first = torch.unravel_index((~finite).flatten().to(torch.uint8).argmax(), inputs.shape)
        at = [int(i) for i in first]
        raise DataError(
            f"{where}: found {wrong} of {inputs.numel()} values that are not finite, the first at {at}, expected none"
        )
