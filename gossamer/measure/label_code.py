"""How many bits labels take under a network, −log₂ softmax(logits / T) at the label: in float64, always the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.measure.elementary import LOG2E, log2_of, power_of_two, row_sums

__all__ = ["Slope", "Verdicts", "label_bits", "slope", "total", "verdicts"]

_ELEMENTS = 1 << 21
"""Logits that are worked on at a time."""


@dataclass(frozen=True)
class Verdicts:
    """What a network says of each sample.

    Args:
        answers: int64 [n], the class with the largest logit, the first of equal ones.
        confidences: float64 [n], the probability that it gives to it.
    """

    answers: Tensor
    confidences: Tensor


@dataclass(frozen=True)
class Slope:
    """The first two derivatives of Σ −ln p(label) by the inverse temperature.

    Args:
        first: Σ (mean logit under the softmax − logit of the label).
        second: Σ variance of the logits under the softmax.
        missed: Σ (largest logit − logit of the label): 0 where every label is a first choice.
    """

    first: float
    second: float
    missed: float


def label_bits(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Bits of each label, −log₂ softmax(z / T)_y = (max z − z_y) / (T ln 2) + log₂ Σ_j 2^((z_j − max z) / (T ln 2)).

    Exact to about 1e-15 of the largest exponent, and the same to the last bit on any machine and for any batch.

    Args:
        logits: [n, classes], finite, any floating dtype; worked on in float64.
        targets: int64 [n], class numbers.
        temperature: T, positive.

    Returns:
        float64 [n], at least 0.

    Cost: about 50 passes over the logits; memory for two million of them at a time.

    Example:
        >>> label_bits(torch.zeros(2, 8), torch.tensor([0, 7])).tolist()
        [3.0, 3.0]
    """
    scale = LOG2E / temperature
    found = []
    for below, chosen in _rows(logits, targets):
        sums = row_sums(power_of_two(below * scale))
        found.append(log2_of(sums).sub_(chosen * scale))
    return torch.cat(found)


def total(bits: Tensor) -> float:
    """The sum, rounded once: it does not depend on the order.

    Example:
        >>> total(torch.tensor([0.1] * 10, dtype=torch.float64))
        1.0
    """
    return math.fsum(bits.tolist())


def verdicts(logits: Tensor) -> Verdicts:
    """Answers and how sure the network is of them.

    Args:
        logits: [n, classes], finite.

    Example:
        >>> verdicts(torch.tensor([[0.0, 0.0]])).confidences.tolist()
        [0.5]
    """
    answers = logits.argmax(1)
    sums = [row_sums(power_of_two(below * LOG2E)) for below, _ in _rows(logits, answers)]
    return Verdicts(answers, 1 / torch.cat(sums))


def slope(pairs: Iterable[tuple[Tensor, Tensor]], inverse: float) -> Slope:
    """How Σ −ln softmax(β z)_y changes with β.

    Args:
        pairs: logits [n, classes], finite, and targets int64 [n].
        inverse: β = 1 / T, positive.

    Example:
        >>> slope([(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))], 1e-9)
        Slope(first=0.50000000025, second=0.25, missed=1.0)
    """
    first: list[float] = []
    second: list[float] = []
    missed: list[float] = []
    for logits, targets in pairs:
        for below, chosen in _rows(logits, targets):
            weights = power_of_two(below * (inverse * LOG2E))
            moment = row_sums(weights * below)
            square = row_sums(weights * below * below)
            sums = row_sums(weights)
            mean = moment / sums
            first += (mean - chosen).tolist()
            second += (square / sums - mean * mean).clamp(min=0).tolist()
            missed += (-chosen).tolist()
    return Slope(math.fsum(first), math.fsum(second), math.fsum(missed))


def _rows(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits less the largest of their row, and the same of the label, some rows at a time."""
    step = max(1, _ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), step):
        exact = logits[start : start + step].to(torch.float64)
        below = exact - exact.max(1, keepdim=True).values
        yield below, below.gather(1, targets[start : start + step, None])[:, 0]
