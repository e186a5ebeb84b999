"""Fine-tuning for quantization: the forward pass computes with quantized weights, the latent ones behind them train."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch

from gossamer.drive.learning import quantizers, rate, settle
from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.drive.rate_control import RateLoss, blanked
from gossamer.drive.recipe import Stage, State, example_for, plan_json, run_method
from gossamer.drive.source import TreeSource
from gossamer.drive.tune import Tune, batches_of, train
from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.values import Constant, Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, FileFrame, Method
from gossamer.methods.quantize.rate_budget import wanted_bytes
from gossamer.network.attach import Attached, attach, attached

__all__ = ["Latents", "QuantizationAware"]


@final
@dataclass(frozen=True, kw_only=True)
class QuantizationAware(Stage):
    """Train with the weights as the methods will leave them, then apply the methods.

    The float weights stay (dense, or the survivors of a mask) and train; every forward pass computes with their
    quantized values, gradients go straight through the rounding. Scales and centroids are fitted to the weights
    anew every ``refresh`` steps and kept in between; which level or centroid a weight takes is decided at every step.
    Methods that learn their scales (`LearnedStep`) fit them once and train them. The result holds exactly
    the weights that a forward pass after the last step computes with.

    Args:
        methods: quantizing or sharing ones, on different tensors.
        tune: the training run.
        refresh: steps between fits, ≥ 1. Fits cost about a tenth of a step for rounding and ternary weights, several
            steps for k-means.
        rate: λ, price of the mean weight's bits in units of the loss, for methods that say bits (`LearnedRate`); or
        target: size of the whole file, "100x" or bytes, from which λ follows during training. The file is that large
            up to a few per cent, as the coder finds more or less than −log2 of the symbols' shares.
        ramp: share of the run in which λ rises to ``rate``, or the bits fall to the target, 0 to 1.

    Source: Jacob et al. 2018, arXiv 1712.05877, section 3; Bengio et al. 2013, arXiv 1308.3432, section 4.
    """

    methods: tuple[Method, ...]
    tune: Tune = field(default_factory=Tune)
    refresh: int = 1
    rate: float | None = None
    target: str | int | None = None
    ramp: float = 0.6

    def __post_init__(self) -> None:
        given: object = self.methods
        object.__setattr__(self, "methods", tuple(given) if isinstance(given, (tuple, list)) else (given,))
        for method in self.methods:
            checked: object = method
            if not isinstance(checked, Method) or not _quantizes(checked):
                found = type(method).__name__
                raise PlanError(f"QuantizationAware: found {found}, expected methods that quantize or share values")
        if not self.methods or self.refresh < 1:
            found = f"{len(self.methods)} methods, refresh {self.refresh}"
            raise PlanError(
                f"QuantizationAware: found {found}, expected at least one method and a refresh of 1 or more"
            )

        self._check_rate()

    def _check_rate(self) -> None:
        if self.rate is None and self.target is None:
            return
        if self.rate is not None and (self.target is not None or not 0 < self.rate < float("inf")):
            found = f"rate {self.rate}, target {self.target}"
            raise PlanError(f"QuantizationAware: found {found}, expected one of them, rate a number above 0")
        if self.target is not None:
            wanted_bytes("QuantizationAware", self.target, FileFrame(1, 0, 0, 0))
        if not 0 <= self.ramp <= 1:
            raise PlanError(f"QuantizationAware: ramp: found {self.ramp}, expected 0 to 1")
        if not any(type(m).symbol_bits is not Method.symbol_bits for m in self.methods):
            names = ", ".join(type(m).__name__ for m in self.methods)
            raise PlanError(f"QuantizationAware: found a price of bits beside {names}, expected one like LearnedRate")

    @property
    def needs_data(self) -> bool:
        """It trains."""
        return True

    def inside(self) -> tuple[Method, ...]:
        """The methods that the weights are trained for."""
        return self.methods

    def run(self, state: State) -> None:
        """Attach, train with quantized forward passes, apply the methods for good."""
        if not state.training:
            for method in self.methods:
                run_method(method, state)
            return
        data = batches_of(state.data, "quantization-aware training")
        latents = Latents(self.methods, state)

        priced = self.rate is not None or self.target is not None
        price = latents.rate_loss(self.rate, self.target, self.ramp) if priced else None

        def before_step(step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
            del optimizer
            if step:
                latents.moved(refresh=step % self.refresh == 0)
            if price is not None:
                price.begin_step(step, steps)

        train(
            latents.network,
            data,
            self.tune,
            teacher=state.model if self.tune.taught else None,
            loss=state.loss,
            progress=state.progress,
            title="quantization-aware training",
            before_step=before_step,
            penalty=price,
            live=state.live,
        )
        latents.settle(refresh=self.tune.epochs * len(data) % self.refresh == 0)
        state.take(latents.network)
        for planned in latents.planned:
            state.plans.append(plan_json(planned.method, planned))
            for site, why in planned.skipped.items():
                state.skipped.setdefault(site, f"{type(planned.method).__name__}: {why}")


def _quantizes(method: Method) -> bool:
    """Whether a method turns plain numbers into values of another kind, in place or under a mask that it finds."""
    made = [rule.produces(DENSE) for rule in method.rules() if rule.accepts.accepts(DENSE)]
    values = [dict(m.children)["value"] if m.kind is Masked else m for m in made]
    masks = [m.kind is Masked and v.kind is Dense for m, v in zip(made, values, strict=True)]
    return bool(made) and not any(masks) and all(issubclass(v.kind, Value) and v.kind is not Constant for v in values)


@final
class Latents:
    """A network that computes with quantized weights while the latent ones train.

    Args:
        methods: on different tensors, each takes what those before it left.
        state: of the recipe; not changed.
    """

    def __init__(self, methods: tuple[Method, ...], state: State) -> None:
        def plan(method: Method, source: TreeSource) -> Planned:
            bound = method.bind(state.model, example_for(method, state.data))
            return plan_method(bound, source, state.evidence(bound))

        self._specs = state.specs
        self._through, self.planned, self._made = quantizers(methods, state.specs, state.trees, plan)
        self.network = attach(copy.deepcopy(state.model), state.specs, state.trees, self._through)

    def moved(self, *, refresh: bool) -> None:
        """Say that the latent weights have changed.

        Args:
            refresh: fit scales and centroids to them anew, except those that train.
        """
        for through in self._through.values():
            for slot in through.slots.values():
                slot.fresh = False
        for i, planned in enumerate(self.planned):
            if refresh and not planned.method.learns:
                self._refit(i)

    def settle(self, *, refresh: bool) -> None:
        """Replace the latent weights, which have changed, by the quantized ones, for good.

        Args:
            refresh: as in `moved`; methods that can do nothing else fit anew in any case.
        """
        self.moved(refresh=refresh)
        for i, planned in enumerate(self.planned):
            if not (refresh or planned.method.learns or self._assigns(planned)):
                self._refit(i)
        settle(self.network)

    def rate_loss(self, price: float | None, target: str | int | None, ramp: float) -> RateLoss:
        """The bits of all methods that say them, as a term of the loss, see `RateLoss`."""
        saying = [p for p in self.planned if type(p.method).symbol_bits is not Method.symbol_bits]
        sites = [(p.method, s) for p in saying for s in p.sites.values()]
        names = {s.spec.name for _, s in sites}
        blanks = blanked(self._made, sites)
        weights = sum(prod(s.shape) for _, s in sites)

        def quantized() -> dict[str, Encoding]:
            return {n: self._through[n].quantized(h.tree) for n, h in self._holders().items() if n in names}

        return RateLoss(
            lambda: rate(self.network),
            quantized,
            weights,
            price=price,
            target=target,
            ramp=ramp,
            blanks=blanks,
            specs=self._specs,
        )

    def _holders(self) -> dict[str, Attached]:
        found = attached(self.network)
        return {name: found[name] for name in self._through}

    def _assigns(self, planned: Planned) -> bool:
        site = next(iter(planned.sites.values()))
        tree = self._holders()[site.spec.name].tree
        slot = self._through[site.spec.name].slots[site.path]
        return planned.method.assign(site, tree.at(site.path), slot.current()) is not None

    def _refit(self, number: int) -> None:
        planned = self.planned[number]
        source = TreeSource(tuple(s for s in self._specs if s.name in self._through), self._seen_by(planned))
        if planned.plan.shared:  # what several tensors hold in common is made by the plan
            planned = self.planned[number] = plan_method(planned.method, source, planned.evidence)
        made = apply_plan(planned, source)
        for site in planned.sites.values():
            slot = self._through[site.spec.name].slots[site.path]
            slot.grid, slot.fresh = made[site.spec.name].at(site.path), True

    def _seen_by(self, planned: Planned) -> dict[str, Encoding]:
        """The latent trees, with the sites of other methods quantized as if those had run before."""
        trees: dict[str, Encoding] = {}
        for name, holder in self._holders().items():
            trees[name] = holder.tree
            for path, slot in self._through[name].slots.items():
                if slot.method is not planned.method:
                    trees[name] = trees[name].put(path, slot.grid)
        return trees
