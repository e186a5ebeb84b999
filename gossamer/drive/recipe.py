"""A recipe: methods and training stages, one after the other, over the trees of one network."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn import functional as F

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.source import ModelSource, TreeSource
from gossamer.drive.tune import Loss, Tune, batches_of, train
from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import GossamerError
from gossamer.methods.base import Method
from gossamer.network.attach import attach, harvest

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
        plans: what each method decided, as JSON.
        skipped: tensor or site → why a method left it alone.
    """

    model: nn.Module
    specs: tuple[TensorSpec, ...]
    trees: dict[str, Encoding]
    data: Iterable[Any] | None
    loss: Loss
    progress: Progress
    plans: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def source(self) -> TreeSource:
        """The current trees as a source."""
        return TreeSource(self.specs, self.trees)

    def network(self) -> nn.Module:
        """A copy of the network with the current trees attached, ready to train."""
        return attach(copy.deepcopy(self.model), self.specs, self.trees)

    def take(self, network: nn.Module) -> None:
        """Read the trees back from a trained network."""
        self.trees = harvest(network, self.specs, self.trees)


class Stage(ABC):
    """A step of a recipe that is not a method: it trains."""

    @abstractmethod
    def run(self, state: State) -> None:
        """Change ``state.trees``."""


Recipe = Sequence["Method | Stage | Tune"]


def run_method(method: Method, state: State) -> None:
    """Plan a method over the current trees and carry the plan out."""
    bound = method.bind(state.model, None)
    planned = plan_method(bound, state.source())
    state.trees |= apply_plan(planned, state.source())
    name = type(method).__name__
    steps = [{"targets": list(s.targets), **s.entry} for s in planned.plan.steps]
    state.plans.append({"method": name, "steps": steps})
    for site, why in planned.skipped.items():
        state.skipped.setdefault(site, f"{name}: {why}")


def run(
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Iterable[Any] | None = None,
    tune: Tune | Callable[[nn.Module], None] | None = None,
    loss: Loss = F.cross_entropy,
    progress: Progress | None = None,
) -> State:
    """Run a recipe over a network in memory.

    Args:
        model: dense network in eval or train mode; not changed.
        recipe: methods, stages and `Tune` entries, in order; an empty one leaves lossless coding alone.
        data: batches for the entries that train.
        tune: after every method, train like this, or call this with the trainable network.
        loss: (outputs, targets) → scalar.
        progress: where to say how far it is.

    Returns:
        The final state.

    Raises:
        CompositionError: a method that does not accept what is there.
        DataError: weights that are not finite, or data that do not fit.
    """
    source = ModelSource(model)
    trees = {spec.name: source.read(spec.name) for spec in source.specs()}
    # What trains in the network trains in its copies: biases and norms are tuned with the encoded weights.
    state = State(copy.deepcopy(model).eval(), source.specs(), trees, data, loss, progress or NoProgress())
    for number, entry in enumerate(recipe, 1):
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
    network = state.network()
    if isinstance(tune, Tune):
        batches = batches_of(state.data, title)
        teacher = state.model if tune.distil else None
        train(network, batches, tune, teacher=teacher, loss=state.loss, progress=state.progress, title=title)
    else:
        tune(network)
        network.eval()
    state.take(network)
