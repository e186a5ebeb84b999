"""Classification accuracy with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import DataError

__all__ = ["Accuracy", "accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers.

    Args:
        correct: number of right answers.
        count: number of samples.
    """

    correct: int
    count: int

    @property
    def value(self) -> float:
        """Share, 0 to 1."""
        return self.correct / self.count

    @property
    def standard_error(self) -> float:
        """√(p · (1 − p) / n): what another test set of this size would differ by."""
        return math.sqrt(self.value * (1 - self.value) / self.count)


def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, batch: int = 500) -> Accuracy:
    """Top-1 accuracy.

    Args:
        model: inputs → scores [n, classes].
        inputs: [n, ...].
        targets: int64 [n], class numbers.
        batch: samples at a time.

    Raises:
        DataError: nothing to measure on, or scores that do not fit.

    Example:
        >>> accuracy(lambda x: x, torch.eye(3), torch.tensor([0, 1, 1])).correct
        2
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(
            f"found {len(inputs)} inputs and {len(targets)} targets, expected as many of both, at least one"
        )
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(inputs), batch):
            scores = model(inputs[start : start + batch])
            if scores.dim() != 2:
                raise DataError(f"found outputs of shape {tuple(scores.shape)}, expected [samples, classes]")
            correct += int((scores.argmax(1) == targets[start : start + batch]).sum())
    return Accuracy(correct, len(inputs))
