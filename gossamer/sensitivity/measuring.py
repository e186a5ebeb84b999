"""How much the loss rises when one layer alone is compressed: the curves that an allocation by sensitivity needs."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Any, Protocol, final

from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.evidence import gather
from gossamer.drive.one_shot import settled
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.source import ModelSource
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Evidence, Method, Site, matches, patterns_in
from gossamer.methods.prune import Budgeted, Sensitivity
from gossamer.network.inspect import plain_tree, specs, tensors
from gossamer.sensitivity import probe as usual
from gossamer.sensitivity.judge import Distance, Judge
from gossamer.sensitivity.layer_curves import LayerCurve, Sensitivities
from gossamer.sensitivity.probe import Kind, Probe

__all__ = ["Finished", "Keeper", "measure_layers", "sensitivity"]

_STATISTICS = 1 << 30  # bytes of statistics gathered at once


@final
@dataclass(frozen=True)
class Finished:
    """What came of one layer and one kind: a curve, or why there is none."""

    curve: LayerCurve | None
    reason: str = ""


class Keeper(Protocol):
    """Remembers what is finished, so that a killed run goes on."""

    def known(self, name: str, kind: Kind) -> Finished | None:
        """What an earlier run found, or None."""

    def keep(self, name: str, kind: Kind, found: Finished) -> None:
        """It is finished."""


@final
class _Nothing:
    def known(self, name: str, kind: Kind) -> Finished | None:
        del name, kind
        return None

    def keep(self, name: str, kind: Kind, found: Finished) -> None:
        pass


def sensitivity(
    model: nn.Module,
    data: Iterable[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    *,
    method: Callable[[float], Budgeted] | None = None,
    batches: int = 4,
) -> Sensitivity:
    """Prune each weight alone to each sparsity, one shot, and measure the mean loss on a few batches.

    Args:
        model: dense; not changed.
        data: (inputs, targets) batches.
        loss: (outputs, targets) → scalar.
        sparsities: rising, above 0 and up to 1.
        method: sparsity → pruning method that ranks by the weights alone; None: magnitude, single weights.
        batches: how many of ``data``, from its start.

    Returns:
        Per weight its loss increase at each sparsity. Plain numbers: ``json.dumps(found.curves)`` and back.

    Raises:
        DataError: no batch.
        PlanError: a method that needs more than the weights.

    Cost: batches · weights · sparsities forward passes.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> found = sensitivity(nn.Linear(4, 4), data, F.cross_entropy, (0.5, 0.9))
        >>> [(name, [s for s, _ in points]) for name, points in found.curves]
        [('weight', [0.5, 0.9])]

    Source: Li et al. 2017, arXiv 1608.08710, section 3.2 (one layer at a time).
    """
    if method is not None and method(sparsities[0]).needs:
        raise PlanError(
            f"sensitivity: found {type(method(sparsities[0])).__name__}, expected a method that needs the weights alone"
        )
    probe = usual.sparsities(sparsities, method=method)
    found = measure_layers(model, data, (probe,), loss=loss, batches=batches, fitted=0)
    return Sensitivity(tuple((curve.name, curve.points) for curve in found.curves))


def measure_layers(
    model: nn.Module,
    data: Iterable[Any],
    probes: Sequence[Probe] | None = None,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    distance: Distance = "auto",
    batches: int = 4,
    fitted: int = 16,
    only: str | tuple[str, ...] = (),
    skip: str | tuple[str, ...] = (),
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> Sensitivities:
    """Compress each weight alone, in each way and to each level, and measure how much worse the network becomes.

    rise(layer, level) = L(network with that layer compressed) − L(network), L the mean loss over a few batches; where
    batches have no targets, how far the outputs are from what they were (`Judge`).

    Args:
        model: dense; not changed.
        data: batches (inputs, targets), or inputs alone; called as `gossamer.drive.calls` says.
        probes: what to try, one per kind; None: `sparsities`, `bits` and `ranks` of
            `gossamer.sensitivity`. Methods may need statistics.
        loss: (outputs, targets) → scalar; None: cross entropy where batches have targets.
        distance: where they have none: "kl" for logits, "squares", or "auto".
        batches: how many of ``data``, from its start, are measured on.
        fitted: how many after those methods' statistics are of, at most: what is fitted to the batches that it is
            measured on looks better than it is.
        only: glob patterns of tensor names; empty: the weights that each method takes.
        skip: glob patterns of tensor names to leave out.
        keeper: what an earlier run has finished, or None.
        progress: where to say how far it is.

    Returns:
        A curve per layer and kind. JSON and back, and recipes that divide a budget by it.

    Raises:
        DataError: no batch, one that the network or the loss rejects, weights that are not finite.
        PlanError: two probes of a kind, or none that matches a layer.

    Warns:
        UserWarning: no batches are left for statistics, so that they are of those that are measured on.

    Cost: batches · weights · levels forward passes, a copy of the network, and the statistics that methods need of at
    most 1 GiB at once (for `ranks` a Gram matrix of the inputs per layer); without targets the outputs too.

    Example:
        >>> import torch
        >>> from gossamer.sensitivity import bits, ranks
        >>> found = measure_layers(nn.Linear(4, 4), [torch.eye(4)] * 2, [bits((2, 8)), ranks((0.5,))], batches=1)
        >>> [(c.kind, c.name, [level for level, _ in c.points]) for c in found.curves]
        [('bits', 'weight', [2, 8]), ('rank', 'weight', [0.5])]
        >>> found.metric, found.curves[0].points[0][1] > found.curves[0].points[1][1]
        ('squares', True)

    Source: Li et al. 2017, arXiv 1608.08710, section 3.2 (one layer at a time).
    """
    probes = (usual.sparsities(), usual.bits(), usual.ranks()) if probes is None else tuple(probes)
    if not probes or len({probe.kind for probe in probes}) < len(probes):
        raise PlanError(f"sensitivity: found probes of {[p.kind for p in probes]}, expected one of each kind")
    listed = iter(data)
    few = list(islice(listed, batches))
    if not few:
        raise DataError("sensitivity: found no batches, expected at least one")
    looks = any(probe.make(probe.levels[0], (64, 64)).needs for probe in probes)
    more = list(islice(listed, fitted if looks else 0))
    keeper = keeper if keeper is not None else _Nothing()
    progress = progress if progress is not None else NoProgress()
    run = _Run(model, few, more, loss, distance, probes, only, skip)
    layers = run.layers()
    found: dict[tuple[str, Kind], Finished] = {}
    for spec, mine in layers:
        for probe in mine:
            known = keeper.known(spec.name, probe.kind)
            if known is not None:
                found[spec.name, probe.kind] = known
    left = [(s, missing) for s, mine in layers if (missing := [p for p in mine if (s.name, p.kind) not in found])]
    done, total = 0, sum(len(probe.levels) for _, missing in left for probe in missing)
    for (spec, missing), seen in zip(left, run.evidence([s for s, _ in left], progress), strict=True):
        for probe in missing:
            finished = run.curve(spec, probe, seen, partial(_tell, progress, done, total))
            keeper.keep(spec.name, probe.kind, finished)
            found[spec.name, probe.kind] = finished
            done += len(probe.levels)
    progress.update("measuring", done, total)
    curves = [found[s.name, p.kind].curve for p in probes for s, mine in layers if p in mine]
    reasons = {f"{p.kind}: {s.name}": found[s.name, p.kind].reason for p in probes for s, mine in layers if p in mine}
    skipped = {**run.skipped, **{name: why for name, why in reasons.items() if why}}
    if not any(curves):
        why = next((f": {name}: {reason}" for name, reason in skipped.items()), "")
        names = ", ".join(s.name for s in specs(model)[:4])
        raise PlanError(f"sensitivity: found no layer to measure{why or f', expected names like {names}'}")
    methods: dict[str, Method] = {p.kind: p.make(p.levels[0], (64, 64)) for p in probes}
    return Sensitivities(run.judge.metric, run.base, tuple(c for c in curves if c is not None), skipped, methods)


def _tell(progress: Progress, done: int, total: int, more: int) -> None:
    progress.update("measuring", done + more, total)


@final
class _Run:
    """One network, its judge, and the one weight that is something else at the moment."""

    def __init__(
        self,
        model: nn.Module,
        few: Sequence[Any],
        more: Sequence[Any],
        loss: Callable[[Any, Any], Tensor] | None,
        distance: Distance,
        probes: Sequence[Probe],
        only: str | tuple[str, ...],
        skip: str | tuple[str, ...],
    ) -> None:
        self.model, self.loss, self.probes = model, loss, probes
        self.few, self.more = few, more
        self.network = copy.deepcopy(model).eval()
        self.tensors = tensors(self.network)
        self.listed = specs(self.network)
        self.patterns: dict[str, Any] = {k: v for k, v in (("only", only), ("skip", skip)) if v}
        self.skipped: dict[str, str] = {}
        self._refuse_unmatched()
        source = ModelSource(self.network)
        for spec in self.listed:
            source.read(spec.name)  # refuses what is not finite
        self.judge = Judge(self.network, few, loss, distance)
        of_dense = self.judge(self.network)
        if not math.isfinite(of_dense):
            raise DataError(
                f"sensitivity: found {self.judge.metric} of the dense network that is not finite, expected a number"
            )
        self.base = of_dense if self.judge.metric == "loss" else 0.0

    def _refuse_unmatched(self) -> None:
        names = [name for spec in self.listed for name in spec.names]
        for setting, given in self.patterns.items():
            for pattern in patterns_in(given):
                if not matches(names, pattern):
                    found, like = f"found {pattern!r}, which matches no tensor", ", ".join(names[:4])
                    raise PlanError(f"sensitivity: {setting}: {found}, expected names like {like}")

    def _made(self, probe: Probe, level: float, shape: tuple[int, ...]) -> Method:
        method = probe.make(level, shape)
        if method.passes > 1 or method.runs_network:
            name = type(method).__name__
            raise PlanError(f"sensitivity: found {name}, expected a method that is carried out on a weight in one go")
        if not self.patterns:
            return method
        if "only" in self.patterns and method.only:
            raise PlanError(
                f"sensitivity: found only={method.only!r} in {type(method).__name__} beside only= of the measurement, "
                "expected one of them"
            )
        skip = (*patterns_in(method.skip), *patterns_in(self.patterns.get("skip", ())))
        return dataclasses.replace(method, only=self.patterns.get("only", method.only), skip=skip)

    def _sites(self, spec: TensorSpec, tree: Encoding, probe: Probe) -> tuple[tuple[Site, ...], str]:
        """The places of one tensor, or why none; no reason if it is not meant."""
        method = self._made(probe, probe.levels[0], (64, 64))
        found = method.find(spec, skeleton_of(tree))
        sites = tuple(Site(spec, path, tree.at(path).dense_shape()) for path in found.paths)
        reason = found.reason or next((why for site in sites if (why := method.refusal(site))), "")
        return ((), reason) if reason else (sites, "")

    def layers(self) -> list[tuple[TensorSpec, tuple[Probe, ...]]]:
        """The tensors that some probe takes."""
        found = []
        for spec in self.listed:
            tree, mine = plain_tree(self.tensors[spec.name], spec), []
            for probe in self.probes:
                sites, reason = self._sites(spec, tree, probe)
                if reason:
                    self.skipped[f"{probe.kind}: {spec.name}"] = reason
                elif sites:
                    mine.append(probe)
            if mine:
                found.append((spec, tuple(mine)))
        return found

    def evidence(self, layers: Sequence[TensorSpec], progress: Progress) -> Iterator[Evidence]:
        """The statistics of one layer after the other, gathered for as many at once as the memory allows."""
        needs = frozenset().union(*(self._made(p, p.levels[0], (64, 64)).needs for p in self.probes))
        if not needs or not layers:
            yield from ({} for _ in layers)
            return
        if not self.more:
            warnings.warn(
                f"sensitivity: found no batches beyond the {len(self.few)} that are measured on: statistics are of the "
                "same, so what is fitted to them looks better than it is. Give more batches",
                stacklevel=3,
            )
        groups: list[list[TensorSpec]] = [[]]
        size = 0
        for spec in layers:
            shape = tuple(spec.shape[d] for d in spec.output_first) if spec.output_first else spec.shape
            mine = 4 * (prod(shape[1:]) ** 2 + spec.elements)
            if groups[-1] and size + mine > _STATISTICS:
                groups.append([])
                size = 0
            groups[-1].append(spec)
            size += mine
        held = tensors(self.model)
        trees = {s.name: plain_tree(held[s.name], s) for s in self.listed}
        for group in groups:
            names = frozenset(spec.name for spec in group)
            found = gather(
                self.model, self.listed, trees, needs, self.more or self.few,
                loss=self.loss or F.cross_entropy, batches=len(self.more or self.few), names=names, progress=progress,
            )  # fmt: skip
            for spec in group:
                yield found.get(spec.name, {})
            del found  # or the next group's would be gathered beside it

    def curve(self, spec: TensorSpec, probe: Probe, seen: Evidence, tell: Callable[[int], None]) -> Finished:
        """Measure one layer, and leave it as it was."""
        weight = self.tensors[spec.name]
        original = weight.clone()
        tree = plain_tree(original, spec)
        sites, _ = self._sites(spec, tree, probe)
        points, reason = [], ""
        try:
            for i, level in enumerate(probe.levels):
                tell(i)
                changed, reason = _changed(self._made(probe, level, sites[0].shape), sites, tree, seen)
                if changed is not None:
                    weight.copy_(changed.to_dense())
                    points.append((level, self.judge(self.network) - self.base))
        finally:
            weight.copy_(original)
        if not points:
            return Finished(None, reason)
        return Finished(LayerCurve(spec.name, probe.kind, sites[0].shape, len(sites), tuple(points)))


def _changed(
    method: Method, sites: Sequence[Site], tree: Encoding, seen: Mapping[str, Tensor]
) -> tuple[Encoding | None, str]:
    """The tree with all its sites compressed, or why not."""
    evidence = {s.key: tree.hand_down_to(s.path, seen) for s in sites}
    weights = {s.key: tree.at(s.path) for s in sites}
    result = settled(
        method, sites, lambda ask: {s.key: method.observe(s, weights[s.key], evidence[s.key], ask) for s in sites}
    )
    if result.skipped or not result.steps:
        return None, next(iter(result.skipped.values()), "found nothing to do")
    by_key = {s.key: s for s in sites}
    for step in result.steps:
        mine = [by_key[target] for target in step.targets]
        made = method.apply(mine, {s.key: weights[s.key] for s in mine}, step.entry, result.shared, evidence)
        for site in mine:
            tree = tree.put(site.path, made[site.key])
    return tree, ""
