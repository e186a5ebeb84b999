"""One run of `BlockByBlock`: what is known of the network and of the run so far, and the work on each step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from gossamer.drive.block_evidence import StepEvidence, WalkEvidence, portions, short_of_rows
from gossamer.drive.block_journal import BlockJournal, relinked, sum_of_data, sum_of_trees
from gossamer.drive.blocks import find_blocks, split
from gossamer.drive.evidence import gather, twin
from gossamer.drive.one_shot import Planned, apply_plan, apply_step, plan_method
from gossamer.drive.plan_record import plan_from_record, plan_to_record
from gossamer.drive.recipe import State, plan_json
from gossamer.drive.route import OUTSIDE, Route, find_route, together
from gossamer.drive.shelf import Shelf
from gossamer.drive.source import TreeSource
from gossamer.drive.walk import Walk, verified
from gossamer.encoding.node import INPUT_STATISTICS, Encoding, Leaf
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.weights import Kept
from gossamer.errors import CompositionError
from gossamer.methods.base import Evidence, Method, Step
from gossamer.network.inspect import assign, tensors
from gossamer.network.rebuild import refresh

__all__ = ["BlockRun", "Calibration"]

_GROUPS = 8  # of blocks, where the part before each must be run anew
_UNSEEN = "the first batch gives this tensor no inputs that can be seen: it stays as it is"


@dataclass(frozen=True)
class Calibration:
    """A batch, and what the network takes of it."""

    batch: Any
    inputs: Any


@final
class BlockRun:
    """Everything that one run knows.

    Args:
        state: of the recipe.
        methods: bound.
        batches: that the network is run on.
        blocks: names of blocks, or none.
        layer_by_layer: as in `BlockByBlock`.
        activation_bytes: as there.
        statistic_bytes: as there.
        settings: the recipe's entry, to tell runs apart.

    Raises:
        DataError: data that the network rejects, activations that are not finite.
        CompositionError: a method that finds nothing to do in any block.
        PlanError: a checkpoint of another run.
    """

    def __init__(
        self,
        state: State,
        methods: tuple[Method, ...],
        batches: Sequence[Calibration],
        *,
        blocks: tuple[str, ...],
        layer_by_layer: bool,
        activation_bytes: int,
        statistic_bytes: int,
        settings: Any,
    ) -> None:
        self._state, self._methods, self._batches = state, methods, batches
        self._layer_by_layer, self._statistic_bytes = layer_by_layer, statistic_bytes
        self._specs = {s.name: s for s in state.specs}
        self._needs = frozenset(n for m in methods for n in m.needs)
        seen_by_inputs = self._needs & INPUT_STATISTICS
        self._inputs = seen_by_inputs | {"count"} if "gram" in seen_by_inputs else seen_by_inputs
        self._network = twin(state.model, state.specs, state.trees)
        self._blocks = find_blocks(self._network, blocks)
        route = self._found_route()
        route = verified(self._network, self._blocks, route, batches[0].inputs)
        self._route = route.grouped(_GROUPS) if route.broken else route
        self._kept = {id(leaf.tensor): leaf for tree in state.trees.values() for leaf in _masks_of_channels(tree)}
        self._place = self._places()
        self._journal = self._opened(settings)
        self._shelf = Shelf(activation_bytes, self._journal.folder if self._journal else None)
        self._done, self._total, self._title = 0, 0, ""
        self._walk = self._walking(self._shelf)
        self._fixed: dict[str, Evidence] = {}
        self._skipped: dict[str, str] = {}
        self._short: dict[str, tuple[int, int]] = {}
        self._steps_of: dict[int, list[Step]] = {}
        self._first: Planned | None = None
        self._later: list[list[dict[str, Any]]] = [[] for _ in methods]
        self._nothing: list[str] = ["" for _ in methods]

    def _found_route(self) -> Route:
        """Blocks that are never called as a whole are divided until their parts are, or have none."""
        while True:
            route = find_route(self._network, self._blocks, self._state.specs, self._batches[0].inputs, "batch 0")
            called = {b for members in route.steps for b in members}
            parts = split(self._blocks, [b for b in range(len(self._blocks)) if b not in called])
            if [p.name for p in parts] == [b.name for b in self._blocks]:
                return route
            self._blocks = parts

    def _walking(self, shelf: Shelf) -> Walk:
        return Walk(
            self._network,
            self._blocks,
            self._route,
            [b.inputs for b in self._batches],
            shelf,
            self._state.specs,
            chained=not self._route.broken,
            report=self._tick,
        )

    def _tick(self) -> None:
        self._done += 1
        self._state.progress.update(self._title, min(self._done, self._total), self._total)

    def _places(self) -> dict[str, int]:
        """The step of each tensor; of those that share a leaf that methods may change, or are used in several, none."""
        place = {s.name: self._route.inside.get(s.name, OUTSIDE) for s in self._state.specs}
        owners: dict[int, list[str]] = {}
        for name in place:
            for leaf in self._state.trees[name].leaves():
                if id(leaf.tensor) not in self._kept:
                    owners.setdefault(id(leaf.tensor), []).append(name)
        for names in owners.values():
            together(place, names)
        return place

    def _opened(self, settings: Any) -> BlockJournal | None:
        checkpoint = self._state.checkpoint
        if checkpoint is None:
            return None
        folder = checkpoint.folder / f"entry-{self._state.entry}"
        start = {
            "recipe": repr(settings),
            "network": sum_of_trees(self._state.specs, self._state.trees),
            "data": sum_of_data([b.batch for b in self._batches]),
            "loss": _named(self._state.loss),
        }
        return BlockJournal(dataclasses.replace(checkpoint, folder=folder), start)

    def run(self) -> None:
        """Plan, then go through the steps."""
        try:
            self._fixed |= self._measured("start", self._outside(), self._needs - INPUT_STATISTICS)
            self._plan_first()
            recorded = self._journal.steps if self._journal else []
            done = [self._take_up(record) for record in recorded]
            if recorded and self._journal:
                for step, found in recorded[-1]["outputs"]:
                    self._shelf.restore(step, found)
            if OUTSIDE not in done:
                self._step(OUTSIDE)
            per_step = 1 + bool(self._inputs)
            self._title, self._done = "block by block", 0
            self._total = len(self._route.steps) * per_step * len(self._batches)
            for step in range(len(self._route.steps)):
                if step not in done:
                    self._step(step)
                self._done = (step + 1) * per_step * len(self._batches)
            self._tell()
            if self._journal:
                self._shelf.close()
                self._journal.close(complete=True)
        finally:
            self._shelf.close()
            if self._journal:
                self._journal.close(complete=False)

    def _outside(self) -> frozenset[str]:
        return frozenset(name for name, step in self._place.items() if step == OUTSIDE)

    def _measured(self, title: str, names: frozenset[str], others: frozenset[str]) -> Mapping[str, Evidence]:
        """Of the dense network: inputs of some tensors; of all tensors what is not a statistic of inputs."""
        names = frozenset(n for n in names if n in self._route.rows)
        if not (names and self._inputs) and not others:
            return {}
        found = self._journal.evidence(title) if self._journal else None
        if found is not None:
            return found
        state = self._state
        settings: dict[str, Any] = {"loss": state.loss, "batches": len(self._batches), "progress": state.progress}
        data = [b.batch for b in self._batches]
        made: dict[str, Evidence] = {}
        if others:
            made |= gather(state.model, state.specs, state.trees, others, data, **settings)
        if names and self._inputs:
            inputs = gather(state.model, state.specs, state.trees, self._inputs, data, names=names, **settings)
            made |= {name: {**made.get(name, {}), **inputs[name]} for name in inputs}
        if self._journal:
            self._journal.keep_evidence(title, made)
        return made

    def _source(self, method: Method, names: Iterable[str]) -> TreeSource:
        """The present trees of those tensors of which the method can have what it needs."""
        wanted = frozenset(names)
        order = {n: i for i, n in enumerate(n for group in self._route.order for n in group)}
        specs = []
        for spec in sorted(
            (s for s in self._state.specs if s.name in wanted),
            key=lambda s: (self._place[s.name], order.get(s.name, len(order))),
        ):
            if method.needs & INPUT_STATISTICS and spec.name not in self._route.rows:
                if method.find(spec, skeleton_of(self._state.trees[spec.name])).paths:
                    self._skipped.setdefault(spec.name, f"{type(method).__name__}: {_UNSEEN}")
                continue
            specs.append(spec)
        return TreeSource(specs, self._state.trees)

    def _plan_first(self) -> None:
        """Plan the first method for the whole network; what its steps join is done together."""
        method = self._methods[0]
        source = self._source(method, self._specs)
        stored = self._journal.plan if self._journal else None
        if stored is not None:
            planned = plan_method(method, source, plan=plan_from_record(stored))
        else:
            evidence = self._for_planning(method) if method.observes else {}
            planned = plan_method(method, source, evidence)
            if self._journal:
                self._journal.planned(plan_to_record(planned.plan))
        self._walk.restart()
        self._first = dataclasses.replace(planned, evidence={})
        before = self._outside()
        for step in planned.plan.steps:
            together(self._place, self._tensors(step))
        more = self._outside() - before
        self._fixed |= {
            n: {**self._fixed.get(n, {}), **e} for n, e in self._measured("joined", more, frozenset()).items()
        }
        for step in planned.plan.steps:
            self._steps_of.setdefault(self._place[self._tensors(step)[0]], []).append(step)

    def _for_planning(self, method: Method) -> Mapping[str, Evidence]:
        needs = method.needs & INPUT_STATISTICS
        if not needs:
            return self._fixed
        parts = {
            step: portions(self._members(step), needs, self._statistic_bytes) for step in range(len(self._route.steps))
        }
        self._title, self._done = "looking at the dense network", 0
        self._total = len(self._route.steps) * len(self._batches)
        return WalkEvidence(self._walk, parts, needs, self._fixed)

    def _members(self, step: int) -> list[TensorSpec]:
        """Tensors of a step that have inputs, in the order of their use."""
        names = [n for group in self._route.order for n in group if self._place.get(n) == step]
        return [self._specs[n] for n in names]

    def _tensors(self, step: Step) -> list[str]:
        assert self._first is not None
        return list(dict.fromkeys(p.spec.name for t in step.targets for p in self._first.places(t)))

    def _step(self, step: int) -> None:
        """Evidence, methods, new weights, new outputs, and a record of it."""
        state = self._state
        names = [n for n, place in self._place.items() if place == step]
        before = {n: state.trees[n] for n in names}
        originals: dict[str, Tensor] = {}
        counts = [len(plans) for plans in self._later]
        for unit in self._units(step, names):
            evidence = self._evidence(step, unit)
            changed = self._changed(step, unit, evidence)
            if isinstance(evidence, StepEvidence):
                short = {n: c for n, c in evidence.found_counts.items() if self._specs[n].kind is not Kind.EMBEDDING}
                self._short |= short_of_rows(short, warn=not self._short)
            held = tensors(self._network)
            originals |= {n: held[n] for n in changed if n not in originals}
            self._put(changed)
        new = [self._specs[n] for n in names if state.trees[n] is not before[n]]
        if self._journal:
            kept = self._journal.keep_trees(step, new, state.trees)
            state.trees |= self._relinked(kept)
        if step != OUTSIDE and not self._route.broken and step + 1 < len(self._route.steps):
            self._walk.go(step, frozenset(), frozenset(), record=True)
        if self._journal:
            held_outputs = [s for s in self._shelf.steps if self._route.last_use(s) > step]
            plans = [later[count:] for later, count in zip(self._later, counts, strict=True)]
            self._journal.finished(
                {
                    "step": step,
                    "tensors": [s.name for s in new],
                    "plans": plans,
                    "nothing": self._nothing,
                    "skipped": self._skipped,
                    "short": {name: list(found) for name, found in self._short.items()},
                    "outline": self._walk.outlines.get(step),
                    "outputs": [[s, self._shelf.sealed(s)] for s in held_outputs],
                }
            )
        if step != OUTSIDE:
            self._walk.forget(step)
            if not self._route.broken:  # never run again: only one block is held as it is and as it was
                self._put_dense(originals)

    def _evidence(self, step: int, unit: Sequence[str]) -> Mapping[str, Evidence]:
        if step == OUTSIDE or not self._inputs:
            return self._fixed
        specs = [s for s in self._members(step) if s.name in unit]
        parts = portions(specs, self._inputs, self._statistic_bytes)
        return StepEvidence(self._walk, step, parts, self._inputs, self._fixed)

    def _units(self, step: int, names: Sequence[str]) -> list[list[str]]:
        """Tensors that are changed at the same time; each step of the plan with its last tensor."""
        if not self._layer_by_layer or step == OUTSIDE:
            return [list(names)]
        groups = [[n for n in group if n in names] for group in self._route.order]
        groups = [group for group in groups if group] or [[]]
        known = {n for group in groups for n in group}
        groups[0] = [*(n for n in names if n not in known), *groups[0]]
        place = {n: i for i, group in enumerate(groups) for n in group}
        for planned in self._steps_of.get(step, []):
            last = max(place[n] for n in self._tensors(planned))
            place |= dict.fromkeys(self._tensors(planned), last)
        units = [[n for n, unit in place.items() if unit == i] for i in range(len(groups))]
        return [unit for unit in units if unit]

    def _changed(self, step: int, unit: Sequence[str], evidence: Mapping[str, Evidence]) -> dict[str, Encoding]:
        """Let all methods work on some tensors; puts the new trees into the state."""
        with warnings.catch_warnings():
            # of too few rows the run has warned once, with the first layer
            warnings.filterwarnings("ignore", message=".* rows of calibration data for .* inputs")
            return self._worked(step, unit, evidence)

    def _worked(self, step: int, unit: Sequence[str], evidence: Mapping[str, Evidence]) -> dict[str, Encoding]:
        state, first = self._state, self._first
        assert first is not None
        changed: dict[str, Encoding] = {}
        now = dataclasses.replace(first, evidence=evidence)
        for planned in self._steps_of.get(step, []):
            if self._tensors(planned)[0] in unit:
                new = apply_step(now, planned, state.trees.__getitem__)
                state.trees |= new
                changed |= new
        for number, method in enumerate(self._methods[1:], 1):
            source = self._source(method, unit)
            try:
                local = plan_method(method, source, evidence)
            except CompositionError as error:
                self._nothing[number] = self._nothing[number] or str(error)
                continue
            new = apply_plan(local, source)
            state.trees |= new
            changed |= new
            self._later[number].append(plan_json(method, local))
            for site, why in local.skipped.items():
                self._skipped.setdefault(site, f"{type(method).__name__}: {why}")
        return changed

    def _put(self, changed: Mapping[str, Encoding]) -> None:
        specs = self._specs
        self._put_dense({n: tree.to_dense().detach().to(specs[n].dtype) for n, tree in changed.items()})

    def _put_dense(self, dense: Mapping[str, Tensor]) -> None:
        for name, tensor in dense.items():
            assign(self._network, self._specs[name].names, tensor)
        refresh(self._network)

    def _take_up(self, record: Any) -> int:
        """Put in what an earlier run made of a step."""
        assert self._journal is not None
        step = int(record["step"])
        specs = [self._specs[n] for n in record["tensors"]]
        trees = self._relinked(self._journal.trees(step, specs))
        self._state.trees |= trees
        if step == OUTSIDE or self._route.broken:
            self._put(trees)
        for number, plans in enumerate(record["plans"]):
            self._later[number] += plans
        self._nothing, self._skipped = record["nothing"], {**self._skipped, **record["skipped"]}
        self._short |= {name: (int(rows), int(inputs)) for name, (rows, inputs) in record["short"].items()}
        if record["outline"] is not None:
            self._walk.outlines[step] = record["outline"]
        return step

    def _relinked(self, trees: Mapping[str, Encoding]) -> dict[str, Encoding]:
        assert self._first is not None
        return relinked(trees, self._first.plan.shared, tuple(self._kept.values()))

    def _tell(self) -> None:
        """Plans and what was skipped, into the state."""
        state, first = self._state, self._first
        assert first is not None
        about: dict[str, Any] = {"blocks": [[self._blocks[b].name for b in members] for members in self._route.steps]}
        if self._route.broken:
            about["run_anew"] = self._route.broken
        if self._short:
            about["rows_below_inputs"] = {name: list(found) for name, found in self._short.items()}
        for number, method in enumerate(self._methods):
            if number and not self._later[number]:
                raise CompositionError(self._nothing[number] or f"{type(method).__name__} changes no layer")
            steps = [s for plan in self._later[number] for s in plan["steps"]]
            plan = plan_json(method, first) if number == 0 else {"method": type(method).__name__, "steps": steps}
            state.plans.append({**plan, **about})
        for site, why in first.skipped.items():
            state.skipped.setdefault(site, f"{type(self._methods[0]).__name__}: {why}")
        for site, why in self._skipped.items():
            state.skipped.setdefault(site, why)


def _masks_of_channels(tree: Encoding) -> list[Leaf]:
    """What says which channels are left, which coupled tensors share: no method changes it."""
    return [
        leaf
        for _, node in tree.nodes()
        if isinstance(node, Kept)
        for mask in node.keep
        if mask is not None
        for leaf in mask.leaves()
    ]


def _named(function: Any) -> str:
    """Where a function is defined; of an object its type's name."""
    known = function if hasattr(function, "__qualname__") else type(function)
    return f"{known.__module__}.{known.__qualname__}"
