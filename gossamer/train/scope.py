"""Which layers lose weights and which get them: each its own, or live weights move between layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.train.choose import highest
from gossamer.train.share import shared_out

__all__ = ["ByStrength", "BySurvivors", "Global", "PerLayer", "Scope", "Wanted"]


@final
@dataclass(frozen=True)
class Wanted:
    """What the schedule asks of every layer.

    Args:
        live: live weights of each layer before the update.
        target: after it.
        exchanged: how many each drops beside what it has too much, to grow as many.
    """

    live: tuple[int, ...]
    target: tuple[int, ...]
    exchanged: tuple[int, ...]

    @property
    def drop(self) -> tuple[int, ...]:
        """How many each layer drops if it is alone; one stays."""
        each = zip(self.live, self.target, self.exchanged, strict=True)
        return tuple(min(max(0, live - target) + exchanged, live - 1) for live, target, exchanged in each)

    @property
    def drop_together(self) -> int:
        """How many all drop together; one of each layer stays."""
        live, most = sum(self.live), sum(self.live) - len(self.live)
        return min(max(0, live - sum(self.target)) + sum(self.exchanged), most)


@final
@dataclass(frozen=True)
class Room:
    """What growth is divided by.

    Args:
        survivors: live weights per layer after the drop.
        free: weights per layer that do not live after the drop.
        strength: number of a layer → how much it deserves to grow.
        offers: number of a layer, how many → the scores of its best places.
        comparable: whether those of different layers may be compared.
    """

    survivors: tuple[int, ...]
    free: tuple[int, ...]
    strength: Callable[[int], float]
    offers: Callable[[int, int], Tensor]
    comparable: bool


@dataclass(frozen=True)
class Scope(ABC):
    """How updates are divided among layers. The total of live weights is exactly what the schedule asks for."""

    keeps_counts: ClassVar[bool] = False  # whether every layer keeps its number of live weights at constant density

    @abstractmethod
    def kept(self, scores: Sequence[Tensor], wanted: Wanted, state: MutableMapping[str, float]) -> list[Tensor]:
        """What stays of each layer, bool [live]; at least one weight of each.

        Args:
            scores: per layer, float32 [live].
            wanted: by the schedule.
            state: what the scope remembers between updates.
        """

    @abstractmethod
    def grown(self, total: int, wanted: Wanted, room: Room) -> list[int]:
        """How many grow in each layer, ``total`` together.

        Args:
            total: to grow, so that as many live as are wanted together.
            wanted: by the schedule.
            room: of the layers.
        """


def _lowest_go(scores: Sequence[Tensor], drop: Sequence[int]) -> list[Tensor]:
    return [highest(s, max(1, len(s) - n)) for s, n in zip(scores, drop, strict=True)]


@final
@dataclass(frozen=True)
class PerLayer(Scope):
    """Every layer keeps its own number of live weights."""

    keeps_counts: ClassVar[bool] = True

    def kept(self, scores: Sequence[Tensor], wanted: Wanted, state: MutableMapping[str, float]) -> list[Tensor]:
        """The highest of each."""
        del state
        return _lowest_go(scores, wanted.drop)

    def grown(self, total: int, wanted: Wanted, room: Room) -> list[int]:
        """What each is short of its target."""
        del total
        return [target - survivors for target, survivors in zip(wanted.target, room.survivors, strict=True)]


def _best_stays(scores: Sequence[Tensor]) -> list[Tensor]:
    """The best of each layer above everything, so that none is left empty."""
    return [s.index_fill(0, s.argmax(), torch.inf) for s in scores]


@final
@dataclass(frozen=True)
class Global(Scope):
    """One threshold for all layers, in dropping and, where scores of layers are comparable, in growing.

    Growth without such scores is in proportion to the dead weights of a layer.
    """

    def kept(self, scores: Sequence[Tensor], wanted: Wanted, state: MutableMapping[str, float]) -> list[Tensor]:
        """The highest of all."""
        del state
        sizes = [len(s) for s in scores]
        ranked = torch.cat(_best_stays(scores))
        return list(torch.split(highest(ranked, sum(sizes) - wanted.drop_together), sizes))

    def grown(self, total: int, wanted: Wanted, room: Room) -> list[int]:
        """The highest of all."""
        del wanted
        if not room.comparable:
            return shared_out(total, room.free, room.free)
        offers = [room.offers(i, min(total, free)) for i, free in enumerate(room.free)]
        chosen = highest(torch.cat(offers), total)
        return [int(part.sum()) for part in torch.split(chosen, [len(o) for o in offers])]


@final
@dataclass(frozen=True)
class BySurvivors(Scope):
    """Drop what is below one threshold for all layers, grow in proportion to what survived.

    The threshold is doubled when fewer than (1 − tolerance) of the wanted number were below it, halved when more than
    (1 + tolerance) were. However many were dropped, as many grow.

    Args:
        threshold: before the first update, above 0.
        tolerance: δ, 0 to 1.

    Source: Mostafa and Wang 2019 (DSR), arXiv 1902.05967, algorithm 1.
    """

    threshold: float = 1e-3
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.threshold <= 0 or not 0 <= self.tolerance < 1:
            raise PlanError(f"BySurvivors: found threshold {self.threshold}, tolerance {self.tolerance}, expected > 0")

    def kept(self, scores: Sequence[Tensor], wanted: Wanted, state: MutableMapping[str, float]) -> list[Tensor]:
        """What reaches the threshold."""
        threshold = state.setdefault("threshold", self.threshold)
        chosen = [s >= threshold for s in _best_stays(scores)]
        dropped = sum(int((~c).sum()) for c in chosen)
        if dropped < (1 - self.tolerance) * wanted.drop_together:
            state["threshold"] = threshold * 2
        elif dropped > (1 + self.tolerance) * wanted.drop_together:
            state["threshold"] = threshold / 2
        return chosen

    def grown(self, total: int, wanted: Wanted, room: Room) -> list[int]:
        """In proportion to the survivors."""
        del wanted
        return shared_out(total, room.survivors, room.free)


@final
@dataclass(frozen=True)
class ByStrength(Scope):
    """Every layer drops its own share; what was dropped grows in proportion to the layers' mean momentum.

    Source: Dettmers and Zettlemoyer 2019 (SNFS), arXiv 1907.04840, section 3.1.
    """

    def kept(self, scores: Sequence[Tensor], wanted: Wanted, state: MutableMapping[str, float]) -> list[Tensor]:
        """The highest of each."""
        del state
        return _lowest_go(scores, wanted.drop)

    def grown(self, total: int, wanted: Wanted, room: Room) -> list[int]:
        """In proportion to their strength."""
        del wanted
        return shared_out(total, [room.strength(i) for i in range(len(room.free))], room.free)
