"""Evidence that is gathered when it is asked for and forgotten when other is: for one step, or step after step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import final

from gossamer.drive.walk import Walk
from gossamer.encoding.spec import TensorSpec
from gossamer.methods.base import Evidence

__all__ = ["StepEvidence", "WalkEvidence", "portions", "short_of_rows"]


def portions(specs: Sequence[TensorSpec], needs: frozenset[str], limit: int) -> tuple[frozenset[str], ...]:
    """Tensors whose statistics are gathered in the same pass, in order.

    Args:
        specs: tensors.
        needs: statistics of their inputs.
        limit: bytes that those of one portion take; a single tensor may take more.
    """
    found: list[list[str]] = []
    room = 0
    for spec in specs:
        shape = [spec.shape[i] for i in spec.output_first] if spec.output_first else spec.shape
        columns = prod(shape[1:])
        size = 4 * spec.groups * columns * (columns if "gram" in needs else 1)
        if not found or size > room:
            found.append([])
            room = limit
        found[-1].append(spec.name)
        room -= size
    return tuple(frozenset(names) for names in found)


@final
class StepEvidence(Mapping[str, Evidence]):
    """Of the tensors of one step, whose weights must not change meanwhile.

    Args:
        walk: at that step.
        step: its number.
        parts: of its tensors, what is gathered at a time.
        needs: statistics of inputs.
        fixed: what is known of tensors anyway.
    """

    def __init__(
        self,
        walk: Walk,
        step: int,
        parts: Sequence[frozenset[str]],
        needs: frozenset[str],
        fixed: Mapping[str, Evidence],
        *,
        record: bool = False,
    ) -> None:
        self._walk, self._step, self._parts, self._needs, self._fixed = walk, step, parts, needs, fixed
        self._part: frozenset[str] | None = None
        self._found: Mapping[str, Evidence] = {}
        self._record = record
        self.found_counts: dict[str, tuple[int, int]] = {}  # rows and inputs of the Gram matrices so far

    def __getitem__(self, name: str) -> Evidence:
        part = next((p for p in self._parts if name in p), None) if self._needs else None
        if part is None:
            return self._fixed[name]
        if part is not self._part:
            self._found, self._part = {}, part  # freed before the next is gathered
            self._found = self._walk.go(self._step, part, self._needs, record=self._record)
            self._record = False
            for seen, statistics in self._found.items():
                if "gram" in statistics and "count" in statistics:
                    rows = int(statistics["count"].item())
                    self.found_counts[seen] = (rows, statistics["gram"].shape[-1])
        return {**self._fixed.get(name, {}), **self._found.get(name, {})}

    def recorded(self) -> None:
        """Record the step's outputs if no pass has done so yet."""
        if self._record and self._walk.chained:
            self._walk.go(self._step, frozenset(), frozenset(), record=True)
            self._record = False

    def __contains__(self, name: object) -> bool:
        return name in self._fixed or any(name in part for part in self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._fixed, *(n for part in self._parts for n in part)]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@final
class WalkEvidence(Mapping[str, Evidence]):
    """Of all tensors of a network that does not change; asked for in the order of the steps it takes one walk.

    Args:
        walk: from the start.
        parts: per step.
        needs: statistics of inputs.
        fixed: what is known of tensors anyway.
    """

    def __init__(
        self,
        walk: Walk,
        parts: Mapping[int, Sequence[frozenset[str]]],
        needs: frozenset[str],
        fixed: Mapping[str, Evidence],
    ) -> None:
        self._walk, self._parts, self._needs, self._fixed = walk, parts, needs, fixed
        self._place = {n: step for step, some in parts.items() for part in some for n in part}
        self._at = -1
        self._here: StepEvidence | None = None

    def __getitem__(self, name: str) -> Evidence:
        step = self._place.get(name)
        if step is None:
            return self._fixed[name]
        if step < self._at or self._here is None:
            self._walk.restart()
            self._at, self._here = 0, self._of(0)
        while self._at < step:
            self._here.recorded()
            self._walk.forget(self._at)
            self._at += 1
            self._here = self._of(self._at)
        return self._here[name]

    def _of(self, step: int) -> StepEvidence:
        return StepEvidence(self._walk, step, self._parts.get(step, ()), self._needs, self._fixed, record=True)

    def __contains__(self, name: object) -> bool:
        return name in self._fixed or name in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._fixed, *self._place]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def short_of_rows(counts: Mapping[str, tuple[int, int]], *, warn: bool) -> dict[str, tuple[int, int]]:
    """Layers that saw fewer rows than they have inputs.

    Args:
        counts: tensor → rows, inputs.
        warn: say so of the first.
    """
    short = {name: found for name, found in counts.items() if found[0] < found[1]}
    if short and warn:
        name, (rows, inputs) = next(iter(short.items()))
        warnings.warn(
            f"{name}: found {rows} rows for the Gram matrix of {inputs} inputs, expected at least as many: methods "
            f"regularise it, but about {inputs / max(rows, 1):.1f} times as many samples would determine it",
            stacklevel=2,
        )
    return short
