"""Pruning during training: sparsity rises along a cubic ramp while the survivors train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.recipe import Stage, State, example_for, plan_json, run_method
from gossamer.drive.source import TreeSource
from gossamer.drive.steps import FROM_STEPS, StepEvidence, nothing_yet
from gossamer.drive.tune import Tune, batches_of, train
from gossamer.errors import PlanError
from gossamer.methods.base import Method
from gossamer.network.attach import attached
from gossamer.network.evolve import evolve

__all__ = ["Gradual"]


@final
@dataclass(frozen=True, kw_only=True)
class Gradual(Stage):
    """Reach the methods' sparsity in ``updates`` steps while training, then train on at full sparsity.

    At the u-th of U updates each method runs as ``method.at(u / U)``, for magnitude pruning
    sparsity · (1 − (1 − u/U)³). Survivors keep their optimiser state; what is pruned does not come back.

    The first update comes before the first step, the last as long before the end of the ramp as updates are apart. If
    a method ranks by what training steps show, every update comes one interval later: with the gradients of the steps
    since the one before, with the movement of all steps.

    Args:
        methods: pruning methods, run in order at every update.
        tune: the training run over ramp and recovery together.
        updates: number of updates, ≥ 1; 1 is one-shot pruning followed by training.
        ramp: share of the run in which sparsity rises, 0 to 1; the rest recovers.

    Source: Zhu and Gupta 2017, arXiv 1710.01878.
    """

    methods: tuple[Method, ...]
    tune: Tune = field(default_factory=Tune)
    updates: int = 20
    ramp: float = 0.6

    def __post_init__(self) -> None:
        given: object = self.methods
        object.__setattr__(self, "methods", tuple(given) if isinstance(given, (tuple, list)) else (given,))
        for method in self.methods:
            if not isinstance(method, Method):
                raise PlanError(f"Gradual: found {type(method).__name__} among methods, expected pruning methods")
            if method.needs - FROM_STEPS:
                needs = ", ".join(sorted(method.needs - FROM_STEPS))
                raise PlanError(
                    f"Gradual: found {type(method).__name__}, which needs {needs}, expected a method that training "
                    "steps can rank for; in a recipe of its own it runs"
                )
            method.at(0.5)  # refuses a method without degrees now rather than in the middle of training
        if self.tune.held_out is not None:
            raise PlanError("Gradual: found held_out in tune, expected it in a Tune entry afterwards")
        if not self.methods or self.updates < 1 or not 0 <= self.ramp <= 1:
            raise PlanError(
                f"Gradual: found {len(self.methods)} methods, {self.updates} updates, ramp {self.ramp}, "
                "expected at least one method, one update, and a ramp of 0 to 1"
            )

    @property
    def needs_data(self) -> bool:
        """It trains."""
        return True

    def inside(self) -> tuple[Method, ...]:
        """The pruning methods."""
        return self.methods

    def run(self, state: State) -> None:
        """Attach, train with updates on the way, read back."""
        if not state.training:
            for method in self.methods:
                run_method(method, state, nothing_yet(state.trees, method.needs))
            return
        data = batches_of(state.data, "gradual pruning")
        ramp_steps = max(1, round(self.ramp * self.tune.epochs * len(data)))
        needs = frozenset(n for method in self.methods for n in method.needs) & FROM_STEPS
        # Update number 1 comes before training, or after the first steps where those give the evidence for it.
        first = 0 if needs else 1
        at_step = {round(u * ramp_steps / self.updates): u + first for u in range(1, self.updates + 1 - first)}
        if max(at_step, default=0) >= self.tune.epochs * len(data) or (needs and 0 in at_step):
            raise PlanError(f"Gradual: found {self.updates} updates in {ramp_steps} steps, expected fewer")
        methods = tuple(m.bind(state.model, example_for(m, state.data)) for m in self.methods)
        for method in methods:
            run_method(
                method.at(first / self.updates), state, nothing_yet(state.trees, method.needs) if needs else None
            )
        reached = dict(zip(range(len(methods)), state.plans[-len(self.methods) :], strict=True))
        del state.plans[-len(self.methods) :]
        network = state.network()
        steps_say = StepEvidence(network, [s.name for s in state.specs], needs)

        def before_step(step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
            del steps
            if step not in at_step:
                return
            evidence = steps_say.evidence()
            for i, method in enumerate(methods):
                trees = {name: holder.tree for name, holder in attached(network).items()}
                specs = tuple(s for s in state.specs if s.name in trees)
                source = TreeSource(specs, trees)
                planned = plan_method(method.at(at_step[step] / self.updates), source, evidence)
                evolve(network, apply_plan(planned, source), optimizer)
                reached[i] = plan_json(method, planned)
            steps_say.update()

        teacher = state.model if self.tune.taught else None
        train(
            network,
            data,
            self.tune,
            teacher=teacher,
            loss=state.loss,
            progress=state.progress,
            title="gradual pruning",
            before_step=before_step,
            live=state.live,
            after_backward=steps_say.gather if needs else None,
        )
        state.take(network)
        state.plans += [{**plan, "updates": self.updates} for plan in reached.values()]
