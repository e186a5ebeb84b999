"""Random pruning: the control that every score must beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted

__all__ = ["Random"]


@final
@dataclass(frozen=True, kw_only=True)
class Random(Budgeted):
    """Keep units at random: each draws a number from [0, 1) of its own, and the highest stay.

    The numbers depend on the seed, the tensor's name and the unit's place alone, not on any other generator's state. A
    higher sparsity keeps a subset of what a lower one keeps.

    Args:
        seed: any integer.
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: one pass of integer arithmetic.

    Exact: keep counts; the same on every machine.

    Example:
        >>> Random(sparsity=0.9, seed=1).seed
        1

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the mixing function).
    """

    seed: int = 0

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """A number per place."""
        del values, evidence
        places = np.arange(at.start, at.stop) if isinstance(at, slice) else at.numpy()
        return uniform(self.seed, site.key, places)

    def unit_scores(self, site: Site, weight: Encoding, evidence: Evidence) -> Tensor:
        """A number per unit: means over units of different sizes would not be equally likely to be high."""
        places = super().unit_scores(site, weight, evidence)
        drawn = uniform(self.seed, site.key, np.arange(places.numel()))
        return torch.where(places.isinf(), places, drawn)


def uniform(seed: int, name: str, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """Counter-based numbers in [0, 1), multiples of 2⁻²⁴, float32 [places]."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        x = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return torch.from_numpy((x >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))
