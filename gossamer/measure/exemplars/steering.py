"""Scores of examples put to use: which of them training sees, how often, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from gossamer.encoding.random import key_of
from gossamer.errors import DataError

__all__ = ["Curriculum", "easiest_first", "sampling_weights"]


def sampling_weights(scores: Tensor, *, prefer: Literal["hard", "easy"] = "hard", strength: float = 1.0) -> Tensor:
    """How often to draw each example, for torch's WeightedRandomSampler.

    With q in (0, 1) the share of examples with a lower score: w = 2^(2 · strength · (q − ½)), turned around for "easy",
    divided by its mean. The hardest example is drawn 4^strength times as often as the easiest. Ranks are used and not
    scores, whose long tail would give a handful of outliers (often mislabelled ones) all of the training.

    Training with these weights minimises another loss than without: divide each example's loss by its weight to have
    the same one in expectation, with another variance.

    Args:
        scores: floats [n], higher is harder.
        prefer: what is drawn more often.
        strength: 0 (all alike) and up.

    Returns:
        float64 [n], mean 1.

    Raises:
        DataError: scores that are not finite, or a setting that is out of range.

    Example:
        >>> weights = sampling_weights(torch.tensor([0.1, 5.0, -3.0]))
        >>> [round(w, 2) for w in weights.tolist()]
        [0.93, 1.48, 0.59]
        >>> from torch.utils.data import WeightedRandomSampler
        >>> sorted(set(WeightedRandomSampler(weights, 100)))
        [0, 1, 2]
    """
    _check(scores)
    if prefer not in ("hard", "easy") or not (math.isfinite(strength) and 0 <= strength <= 100):
        raise DataError(
            f"weights: found prefer {prefer!r}, strength {strength}, expected 'hard' or 'easy', and 0 to 100"
        )
    rank = torch.empty(len(scores), dtype=torch.float64)
    rank[scores.argsort(stable=True)] = torch.arange(len(scores), dtype=torch.float64)
    q = (rank + 0.5) / len(scores) - 0.5
    weights = torch.exp2(2 * strength * (q if prefer == "hard" else -q))
    return weights / weights.mean()


def easiest_first(scores: Tensor, progress: float, *, start: float = 0.3) -> Tensor:
    """The examples that a curriculum trains on at one point of training.

    The easiest share start + (1 − start) · progress of them. Scores that are normalised by class keep the classes about
    as frequent as they are.

    Args:
        scores: floats [n], higher is harder.
        progress: share of the training that is over, 0 to 1.
        start: share of the examples to begin with, over 0, up to 1.

    Returns:
        int64, easiest first, at least one.

    Raises:
        DataError: scores that are not finite, or shares that are none.

    Example:
        >>> easiest_first(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.0, start=0.5).tolist()
        [1, 2]
        >>> len(easiest_first(torch.tensor([3.0, 1.0, 2.0, 4.0]), 1.0, start=0.5))
        4

    Source: Platanios et al. 2019, arXiv 1903.09848, section 2.1 (linear competence).
    """
    _check(scores)
    if not (0 <= progress <= 1 and 0 < start <= 1):
        raise DataError(f"curriculum: found progress {progress}, start {start}, expected shares from 0 to 1, start > 0")
    count = math.ceil((start + (1 - start) * progress) * len(scores) - 1e-9)
    return scores.argsort(stable=True)[: max(1, count)]


@final
class Curriculum(Sampler[int]):
    """A sampler for torch's DataLoader that begins with the easy examples and ends with all of them.

    Every epoch gives as many numbers as there are examples, so that lengths, schedules of learning rates and
    ``steps=`` of sparse training stay as they are: permutations of the examples that the epoch allows, one after the
    other. The same seed gives the same orders on every machine with the same torch.

    Args:
        scores: floats [n], higher is harder, such as ``vog.scores`` of the training examples.
        epochs: of the whole training; the last of them has all examples, later ones too.
        start: share of the examples in the first epoch.
        seed: of the orders.

    Raises:
        DataError: scores that are not finite, or settings out of range.

    Example:
        >>> sampler = Curriculum(torch.tensor([3.0, 1.0, 2.0, 4.0]), epochs=2, start=0.5)
        >>> sorted(sampler), sorted(sampler)
        ([1, 1, 2, 2], [0, 1, 2, 3])
    """

    def __init__(self, scores: Tensor, *, epochs: int, start: float = 0.3, seed: int = 0) -> None:
        if epochs < 1:
            raise DataError(f"curriculum: epochs: found {epochs}, expected at least 1")
        easiest_first(scores, 0.0, start=start)
        self._scores, self._epochs, self._start, self._seed = scores.detach().cpu(), epochs, start, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._scores)

    def __iter__(self) -> Iterator[int]:
        progress = 1.0 if self._epochs == 1 else min(1.0, self.epoch / (self._epochs - 1))
        allowed = easiest_first(self._scores, progress, start=self._start)
        generator = torch.Generator().manual_seed(key_of(self._seed, "curriculum", self.epoch) >> 1)
        self.epoch += 1
        rounds = -(-len(self) // len(allowed))
        drawn = [allowed[torch.randperm(len(allowed), generator=generator)] for _ in range(rounds)]
        yield from torch.cat(drawn)[: len(self)].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Which epoch comes next."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the epoch that `state_dict` gave."""
        if not isinstance(state.get("epoch"), int) or state["epoch"] < 0:
            raise DataError(f"curriculum: epoch: found {state.get('epoch')!r}, expected a number from 0 on")
        self.epoch = state["epoch"]


def _check(scores: Tensor) -> None:
    if scores.dim() != 1 or len(scores) == 0 or not bool(torch.isfinite(scores).all()):
        raise DataError(f"scores: found shape {tuple(scores.shape)}, expected finite numbers [n], at least one")
