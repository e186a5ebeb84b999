"""BatchNorm folded into the layer before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.encoding.node import Encoding, computable
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Constant, Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import (
    DENSE,
    DERIVED,
    MASKED,
    Evidence,
    Found,
    Method,
    Plan,
    Rule,
    Site,
    Step,
    Summary,
    matches,
)
from gossamer.network.trace import traced

__all__ = ["FoldBatchNorm", "Folding"]


@dataclass(frozen=True)
class Folding:
    """A layer and the BatchNorm that alone reads it.

    Args:
        layer: name of the module.
        norm: name of the BatchNorm.
        eps: of the BatchNorm.
        members: names of all tensors that change; the layer's weight first.
    """

    layer: str
    norm: str
    eps: float
    members: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Method):
    """Scale each output channel of a layer by what the BatchNorm after it would; the BatchNorm only shifts.

    With a = γ / √(σ² + ε): weight a · w, the layer's bias 0, BatchNorm with γ = 1, mean 0, variance 1 − ε and
    bias β + a · (b − μ). (Without γ and β the shift is in the mean.) The network keeps its modules and, in evaluation,
    its function; only the new biases need to be stored, everything else that was per channel is a constant. Attached
    networks keep the constants while they train; a network made by `dense()` would take new statistics in train mode.

    Layers are found by tracing: Linear or convolution, used once, read by one BatchNorm only. Names in ``only`` and
    ``skip`` are those of the layers' weights.

    Cost: linear in the weights. Exact up to rounding in float32.

    Example:
        >>> FoldBatchNorm(skip="stem.*").skip
        'stem.*'

    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.2; Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LINEAR, Kind.CONV, Kind.NORM, Kind.BIAS, Kind.BUFFER})
    leaves_some: ClassVar[bool] = True  # weights keep their skeleton, what is per channel becomes constant

    foldings: tuple[Folding, ...] | None = field(default=None, metadata=DERIVED)
    reasons: tuple[tuple[str, str], ...] = field(default=(), metadata=DERIVED)

    def bind(self, model: nn.Module, example: Tensor | None) -> Method:
        """Find the layers of this network that a BatchNorm follows."""
        del example
        if self.foldings is not None:
            return self
        found, reasons = _foldings(model)
        return dataclasses.replace(self, foldings=found, reasons=tuple(reasons.items()))

    def rules(self) -> tuple[Rule, ...]:
        """Plain and pruned weights stay so; what is per channel becomes constant."""
        return (Rule(DENSE, lambda _: Skeleton(Constant)), Rule(MASKED, lambda s: s))

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Fold before factorizing, sharing or quantizing the layer"

    def _bound(self) -> tuple[Folding, ...]:
        if self.foldings is None:
            raise PlanError("FoldBatchNorm: found no network, expected bind(model) before planning")

        def meant(weight: str) -> bool:
            return (not self.only or matches((weight,), self.only)) and not matches((weight,), self.skip)

        return tuple(f for f in self.foldings if meant(f.members[0]))

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """Every tensor of a layer and its BatchNorm, whole."""
        if not any(name in f.members for f in self._bound() for name in spec.names):
            reasons = dict(self.reasons)
            reason = reasons.get(spec.name, reasons.get("", "") if spec.kind is Kind.NORM else "")
            return Found((), reason if not self.only or matches(spec.names, self.only) else "")
        if spec.aliases:
            return Found((), "is tied")
        path = "/inner" if spec.output_first else ""
        accepted = any(rule.accepts.accepts(skeleton.at(path)) for rule in self.rules())
        return Found((path,)) if accepted else Found((), f"found {skeleton}, expected Dense. {self.advice(skeleton)}")

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Any) -> Plan:
        """One step per layer."""
        del summaries, ask
        keys = {s.spec.name: s.key for s in sites}
        steps, skipped = [], {}
        for folding in self._bound():
            missing = [m for m in folding.members if m not in keys]
            if missing:
                skipped[folding.members[0]] = f"{missing[0]}, which changes with it, cannot be changed"
                continue
            entry = {"norm": folding.norm, "eps": folding.eps}
            steps.append(Step(tuple(keys[m] for m in folding.members), entry))
        return Plan(tuple(steps), {}, skipped)

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        """Fold one BatchNorm into one layer."""
        del shared, evidence
        norm, eps = str(entry["norm"]), float(entry["eps"])
        key = {s.spec.name: s.key for s in sites}
        old = {name: computable(weights[k].to_dense().detach()) for name, k in key.items()}
        layer, bias = sites[0], sites[0].spec.name.removesuffix("weight") + "bias"

        def of_norm(part: str, otherwise: float) -> Tensor:
            return old.get(f"{norm}.{part}", torch.full_like(variance, otherwise))

        variance = old[f"{norm}.running_var"].double()
        scale = of_norm("weight", 1.0) / (variance + eps).sqrt()  # [channels]
        shift = of_norm("bias", 0.0) + scale * (old.get(bias, torch.zeros(())) - old[f"{norm}.running_mean"])
        made: dict[str, Encoding] = {}
        for site in sites:
            part = site.spec.name.removeprefix(norm + ".")
            value = {"running_var": 1 - eps, "weight": 1.0}.get(part, 0.0)
            if part == "num_batches_tracked":
                value = float(old[site.spec.name])
            made[site.key] = Constant(site.shape, value)
        made[layer.key] = _scaled(weights[layer.key], scale)
        carrier, sign = (f"{norm}.bias", 1) if f"{norm}.bias" in key else (f"{norm}.running_mean", -1)
        fixed = carrier.endswith("running_mean")
        spec = next(s.spec for s in sites if s.spec.name == carrier)
        made[key[carrier]] = Dense((sign * shift).to(spec.dtype), fixed)
        return made


