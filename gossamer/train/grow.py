"""What to grow: scores of dead weights, of which the highest come to life, with the value zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.train.chance import chosen, dead, uniform_scores
from gossamer.train.choose import best_magnitudes, best_places, carried, places
from gossamer.train.health import finite
from gossamer.train.schedule import Schedule
from gossamer.train.tracked import Tracked

__all__ = ["Gradient", "GrowScore", "Momentum", "Random"]


@dataclass(frozen=True)
class GrowScore(ABC):
    """A number per weight that does not live after the drop."""

    comparable: ClassVar[bool] = True  # whether scores of different layers may be compared
    watches_gradients: ClassVar[bool] = True  # whether updates need gradients of dead weights

    @abstractmethod
    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """The best places for new weights.

        Args:
            layer: whose.
            kept: bool [live], what survived the drop; what did not may come back, with the value it had.
            most: how many at least, unless there are fewer.
            key: of random numbers.

        Returns:
            positions int64 [n], in any order, and scores float32 [n].
        """

    @abstractmethod
    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """Scores of all weights, dead or alive, float32 [size]: for structures, which compare within groups."""

    def watches(self, step: int, schedule: Schedule) -> bool:
        """Whether gradients of dead weights are needed of this step."""
        del step, schedule
        return False

    @property
    def watches_all(self) -> bool:
        """Whether those of all dead weights are needed, not of the largest alone."""
        return False

    def observe(self, layer: Tracked) -> None:
        """Take note of a watched step after which no update comes, or before it comes."""
        del layer

    def strength(self, layer: Tracked) -> float:
        """How much a layer deserves to grow, for `ByStrength`.

        Raises:
            PlanError: a score that does not say.
        """
        del layer
        raise PlanError(f"{type(self).__name__}: found as the measure of layers, expected Momentum")

    def forget(self, layer: Tracked) -> None:
        """An update is over."""
        del layer

    def momentum(self, layer: Tracked) -> Tensor | None:
        """What the optimiser's momentum of grown weights starts from, float32 [size]; None: zero."""
        del layer
        return None


@final
@dataclass(frozen=True)
class Random(GrowScore):
    """Anywhere with equal chances; what was just dropped only where nothing else is dead.

    Cost: O(n log n) of n grown, no gradients.

    Source: Mocanu et al. 2018 (SET), arXiv 1707.04780, algorithm 1.
    """

    comparable: ClassVar[bool] = False
    watches_gradients: ClassVar[bool] = False

    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """As above."""
        live, room = layer.positions, layer.size - layer.live
        found = dead(key, min(most, room), live, layer.size)
        if most > room:
            dropped = live[places(~kept)]
            again = dropped[chosen(key, min(most - room, len(dropped)), len(dropped))]
            found = torch.cat([found, again])
        return found, torch.ones(len(found))

    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """A number per place."""
        return uniform_scores(key, layer.size)


def _best_of(scores: Tensor, layer: Tracked, kept: Tensor, most: int) -> tuple[Tensor, Tensor]:
    alive = layer.survivors(kept)
    scores.index_fill_(0, alive, -torch.inf)
    found = best_places(scores, min(most, layer.size - len(alive)))
    return found, scores[found]


@final
@dataclass(frozen=True)
class Gradient(GrowScore):
    """|∂L/∂w| of the step before the update.

    Weights that were just dropped take part: those with the largest gradients come back as if nothing had been.

    Cost: one dense weight gradient per update, in tiles: no memory of the size of the weight. With several ranks, or
        in a structure, one layer's dense gradient at a time.

    Source: Evci et al. 2020 (RigL), arXiv 1911.11134, section 3 (4).
    """

    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """As above."""
        found = layer.largest()
        if found is None:
            return _best_of(self.everywhere(layer, key), layer, kept, most)
        dead, of_dead, of_live = found
        again = places(~kept)
        scores = torch.cat([of_dead, of_live.index_select(0, again)]).abs_()
        best = best_places(scores, min(most, len(scores)))
        first = int(np.searchsorted(best.numpy(), len(dead)))  # of those that come back
        revived = layer.positions.index_select(0, again.index_select(0, best[first:] - len(dead)))
        return torch.cat([dead.index_select(0, best[:first]), revived]), scores.index_select(0, best)

    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """|∂L/∂w|."""
        del key
        return layer.dense_gradient().abs_()

    def watches(self, step: int, schedule: Schedule) -> bool:
        """Before updates."""
        return schedule.due(step)


@final
@dataclass(frozen=True)
class Momentum(GrowScore):
    """|m|, m the exponential mean of the gradients of all weights: m ← β · m + (1 − β) · ∂L/∂w.

    Args:
        beta: β, 0 to 1, 1 excluded.
        window: steps before each update over which it is taken; None: all steps, as in the paper.
        initialise: start SGD's momentum of grown weights from m rather than from zero; Adam's starts from zero.

    Cost: the dense weight gradient on ``window`` steps per update (None: on every step), and one float per weight,
        dead or alive, meanwhile: **this is a dense state**, which is freed between windows.

    Source: Dettmers and Zettlemoyer 2019 (SNFS), arXiv 1907.04840, section 3.
    """

    beta: float = 0.9
    window: int | None = None
    initialise: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1 or (self.window is not None and self.window < 1):
            raise PlanError(f"Momentum: found beta {self.beta}, window {self.window}, expected 0 ≤ β < 1, at least 1")

    def watches(self, step: int, schedule: Schedule) -> bool:
        """In the window."""
        if self.window is None:
            return step <= schedule.end
        return any(schedule.due(s) for s in range(step, step + self.window))

    @property
    def watches_all(self) -> bool:
        """Yes."""
        return True

    def observe(self, layer: Tracked) -> None:
        """Move the mean."""
        gradient = layer.dense_gradient()
        mean = layer.dense.get("momentum")
        if mean is None:
            layer.dense["momentum"] = gradient.mul_(1 - self.beta) if finite(gradient) else gradient.zero_()
        elif finite(gradient):
            mean.mul_(self.beta).add_(gradient, alpha=1 - self.beta)

    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """The largest."""
        del key
        mean, alive = layer.dense["momentum"], layer.survivors(kept)
        return best_magnitudes(mean, min(most, layer.size - len(alive)), alive)

    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """|m|."""
        del key
        return layer.dense["momentum"].abs()

    def strength(self, layer: Tracked) -> float:
        """Mean |m| of the live weights."""
        return float(carried(layer.dense["momentum"], layer.positions).abs_().mean())

    def momentum(self, layer: Tracked) -> Tensor | None:
        """m."""
        return layer.dense["momentum"] if self.initialise else None

    def forget(self, layer: Tracked) -> None:
        """Free it between windows."""
        if self.window is not None:
            layer.dense.pop("momentum", None)
