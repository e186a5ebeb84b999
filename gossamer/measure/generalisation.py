"""What accuracy alone does not say: what was learnt by heart, how sure the network is, which classes it gave up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.accuracy import Accuracy
from gossamer.measure.label_code import verdicts
from gossamer.measure.logits import LabelledLogits, check_pair
from gossamer.measure.modes import Network
from gossamer.measure.proportions import difference, holm, mcnemar, wilson

__all__ = ["ClassAccuracy", "Generalisation", "ReliabilityBin", "generalisation"]

_ALPHA = 0.05


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers given with about the same confidence.

    Args:
        low: confidences above this …
        high: … up to this.
        n: how many, at least one.
        confidence: their mean.
        accuracy: share of right ones.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of the test set.

    Args:
        number: of the class.
        n: samples of it.
        accuracy: share of right answers.
        low: of Wilson's 95% interval.
        high: of the same.
        dense_accuracy: of the dense network, or None.
        p: of McNemar's exact test against it, or None.
        p_adjusted: by Holm over all classes that are listed, or None.
        changed: whether that is below 0.05.
    """

    number: int
    n: int
    accuracy: float
    low: float
    high: float
    dense_accuracy: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    changed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {"class": self.number} | {name: value for name, value in vars(self).items() if name != "number"}


@final
@dataclass(frozen=True)
class Generalisation:
    """How a network does on what it was trained on, and on what it was not.

    Args:
        train: right answers on training data.
        test: on test data.
        dense_train: of the dense network, or None.
        dense_test: the same.
        calibration_error: on test data, 0 to 1.
        calibration_error_dense: of the dense network, or None.
        reliability: bins of test answers by confidence, empty ones left out.
        dense_reliability: of the dense network, or None.
        per_class: classes that occur in the test data.
        p: of McNemar's exact test against the dense network over all test data, or None.
    """

    train: Accuracy
    test: Accuracy
    dense_train: Accuracy | None
    dense_test: Accuracy | None
    calibration_error: float
    calibration_error_dense: float | None
    reliability: tuple[ReliabilityBin, ...]
    dense_reliability: tuple[ReliabilityBin, ...] | None
    per_class: tuple[ClassAccuracy, ...]
    p: float | None

    @property
    def gap(self) -> float:
        """Training accuracy less test accuracy."""
        return self.train.value - self.test.value

    @property
    def gap_interval(self) -> tuple[float, float]:
        """Newcombe's 95% interval of the gap."""
        return difference((self.train.correct, self.train.count), (self.test.correct, self.test.count))

    @property
    def dense_gap(self) -> float | None:
        """The same of the dense network, or None."""
        if self.dense_train is None or self.dense_test is None:
            return None
        return self.dense_train.value - self.dense_test.value

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        gap_low, gap_high = self.gap_interval
        test_low, test_high = wilson(self.test.correct, self.test.count)
        dense = self.dense_test
        return {
            "train_accuracy": self.train.value,
            "test_accuracy": self.test.value,
            "test_low": test_low,
            "test_high": test_high,
            "dense_test_accuracy": None if dense is None else dense.value,
            "p": self.p,
            "gap": self.gap,
            "gap_low": gap_low,
            "gap_high": gap_high,
            "dense_gap": self.dense_gap,
            "calibration_error": self.calibration_error,
            "calibration_error_dense": self.calibration_error_dense,
            "reliability": [dict(vars(b)) for b in self.reliability],
            "dense_reliability": None
            if self.dense_reliability is None
            else [dict(vars(b)) for b in self.dense_reliability],
            "per_class": [c.to_json() for c in self.per_class],
        }


