"""The methods of training runs, with their schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gossamer.train as sparse
from gossamer.train import SparseTraining

__all__ = ["METHODS"]


def _every(steps: int) -> int:
    return max(10, min(100, steps // 25))


def _random_pruning(sparsity: float, steps: int, seed: int) -> SparseTraining:
    return sparse.GradualMagnitude(
        sparsity=sparsity,
        steps=steps,
        every=_every(steps),
        seed=seed,
        drop=sparse.drop.Random(),
        allocation=sparse.allocation.ErdosRenyi(),
    )


METHODS: Mapping[str, Callable[[float, int, int], SparseTraining]] = {
    "magnitude-gradual": lambda sparsity, steps, seed: sparse.GradualMagnitude(
        sparsity=sparsity, steps=steps, every=_every(steps), seed=seed, across_layers=True
    ),
    "rigl": lambda sparsity, steps, seed: sparse.RigL(sparsity=sparsity, steps=steps, every=_every(steps), seed=seed),
    "set": lambda sparsity, steps, seed: sparse.SET(
        sparsity=sparsity, steps=steps, every=_every(steps), seed=seed, until=0.75
    ),
    "static": lambda sparsity, steps, seed: sparse.Static(sparsity=sparsity, seed=seed),
    "random-pruning": _random_pruning,
}
"""From sparsity, steps of the run and seed; "random-pruning" is "magnitude-gradual" with a random score."""
