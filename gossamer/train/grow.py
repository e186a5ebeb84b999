"""What to grow: scores of dead weights, of which the highest come to life, with the value zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.train.chance import chosen, dead, uniform_scores
from gossamer.train.choose import best_besides, best_magnitudes, carried, places, sources
from gossamer.train.health import finite
from gossamer.train.schedule import Schedule
from gossamer.train.tracked import Tracked

__all__ = ["Gradient", "GrowScore", "Momentum", "Random"]


@dataclass(frozen=True)
class GrowScore(ABC):
    """A number per weight that does not live after the drop."""

    comparable: ClassVar[bool] = True  # whether scores of different layers may be compared
    watches_gradients: ClassVar[bool] = True  # whether updates need gradients of dead weights
    tells_strength: ClassVar[bool] = False  # whether it says how much a layer deserves to grow

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
        """Scores of all weights, dead or alive, float32 [size]: for structures, which compare magnitudes in groups.

        Handed over: they may be overwritten.
        """

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
        """How much a layer deserves to grow, for `ByStrength`; asked before its candidates are.

        Raises:
            PlanError: a score that does not say.
        """
        del layer
        raise PlanError(f"{type(self).__name__}: found as the measure of layers, expected Momentum")

    def forget(self, layer: Tracked) -> None:
        """An update is over."""
        del layer

    def momentum(self, layer: Tracked) -> Callable[[Tensor], Tensor] | None:
        """Positions int64 of grown weights, ascending → what the optimiser's momentum starts from; None: zero."""
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
    """Candidates by the magnitudes of scores, which become zero where weights live."""
    alive = layer.positions.index_select(0, places(kept))
    return best_besides(scores, min(most, layer.size - len(alive)), alive)


def _best(largest: tuple[Tensor, Tensor, Tensor], layer: Tracked, kept: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Candidates by what `Tracked.largest` found."""
    dead, of_dead, of_live = largest
    again = places(~kept)
    scores = torch.cat([of_dead, of_live.index_select(0, again)])
    best = best_magnitudes(scores, min(most, len(scores)))
    first = int(np.searchsorted(best.numpy(), len(dead)))  # of those that come back
    revived = layer.positions.index_select(0, again.index_select(0, best[first:] - len(dead)))
    return torch.cat([dead.index_select(0, best[:first]), revived]), scores.index_select(0, best).abs_()


@final
@dataclass(frozen=True)
class Gradient(GrowScore):
    """|∂L/∂w| of the step before the update.

    Weights that were just dropped take part: those with the largest gradients come back as if nothing had been.

    Cost: one dense weight gradient per update, in tiles: no memory of the size of the weight. With several ranks, or
        in a structure, one layer's dense gradient at a time.
    Exact: the gradient of large linear and recurrent layers is that of activations rounded to bfloat16, 8 bits, with
        sums in float32, on processors that multiply these twice as fast (AVX512-BF16); elsewhere float32. Which of
        almost equal gradients win may differ.

    Source: Evci et al. 2020 (RigL), arXiv 1911.11134, section 3 (4).
    """

    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """As above."""
        found = layer.largest(most)
        return (
            _best_of(self.everywhere(layer, key), layer, kept, most)
            if found is None
            else _best(found, layer, kept, most)
        )

    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """∂L/∂w."""
        del key
        return layer.dense_gradient()

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
        dead or alive, meanwhile: **this is a dense state**, which is freed between windows. A window of one step needs
        none, except in a structure and with several ranks: the gradient is looked at in tiles, as by `Gradient`.
    Exact: as `Gradient`.

    Source: Dettmers and Zettlemoyer 2019 (SNFS), arXiv 1907.04840, section 3.
    """

    tells_strength: ClassVar[bool] = True

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
        """Unless the mean is that of one gradient, which is looked at in tiles."""
        return self.window != 1

    def observe(self, layer: Tracked) -> None:
        """Move the mean."""
        gradient = layer.dense_gradient()
        mean = layer.dense.get("momentum")
        if mean is None:
            layer.dense["momentum"] = gradient.mul_(1 - self.beta) if finite(gradient) else gradient.zero_()
        elif finite(gradient):
            mean.mul_(self.beta).add_(gradient, alpha=1 - self.beta)

    def _mean(self, layer: Tracked) -> Tensor:
        if "momentum" not in layer.dense:  # of one gradient, which several ranks or a structure need whole
            self.observe(layer)
        return layer.dense["momentum"]

    def candidates(self, layer: Tracked, kept: Tensor, most: int, key: int) -> tuple[Tensor, Tensor]:
        """The largest."""
        del key
        largest = None if "momentum" in layer.dense else layer.largest(most)
        if largest is None:
            mean = self._mean(layer)
            # Where there is no window the mean lives on.
            return _best_of(mean.clone() if self.window is None else mean, layer, kept, most)
        dead, gradients, raw = largest
        if not finite(gradients):  # as after `observe`: nothing is known of this layer
            gradients = torch.zeros_like(gradients)
        layer.found = dead, gradients.mul(1 - self.beta)
        return _best((dead, gradients, raw), layer, kept, most)

    def everywhere(self, layer: Tracked, key: int) -> Tensor:
        """m."""
        del key
        return self._mean(layer).clone()

    def strength(self, layer: Tracked) -> float:
        """Mean |m| of the live weights."""
        raw = None if "momentum" in layer.dense else layer.raw_gradient
        if raw is not None:
            return (1 - self.beta) * float(raw.abs().mean())
        return float(carried(self._mean(layer), layer.positions).abs_().mean())

    def momentum(self, layer: Tracked) -> Callable[[Tensor], Tensor] | None:
        """m."""
        if not self.initialise:
            return None
        if layer.found is None:
            mean = self._mean(layer)
            return lambda positions: carried(mean, positions)
        dead, numbers = layer.found
        return lambda positions: carried(numbers, sources(dead, positions, len(dead)))

    def forget(self, layer: Tracked) -> None:
        """Free it between windows."""
        if self.window is not None:
            layer.dense.pop("momentum", None)
