"""A network's logits on a labelled set, checked, with the network left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.finite import check_finite
from gossamer.measure.modes import Network, evaluating

__all__ = ["LabelledLogits", "check_count", "check_labels", "check_pair"]

_KEPT = 1 << 26
"""Logits that are kept for the next time: 256 MB in float32."""


@final
class LabelledLogits:
    """Pairs (logits, targets) of a set, in order, as often as asked for; the network runs once if they are few enough.

    Args:
        model: inputs → logits [n, classes] or [n, positions, classes].
        inputs: [n, …].
        targets: int64 [n] or [n, positions].
        name: of the set, for messages.
        batch: samples at a time.
        classes: how many there must be, or None: as many as the network has logits.

    Raises:
        DataError: nothing to measure on, or targets that are no class numbers. While iterating: logits that are not
            finite, do not fit the targets, or are of another number of classes.

    Example:
        >>> pairs = LabelledLogits(lambda x: x, torch.eye(3), torch.tensor([0, 1, 2]), name="test", batch=2)
        >>> [tuple(logits.shape) for logits, _ in pairs]
        [(2, 3), (1, 3)]
    """

    def __init__(
        self,
        model: Network,
        inputs: Tensor,
        targets: Tensor,
        *,
        name: str,
        batch: int = 500,
        classes: int | None = None,
    ) -> None:
        self._model, self._inputs = model, inputs
        self._targets = check_labels(inputs, targets, name=name, classes=classes)
        if batch < 1:
            raise DataError(f"{name}: found batches of {batch}, expected at least 1")
        self._name, self._batch, self._classes = name, batch, classes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    @property
    def labels(self) -> int:
        """How many there are."""
        return self._targets.numel()

    @property
    def classes(self) -> int:
        """How many there are; known once this was iterated over."""
        assert self._classes is not None
        return self._classes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [m, classes] as the network made them, and targets int64 [m], one batch after the other."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Tensor, Tensor]] = []
        elements = 0
        for start in range(0, len(self._inputs), self._batch):
            with evaluating(self._model), torch.no_grad():  # per batch: nothing is left changed between two of them
                logits = self._model(self._inputs[start : start + self._batch])
            pair = self._paired(logits, self._targets[start : start + self._batch])
            elements += pair[0].numel()
            if elements <= _KEPT:
                kept.append(pair)
            else:
                kept.clear()
            yield pair
        if elements <= _KEPT:
            self._kept = kept

    def _paired(self, logits: object, targets: Tensor) -> tuple[Tensor, Tensor]:
        name = self._name
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            found = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise DataError(f"{name}: found outputs of {found}, expected a tensor of floats")
        if logits.dim() != targets.dim() + 1 or logits.shape[:-1] != targets.shape:
            expected = ", ".join([*map(str, targets.shape), "classes"])
            raise DataError(f"{name}: found outputs of shape {list(logits.shape)}, expected [{expected}]")
        if self._classes is None:
            self._classes = logits.shape[-1]
        if logits.shape[-1] != self._classes or self._classes < 2:
            raise DataError(f"{name}: found logits of {logits.shape[-1]} classes, expected {max(2, self._classes)}")
        _check_largest(targets, name, self._classes)
        flat = logits.detach().cpu().reshape(-1, self._classes)
        wrong = int((~flat.isfinite()).sum())
        if wrong:
            check_finite(self._inputs, f"{name}: inputs")
            raise DataError(f"{name}: found {wrong} logits that are not finite, expected none")
        return flat, targets.reshape(-1).cpu()


def check_pair(data: object, *, name: str) -> tuple[Any, Any]:
    """Refuse what is no pair; `check_labels` looks at what is in it.

    Args:
        data: (inputs, targets).
        name: of the set, for messages.

    Raises:
        DataError: anything else, such as batches.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        length = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise DataError(f"{name}: found {type(data).__name__}{length}, expected two tensors (inputs, targets)")
    return data[0], data[1]


def check_count(classes: object, *, name: str) -> None:
    """Refuse what is no number of classes.

    Args:
        classes: how many there are.
        name: of the set, for messages.

    Raises:
        DataError: fewer than two, or names of classes.
    """
    if not isinstance(classes, Integral):
        raise DataError(f"{name}: classes: found {type(classes).__name__}, expected how many there are, as an integer")
    if int(classes) < 2:
        raise DataError(f"{name}: found {classes} classes, expected at least 2")


def check_labels(inputs: object, targets: object, *, name: str, classes: int | None) -> Tensor:
    """Refuse what is no labelled set.

    Args:
        inputs: [n, …].
        targets: whole numbers [n] or [n, positions].
        name: of the set, for messages.
        classes: how many there are, or None if that is not known yet.

    Returns:
        The targets as int64.

    Raises:
        DataError: says what was found.
    """
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        found = f"{type(inputs).__name__} and {type(targets).__name__}"
        raise DataError(f"{name}: found inputs and targets of {found}, expected two tensors")
    if inputs.dim() == 0 or targets.dim() not in (1, 2):
        raise DataError(
            f"{name}: found inputs of shape {list(inputs.shape)} and targets of shape {list(targets.shape)}, "
            "expected [n, …] and [n] or [n, positions]"
        )
    if len(inputs) != len(targets) or targets.numel() == 0:
        raise DataError(
            f"{name}: found {len(inputs)} inputs and {len(targets)} targets, expected as many of both, at least one"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise DataError(f"{name}: found targets of {targets.dtype}, expected int64 class numbers")
    least = int(targets.min())
    if least < 0:
        raise DataError(f"{name}: found target {least}, expected class numbers from 0 on")
    if classes is not None:
        check_count(classes, name=name)
        _check_largest(targets, name, classes)
    return targets.to(torch.int64)


def _check_largest(targets: Tensor, name: str, classes: int) -> None:
    largest = int(targets.max())
    if largest >= classes:
        raise DataError(f"{name}: found target {largest}, expected 0 to {classes - 1}")
