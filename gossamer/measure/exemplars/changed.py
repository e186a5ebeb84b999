"""One dense network beside one compressed: which answers changed, the worst first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.answers import IGNORED
from gossamer.measure.exemplars.running import batches, check_data, logits
from gossamer.measure.modes import evaluating

__all__ = ["Change", "Changed", "changed"]


@dataclass(frozen=True)
class Change:
    """An example (or a position of one) that the two networks answer differently.

    Args:
        index: of the example.
        position: in the sequence, or None for networks with one answer per example.
        true: the label.
        dense: what the dense network predicts.
        compressed: what the compressed one predicts.
        dense_p: the dense network's probability of the label.
        compressed_p: the compressed one's.
    """

    index: int
    position: int | None
    true: int
    dense: int
    compressed: int
    dense_p: float
    compressed_p: float

    def to_json(self) -> dict[str, Any]:
        """As the report shows it."""
        place = {"index": self.index} if self.position is None else {"index": self.index, "position": self.position}
        return {
            **place,
            "true": self.true,
            "dense": self.dense,
            "compressed": self.compressed,
            "dense_p": self.dense_p,
            "compressed_p": self.compressed_p,
        }


@dataclass(frozen=True)
class Changed:
    """What `changed` found.

    Args:
        rows: the examples whose answer changed, those first whose label lost most of its log probability.
        agreement: share of all answers that are the same.
        answers: how many were compared.
        changes: how many differ, listed or not.
    """

    rows: tuple[Change, ...]
    agreement: float
    answers: int
    changes: int

    def to_json(self) -> dict[str, Any]:
        """As the report shows it."""
        return {"rows": [row.to_json() for row in self.rows], "agreement": self.agreement}


def changed(
    dense_model: Callable[[Tensor], Tensor],
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    most: int = 20,
    batch: int = 500,
) -> Changed:
    """The examples on which a compressed network answers otherwise than the dense one.

    Rows are sorted by log p_dense(label) − log p_compressed(label), largest first: first what compression lost, last
    what it gained; equal ones in the order of the examples. One pair of networks says nothing about chance: retraining
    alone changes answers too, which is what the control of `pie` is for.

    Args:
        dense_model: inputs → logits [n, classes], or [n, positions, vocabulary].
        model: the compressed network, of the same outputs; ``lower()`` will do.
        inputs: [n, ...].
        targets: int64 [n], or [n, positions] with −100 where there is no label.
        most: rows to list.
        batch: examples at a time.

    Raises:
        DataError: outputs or targets that do not fit each other.

    Cost: a forward pass of both; one batch of both networks' outputs in memory. Exact.

    Example:
        >>> import torch
        >>> dense, small = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> dense.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> small.load_state_dict({"weight": torch.eye(2), "bias": torch.tensor([2.0, 0.0])})
        <All keys matched successfully>
        >>> found = changed(dense, small, torch.eye(2), torch.tensor([0, 1]))
        >>> found.agreement, [(row.index, row.dense, row.compressed) for row in found.rows]
        (0.5, [(1, 1, 0)])

    Source: of single pairs, as an aid to reading; populations are those of Hooker et al. 2019, arXiv 1911.05248.
    """
    check_data("changed", inputs, targets, batch)
    if most < 0:
        raise DataError(f"changed: most: found {most}, expected a number from 0 on")
    answers = same = 0
    found: list[tuple[float, Change]] = []
    with evaluating(dense_model, model):
        for part in batches(len(inputs), batch):
            dense = logits("changed: dense", dense_model, inputs, part)
            small = logits("changed: compressed", model, inputs, part).to(dense.device)
            labels = targets[part].to(dense.device)
            _check(dense, small, labels)
            agreed = (dense.argmax(-1) == small.argmax(-1))[labels != IGNORED]
            answers += agreed.numel()
            same += int(agreed.sum())
            found += _differing(part.start, dense, small, labels)
    if answers == 0:
        raise DataError(f"changed: found no label among {targets.numel()} targets, expected at least one")
    found.sort(key=lambda pair: -pair[0])
    rows = tuple(row for _, row in found[:most])
    return Changed(rows=rows, agreement=same / answers, answers=answers, changes=answers - same)


def _check(dense: Tensor, small: Tensor, labels: Tensor) -> None:
    if dense.shape != small.shape:
        raise DataError(
            f"changed: found outputs {tuple(dense.shape)} of the dense network and {tuple(small.shape)} of the "
            "compressed one, expected the same shape"
        )
    if labels.shape != dense.shape[:-1]:
        raise DataError(
            f"changed: targets: found {tuple(labels.shape)}, expected {tuple(dense.shape[:-1])} for a batch"
        )
    given = labels[labels != IGNORED]
    if given.numel() and (int(given.min()) < 0 or int(given.max()) >= dense.shape[-1]):
        raise DataError(
            f"changed: targets: found {int(given.min())} to {int(given.max())}, expected 0 to {dense.shape[-1] - 1}"
        )


def _differing(first: int, dense: Tensor, small: Tensor, labels: Tensor) -> list[tuple[float, Change]]:
    """The changed answers of a batch, each with what its label lost."""
    said, says = dense.argmax(-1), small.argmax(-1)
    before, after = _log_p(dense, labels), _log_p(small, labels)
    found = []
    for place in ((labels != IGNORED) & (said != says)).nonzero().tolist():
        at = tuple(place)
        row = Change(
            index=first + place[0],
            position=place[1] if len(place) == 2 else None,
            true=int(labels[at]),
            dense=int(said[at]),
            compressed=int(says[at]),
            dense_p=math.exp(float(before[at])),
            compressed_p=math.exp(float(after[at])),
        )
        found.append((float(before[at] - after[at]), row))
    return found


def _log_p(scores: Tensor, labels: Tensor) -> Tensor:
    """Log probability of the labels; at positions without one, that of class 0, which nobody reads."""
    logs = scores.float().log_softmax(-1)
    return logs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).double()
