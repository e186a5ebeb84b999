"""What all attacks have in common: checks, batches, who is still to be fooled, and starting where others ended."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.errors import DataError, PlanError
from gossamer.measure.finite import check_finite
from gossamer.measure.modes import Network
from gossamer.measure.robustness.ball import Ball, Norm
from gossamer.measure.robustness.probe import Probe, parts, undisturbed

__all__ = ["Attack", "Found", "Hunt", "Scene", "check_examples", "check_threat"]


@final
@dataclass(frozen=True)
class Scene:
    """Examples, and what may be done to them.

    Args:
        probe: of the network.
        inputs: [n, …].
        targets: int64 [n].
        numbers: int64 [n], of the examples in the whole set; random numbers go by them.
        epsilon: radius.
        norm: of the ball.
        bounds: of inputs.
        seed: of random numbers.
        batch: examples at a time.
    """

    probe: Probe
    inputs: Tensor
    targets: Tensor
    numbers: Tensor
    epsilon: float
    norm: Norm
    bounds: tuple[float, float]
    seed: int
    batch: int

    def take(self, rows: Tensor) -> Scene:
        """Some of the examples."""
        kept = (self.inputs[rows], self.targets[rows], self.numbers[rows])
        return Scene(self.probe, *kept, self.epsilon, self.norm, self.bounds, self.seed, self.batch)

    def ball(self) -> Ball:
        """Where points may lie."""
        return Ball(self.inputs, self.epsilon, self.norm, self.bounds)

    def batches(self) -> Iterator[tuple[Tensor, Scene]]:
        """Numbers within this scene, and the part."""
        for rows in parts(len(self.inputs), self.batch):
            yield rows, self.take(rows)


@final
@dataclass(frozen=True)
class Found:
    """What an attack made.

    Args:
        points: [n, …]: an input that fools the network, or else the strongest one that was seen.
        fooled: mask [n].
    """

    points: Tensor
    fooled: Tensor


@final
class Hunt:
    """The state of an attack on one batch: the best point of each example, and who is not fooled yet.

    Args:
        scene: of the batch.
        start: points to begin with.
    """

    def __init__(self, scene: Scene, start: Tensor) -> None:
        self.points = start.clone()
        self.fooled = torch.zeros(len(start), dtype=torch.bool)
        self._best = torch.full((len(start),), -torch.inf)
        self._scene = scene

    @property
    def left(self) -> Tensor:
        """Numbers of examples that are not fooled."""
        return (~self.fooled).nonzero()[:, 0]

    def see(self, rows: Tensor, points: Tensor, logits: Tensor, values: Tensor) -> Tensor:
        """Remember points with their logits and values of the objective.

        Args:
            rows: numbers of their examples, int64 [m].
            points: [m, …].
            logits: [m, classes].
            values: [m].

        Returns:
            Mask [m]: still not fooled.
        """
        fooled = self._scene.probe.fooled(logits, self._scene.targets[rows])
        best = self._best[rows]
        better = (values > best) | fooled
        if bool(better.any()):
            self.points[rows[better]] = points[better]
            self._best[rows[better]] = values[better].to(best.dtype)
        self.fooled[rows[fooled]] = True
        return ~fooled

    def begin_again(self) -> None:
        """Values of another objective follow, which say nothing beside those before."""
        self._best.fill_(-torch.inf)

    def end(self) -> Found:
        """What was found."""
        return Found(self.points, self.fooled)


class Attack(ABC):
    """A way of looking for inputs near given ones that a network gets wrong. A frozen dataclass: its settings."""

    needs_gradients: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """In tables; also part of the key of its random numbers."""

    @property
    def first(self) -> tuple[Attack, ...]:
        """Attacks that run before, from whose strongest points this one starts; part of what it is."""
        return ()

    @abstractmethod
    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """Attack one batch of examples that the network gets right.

        Args:
            scene: one batch.
            start: where attacks that run before ended; None: nothing ran.
        """

    def find(self, scene: Scene, known: dict[Attack, Found] | None = None) -> Found:
        """Attack examples that the network gets right, any number.

        Args:
            scene: examples and ball.
            known: what attacks found on these very examples; is used, and what is found is put in.
        """
        if known is not None and self in known:
            return known[self]
        if scene.epsilon == 0:
            found = Found(scene.inputs, torch.zeros(len(scene.inputs), dtype=torch.bool))
        else:
            points, fooled, started = scene.inputs.clone(), torch.zeros(len(scene.inputs), dtype=torch.bool), False
            for attack in self.first:
                left = (~fooled).nonzero()[:, 0]
                before = attack.find_among(scene, left, known)
                points[left], fooled[left], started = before.points, before.fooled, True
            left = (~fooled).nonzero()[:, 0]
            for rows, part in scene.take(left).batches():
                at = left[rows]
                here = self.search(part, points[at] if started else None)
                points[at], fooled[at] = here.points, here.fooled
            found = Found(points, fooled)
        if known is not None:
            known[self] = found
        return found

    def find_among(self, scene: Scene, rows: Tensor, known: dict[Attack, Found] | None) -> Found:
        """Attack some of the examples: a part of what is known of all, where it is."""
        if known is not None and len(rows) == len(scene.inputs):
            return self.find(scene, known)
        if known is not None and self in known:
            return Found(known[self].points[rows], known[self].fooled[rows])
        # Of attacks before this one all may be known: the numbers say which examples these are.
        part = None if known is None else {a: Found(f.points[rows], f.fooled[rows]) for a, f in known.items()}
        return self.find(scene.take(rows), part)

    def run(
        self,
        model: Network,
        inputs: Tensor,
        targets: Tensor,
        epsilon: float,
        norm: Norm = "linf",
        seed: int = 0,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        batch: int = 500,
    ) -> Tensor:
        """Adversarial inputs: x' with ‖x' − x‖ ≤ ε within the bounds, so that the model is wrong where that was found.

        Args:
            model: inputs → logits [n, classes]; put in eval mode meanwhile, its parameters have no gradients.
            inputs: float32 or float64 [n, …], within the bounds.
            targets: int64 [n], right classes.
            epsilon: in units of the inputs, ≥ 0; 0 gives the inputs back.
            norm: "linf" or "l2".
            seed: of random starts and moves; each example has its own numbers, whatever else is in the batch.
            bounds: smallest and largest value of an input.
            batch: examples at a time.

        Returns:
            Like ``inputs``. Inputs that the model gets wrong already come back as they are.

        Raises:
            DataError: inputs that are not finite or out of bounds, targets that are no classes, a negative ε, or
                a model without gradients where they are needed.
        """
        check_examples(inputs, targets, bounds)
        check_threat((epsilon,), norm)
        with undisturbed(model):
            made = inputs.detach().clone()
            probe = Probe(model, made)
            wrong = []
            for rows in parts(len(made), batch):
                logits = probe.logits(made[rows])
                check_classes(targets, logits.shape[1])
                wrong.append(logits.argmax(1) != targets[rows])
            right = (~torch.cat(wrong)).nonzero()[:, 0]
            scene = Scene(probe, made[right], targets[right], right, epsilon, norm, bounds, seed, batch)
            made[right] = self.find(scene).points
        return made


def check_examples(inputs: object, targets: object, bounds: tuple[float, float]) -> None:
    """Refuse what cannot be attacked.

    Raises:
        DataError: says what was found.
    """
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"bounds: found {bounds}, expected two numbers, the first smaller")
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        found = f"{type(inputs).__name__} and {type(targets).__name__}"
        raise DataError(f"found inputs and targets of {found}, expected two tensors")
    if inputs.dtype not in (torch.float32, torch.float64) or inputs.dim() < 2 or len(inputs) == 0:
        found = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        raise DataError(f"inputs: found {found}, expected float32 or float64 [n, …], at least one")
    if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]:
        found = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise DataError(f"targets: found {found}, expected int64 [{len(inputs)}]")
    if int(targets.min()) < 0:
        raise DataError(f"targets: found class {int(targets.min())}, expected classes from 0 on")
    check_finite(inputs, "inputs")
    least, most = float(inputs.min()), float(inputs.max())
    if least < low or most > high:
        raise DataError(
            f"inputs: found values from {least:.6g} to {most:.6g}, expected {low:.6g} to {high:.6g}: say bounds=, "
            "and ε in the same units, or attack pixels and normalise within the network"
        )


def check_classes(targets: Tensor, classes: int) -> None:
    """Refuse targets that the network has no logit for."""
    if int(targets.max()) >= classes:
        raise DataError(f"targets: found class {int(targets.max())}, expected classes below {classes}")


def check_threat(epsilons: tuple[float, ...], norm: str) -> None:
    """Refuse radii and norms that mean nothing.

    Raises:
        DataError: a radius below 0 or not finite.
        PlanError: an unknown norm.
    """
    for epsilon in epsilons:
        if not (math.isfinite(epsilon) and epsilon >= 0):
            raise DataError(f"epsilon: found {epsilon}, expected a number from 0 on")
    if norm not in ("linf", "l2"):
        raise PlanError(f"norm: found {norm!r}, expected 'linf' or 'l2'")