def generalisation(
    model: Network,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    dense: Network | None = None,
    classes: int | None = None,
    bins: int = 15,
    batch: int = 500,
) -> Generalisation:
    """The gap between training and test, calibration, and each class with its interval and its test against dense.

    Calibration error: Σ over bins of (n_b / n) |accuracy_b − confidence_b|, bins of equal width by the largest
    probability. Per class: McNemar's exact test on the samples that one of the two networks gets wrong, Holm's
    correction over the classes: with ten of them one changes by chance in one of twenty networks, not in four of ten.

    Args:
        model: inputs → logits [n, classes] or [n, positions, classes]; run in eval mode, then put back.
        train: (inputs, targets) it was trained on.
        test: (inputs, targets) it was not.
        dense: the network to compare with.
        classes: how many there must be, or None.
        bins: of confidence.
        batch: samples at a time.

    Raises:
        DataError: an empty set, targets that are no classes, logits that are not finite or of different numbers of
            classes.

    Cost: each network runs once on each set. Intervals and tests hold for samples that are independent of each other,
    which positions of one text are not.

    Example:
        >>> data = (torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5))
        >>> lazy = generalisation(lambda x: 9 * x * torch.tensor([1, 1, 1, 0]), data, data, dense=lambda x: 9 * x)
        >>> lazy.gap, [(c.accuracy, c.p) for c in lazy.per_class]
        (0.0, [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0625)])

    Source: Guo et al. 2017, arXiv 1706.04599 (calibration error); for the rest see `gossamer.measure.proportions`.
    """
    if bins < 1:
        raise DataError(f"bins: found {bins}, expected at least 1")
    on_train = _Answers(model, train, "train", batch, classes)
    on_test = _Answers(model, test, "test", batch, on_train.classes)
    dense_train = dense_test = None
    if dense is not None:
        dense_train = _Answers(dense, train, "dense network, train", batch, on_train.classes)
        dense_test = _Answers(dense, test, "dense network, test", batch, on_train.classes)
    reliability = _reliability(on_test, bins)
    dense_reliability = None if dense_test is None else _reliability(dense_test, bins)
    return Generalisation(
        train=on_train.accuracy,
        test=on_test.accuracy,
        dense_train=None if dense_train is None else dense_train.accuracy,
        dense_test=None if dense_test is None else dense_test.accuracy,
        calibration_error=_error(reliability),
        calibration_error_dense=None if dense_reliability is None else _error(dense_reliability),
        reliability=reliability,
        dense_reliability=dense_reliability,
        per_class=_per_class(on_test, dense_test),
        p=None if dense_test is None else _changed(dense_test.right, on_test.right),
    )


class _Answers:
    """Which answers of a network on a set are right, and how sure it is of them."""

    def __init__(self, model: Network, data: tuple[Tensor, Tensor], name: str, batch: int, classes: int | None) -> None:
        pairs = LabelledLogits(model, *check_pair(data, name=name), name=name, batch=batch, classes=classes)
        targets, right, confidences = [], [], []
        for logits, labels in pairs:
            found = verdicts(logits)
            targets.append(labels)
            right.append(found.answers == labels)
            confidences.append(found.confidences)
        self.classes = pairs.classes
        self.targets, self.right, self.confidences = torch.cat(targets), torch.cat(right), torch.cat(confidences)

    @property
    def accuracy(self) -> Accuracy:
        """Right ones of all."""
        return Accuracy(int(self.right.sum()), len(self.right))


def _reliability(answers: _Answers, bins: int) -> tuple[ReliabilityBin, ...]:
    # Bins are (low, high]: a confidence of 1 belongs to the last.
    numbers = (answers.confidences * bins).ceil().clamp(1, bins).to(torch.int64) - 1
    found = []
    for b in sorted(set(numbers.tolist())):
        inside = numbers == b
        n = int(inside.sum())
        confidence = math.fsum(answers.confidences[inside].tolist()) / n
        found.append(ReliabilityBin(b / bins, (b + 1) / bins, n, confidence, int(answers.right[inside].sum()) / n))
    return tuple(found)


def _error(reliability: tuple[ReliabilityBin, ...]) -> float:
    n = sum(b.n for b in reliability)
    return math.fsum(b.n * abs(b.accuracy - b.confidence) for b in reliability) / n


def _changed(before: Tensor, after: Tensor) -> float:
    return mcnemar(int((before & ~after).sum()), int((after & ~before).sum()))


def _per_class(answers: _Answers, dense: _Answers | None) -> tuple[ClassAccuracy, ...]:
    rows: list[ClassAccuracy] = []
    tests: list[float] = []
    for number in sorted(set(answers.targets.tolist())):
        inside = answers.targets == number
        right, n = int(answers.right[inside].sum()), int(inside.sum())
        low, high = wilson(right, n)
        share = None if dense is None else int(dense.right[inside].sum()) / n
        rows.append(ClassAccuracy(number, n, right / n, low, high, share))
        if dense is not None:
            tests.append(_changed(dense.right[inside], answers.right[inside]))
    if dense is None:
        return tuple(rows)
    return tuple(
        replace(row, p=p, p_adjusted=adjusted, changed=adjusted < _ALPHA)
        for row, p, adjusted in zip(rows, tests, holm(tests), strict=True)
    )
