"""Accuracy under attack, attack by attack and in the worst case, with what tells when a figure is too good."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from gossamer.errors import DataError, PlanError
from gossamer.measure.modes import Network
from gossamer.measure.proportions import wilson
from gossamer.measure.robustness.apgd import APGD
from gossamer.measure.robustness.attack import (
    Attack,
    Found,
    Scene,
    check_classes,
    check_examples,
    check_threat,
)
from gossamer.measure.robustness.ball import Norm
from gossamer.measure.robustness.fgsm import FGSM
from gossamer.measure.robustness.pgd import PGD
from gossamer.measure.robustness.probe import Probe, gives_gradients, parts, undisturbed
from gossamer.measure.robustness.square import Square
from gossamer.measure.robustness.transfer import Transfer
from gossamer.measure.robustness.worst import Worst

__all__ = ["QUICK", "STANDARD", "Robustness", "Row", "Worth", "robustness"]

STANDARD: tuple[Attack, ...] = (
    FGSM(),
    PGD(steps=20),
    Worst("APGD", (APGD("ce", steps=50, warm=PGD(steps=20)), APGD("targeted", steps=50, targets=9))),
    Square(queries=1000),
)
"""Attacks to publish figures by."""

QUICK: tuple[Attack, ...] = (
    FGSM(),
    PGD(steps=10),
    Worst("APGD", (APGD("ce", steps=15, warm=PGD(steps=10)), APGD("targeted", steps=10, targets=3))),
    Square(queries=50),
)
"""Attacks to look with: about a twelfth of the passes through the network; finds a little less."""

Report = Callable[[str, int, int], None]
"""(what, done, total)."""


@final
@dataclass(frozen=True)
class Row:
    """One attack at one radius.

    Args:
        attack: its name.
        epsilon: radius.
        accuracy: share of all examples that are right and stay so.
    """

    attack: str
    epsilon: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(vars(self))


@final
@dataclass(frozen=True)
class Worth:
    """The worst case over everything that was tried at one radius.

    Args:
        epsilon: radius.
        accuracy: share of all examples that nothing fooled.
        low: lower end of the 95% interval (Wilson), for another set of examples of this size.
        high: upper end.
    """

    epsilon: float
    accuracy: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(vars(self))


@final
@dataclass(frozen=True)
class Robustness:
    """Accuracy under attack.

    Args:
        norm: of the balls.
        examples: number of them.
        clean: accuracy without attack.
        epsilons: radii.
        rows: per attack and radius what that attack alone leaves.
        worst: per radius what all of them together leave.
        transfer: per radius the accuracy on adversarial inputs made on the dense network; None: none was given.
        surrogate: per attack and radius with a surrogate's gradients; None: none was given.
        warnings: what makes figures doubtful.
    """

    norm: Norm
    examples: int
    clean: float
    epsilons: tuple[float, ...]
    rows: tuple[Row, ...]
    worst: tuple[Worth, ...]
    transfer: tuple[Row, ...] | None
    surrogate: tuple[Row, ...] | None
    warnings: tuple[str, ...]

    def accuracy(self, attack: str, epsilon: float) -> float:
        """Of one row.

        Raises:
            DataError: there is none.
        """
        for row in self.rows:
            if row.attack == attack and row.epsilon == epsilon:
                return row.accuracy
        names = sorted({r.attack for r in self.rows})
        raise DataError(f"found no row {attack!r} at {epsilon}, expected one of {names} at {list(self.epsilons)}")

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, as reports keep them."""
        surrogate = None if self.surrogate is None else [r.to_json() for r in self.surrogate]
        transfer = None
        if self.transfer is not None:
            transfer = [{"epsilon": r.epsilon, "accuracy": r.accuracy} for r in self.transfer]
        return {
            "norm": self.norm,
            "examples": self.examples,
            "clean": self.clean,
            "epsilons": list(self.epsilons),
            "rows": [r.to_json() for r in self.rows],
            "worst": [w.to_json() for w in self.worst],
            "transfer": transfer,
            "surrogate": surrogate,
            "warnings": list(self.warnings),
        }


