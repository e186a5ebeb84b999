"""What was measured layer by layer, as JSON and back, and the recipes that divide a budget by it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Self, cast, final

import yaml

from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.errors import FormatError, PlanError
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD, WhitenedSVD
from gossamer.methods.prune import Budgeted, Sensitivity
from gossamer.methods.quantize.groups import PerGroup
from gossamer.methods.quantize.mixed import allocate
from gossamer.sensitivity.judge import Metric
from gossamer.sensitivity.probe import Kind, rank_at

__all__ = ["KINDS", "LayerCurve", "Sensitivities"]

KINDS: tuple[Kind, ...] = ("sparsity", "bits", "rank")
_FORMAT = "gossamer sensitivity 1"


@final
@dataclass(frozen=True)
class LayerCurve:
    """How much the loss rises as one layer alone is compressed.

    Args:
        name: of its weight.
        kind: of the levels.
        shape: of the weight [out, *in]; of a recurrent layer, of one gate.
        gates: how many such weights the tensor holds.
        points: ((level, rise), …), levels rising; a rise may be infinite.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    gates: int
    points: tuple[tuple[float, float], ...]

    @property
    def elements(self) -> int:
        """Weights of the layer."""
        return self.gates * prod(self.shape)

    @property
    def mean(self) -> float:
        """Mean rise over the levels: what layers are sorted by."""
        return sum(rise for _, rise in self.points) / len(self.points)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; infinite rises are null."""
        points = [[level, rise if math.isfinite(rise) else None] for level, rise in self.points]
        return {**dataclasses.asdict(self), "shape": list(self.shape), "points": points}

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        points = tuple((level, math.inf if rise is None else float(rise)) for level, rise in found["points"])
        shape, gates = tuple(int(n) for n in found["shape"]), int(found["gates"])
        levels = [level for level, _ in points]
        rising = bool(points) and all(type(level) in (int, float) for level in levels) and levels == sorted(set(levels))
        if found["kind"] not in KINDS or not rising or len(shape) < 1 or any(n < 1 for n in (*shape, gates)):
            raise ValueError(f"the curve of {str(found['name'])[:40]!r}")
        return cls(str(found["name"]), found["kind"], shape, gates, points)


@final
@dataclass(frozen=True)
class Sensitivities:
    """The curves of a network's layers.

    Args:
        metric: "loss", or the distance to the outputs of the dense network, "kl" or "squares" (`Judge`).
        base: of the dense network.
        curves: by kind, then in the network's order.
        skipped: "kind: tensor" → why it was not measured.
        methods: per kind the method at its first level, for `recipe`.

    Example:
        >>> curve = LayerCurve("fc.weight", "bits", (4, 4), 1, ((2, 0.5), (4, 0.0)))
        >>> found = Sensitivities("loss", 1.0, (curve,), {}, {})
        >>> Sensitivities.from_json(found.to_json()) == found
        True
    """

    metric: Metric
    base: float
    curves: tuple[LayerCurve, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, Method] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What was measured."""
        return tuple(kind for kind in KINDS if any(c.kind == kind for c in self.curves))

    def of(self, kind: Kind) -> tuple[LayerCurve, ...]:
        """The curves of one kind, in the network's order."""
        return tuple(c for c in self.curves if c.kind == kind)

    # -- reused ------------------------------------------------------------------------------------------------------

    def pruning(self) -> Sensitivity:
        """The curves over sparsity as the ``scope`` of a method of pruning; infinite rises and what follows are cut.

        Raises:
            PlanError: sparsities were not measured.

        Example:
            >>> curve = LayerCurve("fc.weight", "sparsity", (4, 4), 1, ((0.5, 0.1), (0.9, float("inf"))))
            >>> Sensitivities("loss", 1.0, (curve,)).pruning().curves
            (('fc.weight', ((0.0, 0.0), (0.5, 0.1))),)
        """
        curves = []
        for curve in self._measured("sparsity"):
            known = next((i for i, (_, rise) in enumerate(curve.points) if not math.isfinite(rise)), len(curve.points))
            curves.append((curve.name, ((0.0, 0.0), *curve.points[:known])))
        usable = [(name, points) for name, points in curves if len(points) > 1]
        return Sensitivity(tuple(usable))

    def recipe(self, kind: Kind, budget: float) -> tuple[Method, ...]:
        """Entries of a recipe that give every measured layer the level at which the sum of rises is least.

        - "sparsity": the method of the measurement with the curves as its scope;
        - "bits": an entry for each number of bits that is given to some layer;
        - "rank": the ranks of each layer; layers may stay as they are.

        Rises are taken to add up, and to be those of one layer alone.

        Args:
            kind: which curves.
            budget: the share of weights that become zero; bits per weight, scales not counted; or the share of numbers
                that two factors of each layer leave.

        Raises:
            PlanError: a kind that was not measured, a budget below the smallest levels, or one that changes nothing.

        Cost: as `gossamer.methods.quantize.mixed.allocate`; exact up to its 2¹² partial sums.

        Example:
            >>> from gossamer.methods.quantize import RoundToNearest
            >>> curves = [LayerCurve(n, "bits", (4, 4), 1, ((2, r), (4, 0.0))) for n, r in (("a", 0.1), ("b", 0.9))]
            >>> found = Sensitivities("loss", 1.0, tuple(curves), {}, {"bits": RoundToNearest(bits=2)})
            >>> [(entry.only, entry.bits) for entry in found.recipe("bits", 3.0)]
            [(('a',), 2), (('b',), 4)]

        Source: Dong et al. 2019, HAWQ-V2, arXiv 1911.03852, section 3 (one level per layer under one budget).
        """
        measured, method = self._measured(kind), self.methods.get(kind)
        if method is None:
            raise PlanError(f"sensitivity: {kind}: found no method, expected the one that it was measured with")
        if kind == "sparsity":
            if not isinstance(method, Budgeted):
                raise PlanError(f"sensitivity: found {type(method).__name__}, expected a method with a sparsity")
            scope = self.pruning()
            _check_reach(budget, scope, measured)
            only = tuple(_pattern(name) for name, _ in scope.curves)
            return (dataclasses.replace(method, sparsity=budget, scope=scope, only=only, skip=()),)
        chosen = _least(kind, measured, budget, _factored(method) if kind == "rank" else None)
        levels: dict[int, list[str]] = {}
        for curve, level in zip(measured, chosen, strict=True):
            if level is not None:
                number = int(level) if kind == "bits" else rank_at(level, curve.shape)
                levels.setdefault(number, []).append(_pattern(curve.name))
        if not levels:
            raise PlanError(f"sensitivity: rank: found a budget of {budget:g}, which leaves every layer as it is")
        if kind == "bits":
            if not isinstance(method, PerGroup) or "bits" not in {f.name for f in dataclasses.fields(method)}:
                raise PlanError(f"sensitivity: found {type(method).__name__}, expected a method with bits")
            settings: list[dict[str, Any]] = [
                {"bits": number, "only": tuple(levels[number])} for number in sorted(levels)
            ]
            return tuple(dataclasses.replace(method, **found, skip=()) for found in settings)
        if isinstance(method, WhitenedSVD):
            pairs = tuple((name, number) for number in sorted(levels) for name in levels[number])
            return (dataclasses.replace(method, rank=pairs, only=tuple(n for n, _ in pairs), skip=()),)
        assert isinstance(method, SVD)
        return tuple(
            dataclasses.replace(method, rank=number, only=tuple(levels[number]), skip=()) for number in sorted(levels)
        )

    def _measured(self, kind: Kind) -> tuple[LayerCurve, ...]:
        found = self.of(kind)
        if not found:
            known = ", ".join(self.kinds) or "nothing"
            raise PlanError(f"sensitivity: found no curves over {kind!r}, expected some of what was measured: {known}")
        return found

    # -- on disk -----------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; infinite rises are null. Methods that recipes do not know are left out."""
        methods: dict[str, Any] = {}
        for kind, method in self.methods.items():
            plain = yaml.safe_load(dump_recipe([method])) if _known(method) else None
            methods |= {kind: plain[0]} if plain is not None else {}
        return {
            "format": _FORMAT,
            "metric": self.metric,
            "base": self.base,
            "methods": methods,
            "curves": [curve.to_json() for curve in self.curves],
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_json(cls, found: object) -> Self:
        """What `to_json` gave; other keys are passed over.

        Raises:
            FormatError: something else.
        """
        if not isinstance(found, Mapping) or found.get("format") != _FORMAT:
            kind = found.get("format") if isinstance(found, Mapping) else type(found).__name__
            raise FormatError(f"sensitivity: found {str(kind)[:60]!r}, expected {_FORMAT!r}")
        try:
            methods = {str(k): cast(Method, parse_recipe([m])[0]) for k, m in found["methods"].items()}
            curves = tuple(LayerCurve.from_json(c) for c in found["curves"])
            skipped = {str(k): str(v) for k, v in found["skipped"].items()}
            metric, base = found["metric"], float(found["base"])
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {str(error)[:80]}"
            raise FormatError(f"sensitivity: found a document with a hole: {reason}, expected {_FORMAT!r}") from error
        if not curves:
            raise FormatError("sensitivity: found no curves, expected at least one")
        if metric not in ("loss", "kl", "squares") or not all(isinstance(m, Method) for m in methods.values()):
            raise FormatError(f"sensitivity: found metric {str(metric)[:20]!r}, expected loss, kl or squares")
        return cls(metric, base, curves, skipped, methods)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From a JSON file, such as one of ``gossamer sensitivity --json``.

        Raises:
            FormatError: no such file, or something else in it.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: found no JSON: {' '.join(str(error).split())[:120]}") from error
        try:
            return cls.from_json(found)
        except (FormatError, PlanError) as error:
            raise FormatError(f"{path}: {error}") from error


def _check_reach(budget: float, scope: Sensitivity, measured: Sequence[LayerCurve]) -> None:
    """Raises PlanError for a sparsity beyond the last finite points of all curves together."""
    elements = {curve.name: curve.elements for curve in measured}
    most = sum(elements[name] * points[-1][0] for name, points in scope.curves)
    whole = sum(elements[name] for name, _ in scope.curves)
    if not whole:
        raise PlanError("sensitivity: sparsity: found no finite rise in any layer, expected one")
    if budget > most / whole:
        reach = f"found a budget of {budget:g}, expected at most {math.floor(1e4 * most / whole) / 1e4:g}"
        raise PlanError(f"sensitivity: sparsity: {reach}: the largest measured")


def _known(method: Method) -> bool:
    try:
        return parse_recipe(yaml.safe_load(dump_recipe([method]))) == [method]
    except (yaml.YAMLError, PlanError):
        return False


def _pattern(name: str) -> str:
    """A glob pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _factored(method: Method) -> bool:
    """Whether the rows that a product stores as they are take no numbers in the other factor.

    Raises:
        PlanError: a method without ranks.
    """
    if not isinstance(method, (SVD, WhitenedSVD)):
        raise PlanError(f"sensitivity: found {type(method).__name__}, expected SVD or WhitenedSVD")
    return isinstance(method, WhitenedSVD) and method.identity


def _least(kind: Kind, curves: Sequence[LayerCurve], budget: float, identity: bool | None) -> list[float | None]:
    """The level of each layer, None: as it is."""
    choices: list[list[tuple[int, float, float | None]]] = []
    for curve in curves:
        found: list[tuple[int, float, float | None]] = []
        for level, rise in curve.points:
            if kind == "bits":
                numbers = int(level) * curve.elements
            else:
                rank, out, inside = rank_at(level, curve.shape), curve.shape[0], prod(curve.shape[1:])
                numbers = curve.gates * rank * (out + inside - (rank if identity else 0))
            if math.isfinite(rise) and (kind == "bits" or numbers < curve.elements):
                found.append((numbers, rise, level))
        if kind == "rank":
            found.append((curve.elements, 0.0, None))
        if not found:
            raise PlanError(f"sensitivity: {curve.name}: found no finite loss at any level, expected one")
        choices.append(sorted(found, key=lambda choice: choice[0]))
    whole, smallest = sum(curve.elements for curve in curves), sum(found[0][0] for found in choices)
    if budget < smallest / whole:
        what = "bits per weight" if kind == "bits" else "of the numbers"
        raise PlanError(
            f"sensitivity: found a budget of {budget:g} {what}, expected at least "
            f"{math.ceil(1e4 * smallest / whole) / 1e4:g}: the smallest measured"
        )
    room = max(budget * whole, smallest)  # which a budget of just that may be rounded below
    chosen = allocate([[r for _, r, _ in c] for c in choices], [[n for n, _, _ in c] for c in choices], room)
    return [found[i][2] for found, i in zip(choices, chosen, strict=True)]
