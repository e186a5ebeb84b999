"""What to drop: scores of live weights, of which the lowest go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.train.chance import signs, uniform_scores
from gossamer.train.tracked import Tracked

__all__ = ["DropScore", "Magnitude", "Movement", "Random", "Sensitivity", "SignFlip", "Taylor"]


@dataclass(frozen=True)
class DropScore(ABC):
    """A number per live weight: the higher, the longer it stays."""

    @abstractmethod
    def score(self, layer: Tracked, key: int) -> Tensor:
        """Scores after a step, float32 [live], finite.

        Args:
            layer: whose.
            key: of random numbers, another one at every update.
        """

    def begin(self, layer: Tracked, key: int) -> None:
        """Set up what is remembered between updates."""
        del layer, key

    def observe(self, layer: Tracked) -> None:
        """Take note of a step that was made."""
        del layer

    def newborn(self, what: str, count: int, key: int) -> Tensor:
        """What is remembered of weights that have just grown, float32 [count]; here nothing."""
        del what, key
        return torch.zeros(count)

    def doomed(self, layer: Tracked) -> int | None:
        """How many must go, where the score says so itself; None: the schedule does."""
        del layer
        return None


@final
@dataclass(frozen=True)
class Magnitude(DropScore):
    """|w|.

    Source: Han et al. 2015, arXiv 1506.02626; in sparse training Mocanu et al. 2018, arXiv 1707.04780.
    """

    def score(self, layer: Tracked, key: int) -> Tensor:
        """As above."""
        del key
        return layer.values.abs()


@final
@dataclass(frozen=True)
class Taylor(DropScore):
    """|w · ∂L/∂w| of the step: the first-order change of the loss if w were zero.

    Source: Molchanov et al. 2019, arXiv 1906.10771, section 3.1.
    """

    def score(self, layer: Tracked, key: int) -> Tensor:
        """As above."""
        del key
        return (layer.values * layer.gradient).abs()


@final
@dataclass(frozen=True)
class Random(DropScore):
    """No reason: the control."""

    def score(self, layer: Tracked, key: int) -> Tensor:
        """As above."""
        return uniform_scores(key, layer.live)


@dataclass(frozen=True)
class _Summed(DropScore, ABC):
    """Adds up what steps show since the last update; a weight that has just grown starts from zero.

    Cost: one float per live weight, one pass over the live weights per step.
    """

    def begin(self, layer: Tracked, key: int) -> None:
        """From zero."""
        del key
        layer.memory["summed"] = torch.zeros(layer.live)

    @abstractmethod
    def shown(self, layer: Tracked) -> Tensor:
        """By one step, float32 [live]."""

    def observe(self, layer: Tracked) -> None:
        """Add it up."""
        if layer.layer.values.grad is not None:
            layer.memory["summed"] += self.shown(layer)

    def score(self, layer: Tracked, key: int) -> Tensor:
        """The sum since the last update, after which it starts anew."""
        del key
        summed = layer.memory["summed"]
        layer.memory["summed"] = torch.zeros_like(summed)
        return torch.nan_to_num(summed)


@final
@dataclass(frozen=True)
class Movement(_Summed):
    """−Σ w · ∂L/∂w over the steps since the last update: high where steps lead away from zero.

    Source: Sanh et al. 2020, arXiv 2005.07683, section 4.
    """

    def shown(self, layer: Tracked) -> Tensor:
        """As above, at the weights after the step."""
        return -layer.values * layer.gradient


@final
@dataclass(frozen=True)
class Sensitivity(_Summed):
    """Σ |∂L/∂w| over the steps since the last update: low where the loss does not notice.

    Source: Tartaglione et al. 2018, arXiv 1810.11764, section 3 (there of the outputs, here of the loss).
    """

    def shown(self, layer: Tracked) -> Tensor:
        """As above."""
        return layer.gradient.abs()


@final
@dataclass(frozen=True)
class SignFlip(DropScore):
    """Each connection has a sign for life; it goes when its weight would change it.

    Source: Bellec et al. 2018, Deep Rewiring, arXiv 1711.05136, algorithm 1.
    """

    def begin(self, layer: Tracked, key: int) -> None:
        """The signs of the values that are there; of zeros any."""
        values = layer.values
        layer.memory["sign"] = torch.where(values == 0, signs(key, layer.live), values.sign())

    def newborn(self, what: str, count: int, key: int) -> Tensor:
        """Any sign."""
        return signs(key, count) if what == "sign" else torch.zeros(count)

    def score(self, layer: Tracked, key: int) -> Tensor:
        """|w|, negative where the sign has changed."""
        del key
        return layer.values * layer.memory["sign"]

    def doomed(self, layer: Tracked) -> int | None:
        """As many as have changed their sign."""
        return int((layer.values * layer.memory["sign"] < 0).sum())
