"""Networks that are trained to the end, and how. A run is kept under a stamp of its recipe, not of this file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.training_networks import mlp

__all__ = ["TRAINED", "Recipe", "Trained", "adamw", "conv", "sgd"]


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
class Recipe:
    """How a network is trained.

    Args:
        optimizer: parameters and rate → optimiser.
        rate: peak of the learning rate: up for ``warm`` of the run, then down to zero along a cosine.
        epochs: of the run.
        warm: share of the run.
        smoothing: of labels, 0 to 1.
    """

    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
    rate: float
    epochs: float
    warm: float = 0.1
    smoothing: float = 0.0

    @property
    def stamp(self) -> str:
        """Of everything that a run depends on."""
        said = (self.optimizer.__name__, self.rate, self.epochs, self.warm, self.smoothing)
        return hashlib.sha256(repr(said).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Trained:
    """A network and how it is trained, with any method and without.

    Args:
        make: freshly initialised.
        batch: samples per step.
        dense: recipe of dense training.
        sparse: recipe of every sparse method.
    """

    make: Callable[[], nn.Module]
    batch: int
    dense: Recipe
    sparse: Recipe


def sgd(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With Nesterov momentum."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With weight decay apart from the gradient."""
    return torch.optim.AdamW(parameters, rate, weight_decay=1e-2, fused=True)


TRAINED: Mapping[str, Trained] = {
    "conv-16-32-128": Trained(conv, 128, Recipe(sgd, 0.05, 5, 0.2), Recipe(sgd, 0.05, 5, 0.2)),
    "mlp-784-2048-2048-10": Trained(
        lambda: mlp(784, 2048, 2048, 10),
        256,
        Recipe(adamw, 1e-3, 10, smoothing=0.1),
        Recipe(adamw, 2e-3, 16, smoothing=0.1),
    ),
}
