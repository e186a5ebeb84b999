"""Networks that are trained to the end, and the methods that make them sparse, with their schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

import gossamer.train as sparse
from benchmarks.training_networks import mlp
from gossamer.train import SparseTraining

__all__ = ["METHODS", "TRAINED", "Trained", "conv"]


def conv() -> nn.Sequential:
    """Two strided convolutions and two linear layers, 214,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


@dataclass(frozen=True)
class Trained:
    """A network and how it is trained, with any method and without.

    Args:
        make: freshly initialised.
        batch: samples per step.
        epochs: of dense training.
        sparse_epochs: of sparse training.
        rate: peak learning rate of dense training: up for a fifth of the run, then down to zero along a cosine.
        sparse_rate: that of sparse training.
        optimizer: parameters and rate → optimiser.
    """

    make: Callable[[], nn.Module]
    batch: int
    epochs: int
    sparse_epochs: int
    rate: float
    sparse_rate: float
    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def _sgd(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def _adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, rate, weight_decay=1e-2, fused=True)


TRAINED: Mapping[str, Trained] = {
    "conv-16-32-128": Trained(conv, 128, 3, 3, 0.05, 0.05, _sgd),
    "mlp-784-2048-2048-10": Trained(lambda: mlp(784, 2048, 2048, 10), 256, 8, 8, 1e-3, 2e-3, _adam),
}


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
