"""Right answers and the mean loss of a network, of one label per sample or of one per position."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import DataError
from gossamer.measure.accuracy import Accuracy
from gossamer.measure.modes import evaluating

__all__ = ["IGNORED", "Answers", "answers"]

IGNORED = -100
"""Targets that do not count, as in `torch.nn.functional.cross_entropy`."""


@final
@dataclass(frozen=True)
class Answers:
    """What a network answered.

    Args:
        correct: answers that were right.
        count: answers in all.
        loss: mean of −ln p(target | input), nats.
        positions: whether inputs have an answer per position, as texts have.
    """

    correct: int
    count: int
    loss: float
    positions: bool

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return Accuracy(self.correct, self.count).value

    @property
    def standard_error(self) -> float:
        """√(p · (1 − p) / n); positions of a text are no independent samples, of these it is too small."""
        return Accuracy(self.correct, self.count).standard_error

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON; with a perplexity, exp(loss), where there are positions."""
        found: dict[str, Any] = {
            "value": self.value,
            "correct": self.correct,
            "count": self.count,
            "standard_error": self.standard_error,
            "loss": self.loss,
        }
        if self.positions:
            found["perplexity"] = math.exp(self.loss) if self.loss < 700 else math.inf
        return found


def answers(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, *, batch: int = 500) -> Answers:
    """Run a network over labelled samples.

    Args:
        model: inputs → logits [n, classes], or [n, positions, classes]; in eval mode meanwhile if it is a module.
        inputs: [n, …].
        targets: int64 [n] or [n, positions]; `IGNORED` ones do not count.
        batch: samples at a time.

    Raises:
        DataError: nothing to measure on, or outputs that do not fit.

    Cost: one pass.

    Example:
        >>> answers(lambda x: x, torch.eye(3) * 9, torch.tensor([0, 1, 1])).correct
        2
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise DataError(
            f"found {len(inputs)} inputs and {len(targets)} targets, expected as many of both, at least one"
        )
    correct = count = 0
    loss = 0.0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(inputs), batch):
            wanted = targets[start : start + batch]
            found = model(inputs[start : start + batch])
            _check(found, wanted)
            scores, labels = found.flatten(0, -2).float(), wanted.flatten()
            kept = labels != IGNORED
            correct += int((scores.argmax(1) == labels)[kept].sum())
            count += int(kept.sum())
            loss += float(F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum"))
    if count == 0:
        raise DataError(f"found {targets.numel()} targets that are all {IGNORED}, expected some that count")
    return Answers(correct, count, loss / count, targets.dim() > 1)


def _check(found: object, wanted: Tensor) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape[:-1]) != tuple(wanted.shape):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise DataError(f"found outputs {shape}, expected [{', '.join(map(str, wanted.shape))}, classes]")
    classes = found.shape[-1]
    least, most = int(torch.where(wanted == IGNORED, 0, wanted).min()), int(wanted.max())
    if most >= classes or least < 0:
        raise DataError(f"found target {least if least < 0 else most}, expected 0 to {classes - 1}")
