"""One number that makes a network as sure as it should be: the temperature of its softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.measure.label_code import Slope, label_bits, slope, total
from gossamer.measure.logits import LabelledLogits
from gossamer.measure.modes import Network

__all__ = ["TEMPERATURE_BITS", "Temperature", "calibrated", "temperature_of"]

TEMPERATURE_BITS = 32
"""What a temperature costs: it is a float32."""

_HIGHEST = 1024.0
_PASSES = 100
_CLOSE = 1e-9


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Args:
        value: T, a float32; logits are divided by it.
        labels: how many it was fitted on.
        label_bits: what these take at T = 1.
        label_bits_calibrated: what they take at T.
        note: empty, or why this is not the least that there is.
    """

    value: float
    labels: int
    label_bits: float
    label_bits_calibrated: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "temperature": self.value,
            "labels": self.labels,
            "label_bits": self.label_bits,
            "label_bits_calibrated": self.label_bits_calibrated,
            "note": self.note,
        }


def calibrated(
    model: Network, inputs: Tensor, targets: Tensor, *, batch: int = 500, classes: int | None = None
) -> Temperature:
    """The temperature T at which labels take the fewest bits, min over T of Σ −log₂ softmax(z / T)_y.

    The sum is convex in 1 / T; the zero of its derivative is found by Newton's method kept within a bracket, and T is
    rounded to float32. Answers stay the same. Fit it on samples on which neither training nor the judgement looks.

    Args:
        model: inputs → logits [n, classes] or [n, positions, classes]; run in eval mode, then put back.
        inputs: [n, …].
        targets: int64 [n] or [n, positions].
        batch: samples at a time.
        classes: how many there must be, or None.

    Returns:
        T between 1/1024 and 1024. Where every label is the network's first choice, the sum falls for ever as T → 0 and
        the samples do not say how sure to be: T is 1, with a note.

    Raises:
        DataError: an empty set, targets that are no classes, logits that are not finite.

    Cost: one run of the network and about ten passes over its logits; beyond 2²⁶ logits, as many runs.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> found = calibrated(lambda x: x, logits, torch.tensor([0, 0, 0, 1]))  # three quarters: e^(4/T) = 3
        >>> round(found.value, 4)
        3.641

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599, section 4.2.
    """
    return temperature_of(LabelledLogits(model, inputs, targets, name="calibration set", batch=batch, classes=classes))


def temperature_of(pairs: LabelledLogits) -> Temperature:
    """As `calibrated`, of logits at hand."""
    value, note = _fitted(pairs)
    before, after = (total(torch.cat([label_bits(z, y, t) for z, y in pairs])) for t in (1.0, value))
    return Temperature(value, pairs.labels, before, after, note)


def _fitted(pairs: LabelledLogits) -> tuple[float, str]:
    low, high, inverse = 1 / _HIGHEST, _HIGHEST, 1.0
    for _ in range(_PASSES):
        at = slope(pairs, inverse)
        if at.missed == 0:
            return 1.0, "every label is the network's first choice: no temperature is best, 1 is kept"
        low, high = (low, inverse) if at.first > 0 else (inverse, high)
        step = _newton(at, inverse)
        if abs(step - inverse) <= _CLOSE * inverse:
            inverse = step
            break
        if step >= high == _HIGHEST and slope(pairs, _HIGHEST).first <= 0:
            return 1 / _HIGHEST, f"the best temperature is below 1/{_HIGHEST:.0f}"
        if step <= low == 1 / _HIGHEST and slope(pairs, low).first >= 0:
            return _HIGHEST, f"no temperature below {_HIGHEST:.0f} is best: hardly better than chance"
        inverse = step if low < step < high else math.sqrt(low * high)
    return float(torch.tensor(1 / inverse, dtype=torch.float32)), ""


def _newton(at: Slope, inverse: float) -> float:
    if at.first == 0:
        return inverse
    if at.second > 0:
        return inverse - at.first / at.second
    return math.inf if at.first < 0 else -math.inf