def robustness(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilons: Sequence[float],
    norm: Norm = "linf",
    attacks: Sequence[Attack] = STANDARD,
    bounds: tuple[float, float] = (0.0, 1.0),
    dense: Network | Transfer | None = None,
    surrogate: Network | None = None,
    seed: int = 0,
    batch: int = 250,
    progress: Report | None = None,
) -> Robustness:
    """How often a network is right when inputs may be changed by at most ε.

    Attacks run on the examples that the network gets right, and each leaves an example as soon as it is fooled. A row
    is what that attack finds alone. The worst case of a radius is over all attacks (also those through ``surrogate``
    and ``dense``) at this and all smaller radii, whose balls lie within.

    Args:
        model: inputs → logits [n, classes]. Gradients are taken through it if it has them (also if its parameters
            are frozen); else attacks that need them run through ``surrogate``.
        inputs: float32 or float64 [n, …] within the bounds: pixels. A network for normalised inputs belongs behind
            a layer that normalises (`Normalized`), or bounds and ε are said in its units.
        targets: int64 [n].
        epsilons: radii ≥ 0, in units of the inputs; at 0 every accuracy is the clean one.
        norm: "linf" or "l2".
        attacks: `STANDARD`, `QUICK`, or your own.
        bounds: smallest and largest value of an input.
        dense: the network before compression: PGD's strongest inputs on it are tried on ``model``. A `Transfer` of it
            makes them once for several models.
        surrogate: a differentiable stand-in, such as the network with straight-through quantizers: it gives gradients
            wherever ``model`` decides who is fooled.
        seed: of random starts and moves.
        batch: examples at a time.
        progress: called with (what, done, total).

    Returns:
        `Robustness`. It warns where gradients are masked: transfer or the surrogate's gradients fool more than the
        network's own by over two standard errors, or Square does; where there are no gradients; and where the network
        gives other outputs for the same inputs.

    Raises:
        DataError: inputs that are not finite or out of bounds, targets that are no classes, radii below 0.
        PlanError: no attacks, two of one name, or only such as need gradients and nothing that has them.

    Cost: `STANDARD` takes about 500 gradients and 1,000 evaluations for each example and radius that stays right;
        others leave early.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.eye(2)), model.bias.data.zero_()
        >>> x, y = torch.tensor([[0.75, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> found = robustness(model, x, y, epsilons=[0.0, 0.2], attacks=[FGSM()])
        >>> [(w.epsilon, w.accuracy) for w in found.worst]
        [(0.0, 1.0), (0.2, 0.5)]
    """
    check_examples(inputs, targets, bounds)
    try:
        radii = tuple(float(e) for e in epsilons)
    except (TypeError, ValueError) as error:  # one number is an easy slip
        raise DataError(f"epsilons: found {epsilons!r}, expected several radii, such as [0.01]") from error
    check_threat(radii, norm)
    if not radii:
        raise DataError("epsilons: found none, expected at least one radius")
    names = [a.name for a in attacks]
    if not names or len(set(names)) < len(names):
        raise PlanError(f"attacks: found {names}, expected at least one, no two of one name")
    if batch < 1:
        raise PlanError(f"batch: found {batch}, expected 1 or more")
    with undisturbed(model, dense.network if isinstance(dense, Transfer) else dense, surrogate):
        return _measured(model, inputs, targets, radii, norm, attacks, bounds, dense, surrogate, seed, batch, progress)