def _scaled(weight: Encoding, scale: Tensor) -> Encoding:
    """Rows of a weight times a scale each, in its own dtype."""
    shape = weight.dense_shape()
    if isinstance(weight, Masked):
        positions = weight.where.positions()
        values = weight.value.values(positions).detach()
        rows = scale[(positions // max(1, prod(shape[1:]))).long()]
        return Masked(weight.where, Dense((values.double() * rows).to(values.dtype)))
    dense = weight.to_dense().detach()
    return Dense((dense.double() * scale.view(-1, *(1 for _ in shape[1:]))).to(dense.dtype))


def _foldings(model: nn.Module) -> tuple[tuple[Folding, ...], dict[str, str]]:
    """Layers of a network that a BatchNorm follows, and per BatchNorm that cannot be folded the reason."""
    trace = traced(model)
    if isinstance(trace, str):
        return (), {"": trace}
    found, reasons = [], {}
    for node in trace.graph.nodes:
        norm = trace.layer(node)
        if isinstance(norm, _BatchNorm):
            made = _folding(node, norm, trace.modules, trace.calls)
            if isinstance(made, str):
                reasons[f"{node.target}.weight"] = made
            else:
                found.append(made)
    return tuple(found), reasons


def _folding(
    node: fx.Node, norm: _BatchNorm, modules: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> Folding | str:
    before = node.args[0] if node.args else None
    if not (isinstance(before, fx.Node) and before.op == "call_module"):
        return "no layer comes right before it"
    name, norm_name = str(before.target), str(node.target)
    layer = modules[name]
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        return f"{type(layer).__name__} comes right before it, expected Linear or a convolution"
    if calls[name] > 1 or calls[norm_name] > 1 or len(before.users) > 1:
        return f"{name} or the normalisation is used more than once"
    if norm.running_var is None:
        return "it keeps no statistics"
    if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
        return f"{name} is a grouped transposed convolution"
    if isinstance(layer, nn.Linear) and not isinstance(norm, nn.BatchNorm1d):
        return f"{name} is no convolution"
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    held = {**norm._parameters, **norm._buffers}
    of_layer = [f"{name}.weight", *([f"{name}.bias"] if layer.bias is not None else [])]
    of_norm = [f"{norm_name}.{p}" for p in parts if held.get(p) is not None]
    return Folding(name, norm_name, float(norm.eps), (*of_layer, *of_norm))
