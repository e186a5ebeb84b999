"""A recipe: methods and training stages, one after the other, over the trees of one network."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn import functional as F

from gossamer.drive.block_journal import Checkpoint
from gossamer.drive.evidence import gather, inputs_of
from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.source import ModelSource, TreeSource
from gossamer.drive.tune import Loss, Products, Tune, batches_of, train
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.weights import Concat, View
from gossamer.errors import CompositionError, DataError, GossamerError, PlanError
from gossamer.methods.base import DENSE, Evidence, Method, Site, matches, patterns_in
from gossamer.network.attach import attach, harvest
from gossamer.network.inspect import specs

__all__ = ["Recipe", "Stage", "State", "run"]


@dataclass
class State:
    """What a recipe works on; the only thing in a run that changes.

    Args:
        model: the dense network; never changed.
        specs: its tensors.
        trees: per canonical name, the current encoding.
        data: training data, or None.
        loss: for fine-tuning.
        progress: where to say how far it is.
        training: False: entries that train are passed over, gradual ones are planned at their end (a dry run).
        plans: what each method decided, as JSON.
        skipped: tensor or site → why a method left it alone.
        checkpoint: where entries that take long keep what they have finished, or None.
        live: what makes a network multiply by its live values, for ``products`` of `Tune`.
        entry: number of the present entry.
    """

    model: nn.Module
    specs: tuple[TensorSpec, ...]
    trees: dict[str, Encoding]
    data: Iterable[Any] | None
    loss: Loss
    progress: Progress
    training: bool = True
    plans: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    live: Products | None = None
    entry: int = 0

    def source(self) -> TreeSource:
        """The current trees as a source."""
        return TreeSource(self.specs, self.trees)

    def evidence(self, method: Method) -> Mapping[str, Evidence]:
        """The statistics that a method needs, gathered with the current trees.

        Raises:
            DataError: a method that needs data, and none were given.
        """
        if not method.needs:
            return {}
        if self.data is None:
            name, needs = type(method).__name__, ", ".join(sorted(method.needs))
            raise DataError(f"{name}: found no data, expected data=… to gather {needs} from")
        return gather(
            self.model, self.specs, self.trees, method.needs, self.data, loss=self.loss, progress=self.progress
        )

    def network(self) -> nn.Module:
        """A copy of the network with the current trees attached, ready to train."""
        return attach(copy.deepcopy(self.model), self.specs, self.trees)

    def take(self, network: nn.Module) -> None:
        """Read the trees back from a trained network."""
        self.trees = harvest(network, self.specs, self.trees)


class Stage(ABC):
    """A step of a recipe that is not a method, such as training."""

    @property
    def needs_data(self) -> bool:
        """Whether it cannot run without training data."""
        return False

    def inside(self) -> tuple[Method, ...]:
        """The methods that it runs, for checking a recipe before work starts."""
        return ()

    def check(self, where: str, listed: Sequence[TensorSpec], possible: dict[str, set[Skeleton]]) -> None:
        """Refuse what cannot work with these tensors, before work starts; of what `inside` gives that is seen to.

        Args:
            where: beginning of messages.
            listed: the network's tensors.
            possible: what each may be; what this step may leave is put in.

        Raises:
            CompositionError: nothing would be done.
        """
        return

    @abstractmethod
    def run(self, state: State) -> None:
        """Change ``state.trees``."""


Recipe = Sequence["Method | Stage | Tune"]


def check(
    model: nn.Module,
    recipe: Recipe,
    data: Iterable[Any] | None,
    tune: Tune | Callable[[nn.Module], None] | None,
    *,
    training: bool = True,
) -> None:
    """Refuse a recipe that cannot work, before a weight is read or an hour is spent.

    Every method must accept what those before it may leave, names must match something, and entries that train need
    data. What depends on the weights' values (a layer that would die, ranks that do not pay) shows only later.

    Raises:
        PlanError: an entry that is no method, Gradual or Tune.
        CompositionError: a method that will match nothing.
        DataError: training without data.
    """
    if isinstance(recipe, (Method, Stage, Tune)):
        raise PlanError(f"recipe: found {type(recipe).__name__}, expected a list of entries")
    listed = specs(model)
    # Where values decide whether a site is changed at all, the tensor may be either afterwards.
    possible = plain_skeletons(listed)
    for number, entry in enumerate(recipe, 1):
        where = f"recipe entry {number} ({type(entry).__name__})"
        if not isinstance(entry, (Method, Stage, Tune)):
            raise PlanError(f"{where}: found {str(entry)[:60]!r}, expected a method, Gradual, BlockByBlock or Tune")
        for training_run in (entry, getattr(entry, "tune", None), tune):
            if isinstance(training_run, Tune):
                _check_tune(where, training_run, model, listed)
        trains = entry.needs_data if isinstance(entry, Stage) else isinstance(entry, Tune) or isinstance(tune, Tune)
        if trains and training:
            batches_of(data, where)
        methods = (entry,) if isinstance(entry, Method) else entry.inside() if isinstance(entry, Stage) else ()
        looks = isinstance(entry, Method) or training  # the dry run of a stage does without
        looking = next((m for m in methods if m.needs and data is None and looks), None)
        if looking is not None:
            needs = ", ".join(sorted(looking.needs))
            raise DataError(f"{where}: found no data, expected data=… to gather {needs} from")
        if isinstance(entry, Stage):
            entry.check(where, listed, possible)
        for method in methods:
            check_patterns(f"{where}: {type(method).__name__}", method.only, method.skip, listed)
            # one that looks at an example for its own sake matches the same layers without
            unbound = method.uses_example and not method.runs_network
            bound = method if unbound else method.bind(model, example_for(method, data))
            check_method(where, bound, listed, possible)


def check_patterns(
    where: str, only: str | tuple[str, ...], skip: str | tuple[str, ...], listed: Sequence[TensorSpec]
) -> None:
    """Refuse patterns of which one matches no tensor.

    Raises:
        CompositionError: names it.
    """
    names = [n for spec in listed for n in spec.names]
    for setting, given in (("only", only), ("skip", skip)):
        patterns = [p for p in patterns_in(given) if p]
        if setting == "only" and not matches(names, patterns):
            continue  # it matches no layer, which is said with reasons
        for pattern in patterns:
            if not matches(names, pattern):
                said = f"{setting}: found {pattern!r}, which matches no tensor"
                raise CompositionError(f"{where}: {said}, expected names like {', '.join(names[:4])}")


def _check_tune(where: str, tune: Tune, model: nn.Module, listed: Sequence[TensorSpec]) -> None:
    """Names that match nothing would only show when the run begins, hours later."""
    names = [n for spec in listed for n in spec.names]
    for pattern in patterns_in(tune.skip):
        if not matches(names, pattern):
            said = f"Tune: skip: found {pattern!r}, which matches no tensor"
            raise PlanError(f"{where}: {said}, expected names like {', '.join(names[:4])}")
    modules = dict(model.named_modules())
    for setting, pairs in (("hidden", tune.hidden), ("attention", tune.attention)):
        for name in (*pairs, *pairs.values()):
            if name not in modules:
                known = ", ".join(list(modules)[1:5])
                raise PlanError(f"{where}: Tune: {setting}: found no module {name!r}, expected names like {known}")


def plain_skeletons(listed: Iterable[TensorSpec]) -> dict[str, set[Skeleton]]:
    """What each tensor is before anything was done."""
    return {s.name: {_plain_skeleton(s)} for s in listed}


def check_method(where: str, bound: Method, listed: Sequence[TensorSpec], possible: dict[str, set[Skeleton]]) -> None:
    """Refuse a method that will match nothing; else put what it may leave into ``possible``.

    Raises:
        CompositionError: says why for the first tensor that was meant.
    """
    reasons, taken = [], False
    for spec in listed:
        after = set()
        for skeleton in possible[spec.name]:
            found = bound.find(spec, skeleton)
            reasons += [f"{spec.name}: {found.reason}"] if found.reason else []
            made = skeleton
            for path in found.paths:
                whole = skeleton == _plain_skeleton(spec)
                if not (whole and bound.refusal(Site(spec, path, _plain_shape(spec)))):
                    taken = True
                    made = made.put(path, bound.produces(skeleton.at(path)))
            after |= {made, skeleton} if bound.leaves_some else {made}
        possible[spec.name] = after
    if not taken:
        names = ", ".join(s.name for s in listed[:4])
        nothing = f"found only={bound.only!r}, expected names like {names}" if bound.only else names
        why = (reasons or [nothing])[0]
        raise CompositionError(f"{where}: {type(bound).__name__} matches no layer: {why}")


def _plain_skeleton(spec: TensorSpec) -> Skeleton:
    """What a source delivers for a tensor to which nothing was done."""
    if spec.output_first:
        return Skeleton(View, (("inner", DENSE),))
    return Skeleton(Concat, tuple((f"members.{i}", DENSE) for i in range(spec.gates))) if spec.gates > 1 else DENSE


def _plain_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Shape of the weight in it, or of each of its gates."""
    if spec.output_first:
        return tuple(spec.shape[i] for i in spec.output_first)
    return (spec.shape[0] // spec.gates, *spec.shape[1:]) if spec.gates > 1 else spec.shape


def example_for(method: Method, data: Iterable[Any] | None) -> Any:
    """Inputs of the first batch for a method that runs the network to bind to it; None for others and without data."""
    if data is None or not method.uses_example:
        return None
    batch = next(iter(data), None)
    return None if batch is None else inputs_of(batch)


def run_method(method: Method, state: State, evidence: Mapping[str, Evidence] | None = None) -> None:
    """Plan a method over the current trees and carry the plan out; without evidence what it needs is gathered.

    A method of several passes is planned so many times, with new evidence of what the one before left.
    """
    bound = method.bind(state.model, example_for(method, state.data))
    passes = bound.passes if evidence is None else 1
    for k in range(1, passes + 1):
        now = bound if k == passes else bound.at(k / passes)
        planned = plan_method(now, state.source(), state.evidence(bound) if evidence is None else evidence)
        state.trees |= apply_plan(planned, state.source())
    state.plans.append(plan_json(method, planned))
    for site, why in planned.skipped.items():
        state.skipped.setdefault(site, f"{type(method).__name__}: {why}")


def plan_json(method: Method, planned: Planned) -> dict[str, Any]:
    """What a method decided, as JSON."""
    steps = [{"targets": list(s.targets), **s.entry} for s in planned.plan.steps]
    return {"method": type(method).__name__, "steps": steps}


def run(
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Iterable[Any] | None = None,
    tune: Tune | Callable[[nn.Module], None] | None = None,
    loss: Loss = F.cross_entropy,
    progress: Progress | None = None,
    training: bool = True,
    checkpoint: Checkpoint | None = None,
    live: Products | None = None,
) -> State:
    """Run a recipe over a network in memory.

    Args:
        model: dense network in eval or train mode; not changed.
        recipe: methods, stages and `Tune` entries, in order; an empty one leaves lossless coding alone.
        data: batches for the entries that train.
        tune: after every method, train like this, or call this with the trainable network.
        loss: (outputs, targets) → scalar.
        progress: where to say how far it is.
        training: False for a dry run, which needs no data.
        checkpoint: where `BlockByBlock` and `RelativeEntropy` entries keep what they have done; others start anew.
        live: see `State`.

    Returns:
        The final state.

    Raises:
        CompositionError: a method that does not accept what is there.
        DataError: weights that are not finite, or data that do not fit.
    """
    check(model, recipe, data, tune if training else None, training=training)
    # A copy: trees share memory with what they were read from, and the caller may go on training.
    own = copy.deepcopy(model).eval()
    source = ModelSource(own)
    trees = {spec.name: source.read(spec.name) for spec in source.specs()}
    # What trains in the network trains in its copies: biases and norms are tuned with the encoded weights.
    how = progress or NoProgress()
    state = State(own, source.specs(), trees, data, loss, how, training, checkpoint=checkpoint, live=live)
    for number, entry in enumerate(recipe, 1):
        state.entry = number
        try:
            if isinstance(entry, Method):
                run_method(entry, state)
                if tune is not None:
                    fine_tune(tune, state, f"fine-tuning after {type(entry).__name__}")
            elif isinstance(entry, Tune):
                fine_tune(entry, state, "fine-tuning")
            else:
                entry.run(state)
        except GossamerError as error:
            raise type(error)(f"recipe entry {number} ({type(entry).__name__}): {error}") from error
    return state


def fine_tune(tune: Tune | Callable[[nn.Module], None], state: State, title: str) -> None:
    """Train the leaves of the current trees, then read them back."""
    if not state.training:
        return
    network = state.network()
    if isinstance(tune, Tune):
        batches = batches_of(state.data, title)
        teacher = state.model if tune.taught else None
        train(
            network,
            batches,
            tune,
            teacher=teacher,
            loss=state.loss,
            progress=state.progress,
            title=title,
            live=state.live,
        )
    else:
        tune(network)
        network.eval()
    state.take(network)