def _measured(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    radii: tuple[float, ...],
    norm: Norm,
    attacks: Sequence[Attack],
    bounds: tuple[float, float],
    dense: Network | Transfer | None,
    surrogate: Network | None,
    seed: int,
    batch: int,
    progress: Report | None,
) -> Robustness:
    count, warnings = len(inputs), []
    probe = Probe(model, inputs)
    logits = torch.cat([probe.logits(inputs[rows]) for rows in parts(count, batch)])
    check_classes(targets, logits.shape[1])
    if not bool(torch.isfinite(logits).all()):
        raise DataError("found outputs that are not finite for unchanged inputs")
    if not torch.equal(probe.logits(inputs[:batch].clone()), logits[:batch]):
        warnings.append("the network gives other outputs for the same inputs; an attack gets many tries at it")
    right = (logits.argmax(1) == targets).nonzero()[:, 0]
    white = [a for a in attacks if not a.needs_gradients]
    led = [a for a in attacks if a.needs_gradients]
    if gives_gradients(model, inputs[:1]):
        white = list(attacks)
    elif led:
        instead = "those attacks use the surrogate's" if surrogate is not None else "those attacks are left out"
        warnings.append(f"the network gives no gradients: {instead}")
        if not white and surrogate is None:
            raise PlanError("attacks: found only such as need gradients, expected a network with gradients, or Square")
    plans = [(probe, a, "rows") for a in white]
    if surrogate is not None:
        through = Probe(model, inputs, surrogate)
        plans += [(through, a, "surrogate") for a in led]
    # The inputs on which the dense network is most wrong, whether or not it is wrong on weaker ones.
    carrier = next((a for a in led if isinstance(a, PGD)), PGD())
    carried = dense if dense is None or isinstance(dense, Transfer) else Transfer(dense)
    if carried is not None:
        plans.append((carried.probe(inputs), carrier, "transfer"))

    rows: dict[str, list[Row]] = {"rows": [], "surrogate": [], "transfer": []}
    fooled: dict[tuple[str, str, float], Tensor] = {}
    done, total = 0, len(plans) * len(radii)
    for radius in radii:
        known: dict[Probe, dict[Attack, Found]] = {}  # points are large: those of one radius at a time
        for ask, attack, kind in plans:
            if progress is not None:
                progress(f"{attack.name}, ε {radius:.4g}", done, total)
            done += 1
            scene = Scene(ask, inputs[right], targets[right], right, radius, norm, bounds, seed, batch)
            if kind == "transfer" and carried is not None:
                points = carried.points(attack, scene, inputs, targets)
                said = [probe.logits(points[rows]) for rows in parts(len(right), batch)]
                here = (torch.cat(said) if said else logits[:0]).argmax(1) != targets[right]
            else:
                here = attack.find(scene, known.setdefault(ask, {})).fooled
            fooled[kind, attack.name, radius] = here
            rows[kind].append(Row(attack.name, radius, (len(right) - int(here.sum())) / count))
        if carried is not None and carried is not dense:
            carried.forget()
    worst = []
    for radius in radii:
        ever = torch.zeros(len(right), dtype=torch.bool)
        for (_, _, other), here in fooled.items():
            if other <= radius:
                ever |= here
        stays = len(right) - int(ever.sum())
        worst.append(Worth(radius, stays / count, *wilson(stays, count)))
    warnings += _masked(rows, [a.name for a in white if a.needs_gradients], count)
    return Robustness(
        norm,
        count,
        len(right) / count,
        radii,
        tuple(rows["rows"]),
        tuple(worst),
        None if dense is None else tuple(rows["transfer"]),
        None if surrogate is None else tuple(rows["surrogate"]),
        tuple(warnings),
    )


def _masked(rows: dict[str, list[Row]], led: list[str], count: int) -> list[str]:
    """Where attacks without the network's own gradients do better than those with them."""
    if not led:
        return []
    found = []
    own = {r.epsilon: 1.0 for r in rows["rows"]}
    for row in rows["rows"]:
        if row.attack in led:
            own[row.epsilon] = min(own[row.epsilon], row.accuracy)
    others = [("transfer from the dense network", r) for r in rows["transfer"]]
    others += [(f"{r.attack} with the surrogate's gradients", r) for r in rows["surrogate"]]
    others += [(f"{r.attack} without gradients", r) for r in rows["rows"] if r.attack not in led]
    for what, row in others:
        mine = own[row.epsilon]
        # The same examples are attacked both ways, so this is more cautious than the difference's own error.
        if mine - row.accuracy > 2 * math.sqrt(max(mine * (1 - mine), 1 / count) / count):
            found.append(
                f"masked gradients at ε {row.epsilon:.4g}: {what} leaves {row.accuracy:.1%}, the network's own "
                f"gradients {mine:.1%}; believe the worst case"
            )
    return found
