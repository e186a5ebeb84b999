"""How much goes: a fraction of the channels, or as many as a target in parameters, MACs or milliseconds needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.shrink.check import cut_network, shapes_of
from gossamer.methods.shrink.coupling import Coupling, cuts_of
from gossamer.methods.shrink.measured import median_ms, uses_of
from gossamer.network.inspect import specs

__all__ = ["Bound", "Scope", "Target", "keeps", "reach"]

Scope = Literal["uniform", "global"]

_SMALL_LAYER = 16  # below this many channels a multiple of 8 would be all or nothing
_MS_STEPS = 8


@dataclass(frozen=True, eq=False)
class Bound:
    """A network that a method was made concrete for.

    Args:
        couplings: what can go, in the order of the network.
        reasons: weight → why nothing of it can.
        model: in eval mode, never changed.
        example: inputs to measure with, or None.
    """

    couplings: tuple[Coupling, ...]
    reasons: Mapping[str, str]
    model: nn.Module
    example: Any

    def listed(self) -> tuple[TensorSpec, ...]:
        """The network's tensors."""
        return specs(self.model)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Exactly one of four ways to say how small.

    Args:
        sparsity: fraction removed of the channels, heads or blocks.
        parameters: fraction of the parameters that stays at most.
        macs: fraction of the layers' multiplications that stays at most.
        ms: milliseconds of a forward pass with the example, measured.
    """

    sparsity: float | None = None
    parameters: float | None = None
    macs: float | None = None
    ms: float | None = None

    def check(self, who: str) -> None:
        """Refuse none, several, or numbers that mean nothing.

        Raises:
            PlanError: names the method and what was found.
        """
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise PlanError(f"{who}: found {found} of sparsity, parameters, macs and ms, expected exactly one")
        name, value = next(iter(given.items()))
        good = value > 0 if name == "ms" else 0 <= value <= 1
        if not good:
            expected = "a positive number" if name == "ms" else "a number from 0 to 1"
            raise PlanError(f"{who}: {name}: found {value}, expected {expected}")

    def cost(self, bound: Bound, who: str) -> tuple[Callable[[Sequence[tuple[Coupling, Tensor]]], float], float]:
        """What a choice costs in the target's unit, and how much it may.

        Raises:
            PlanError: a target that needs an example when there is none.
        """
        if self.parameters is None and bound.example is None:
            unit = "macs" if self.macs is not None else "ms"
            raise PlanError(f"{who}: {unit}: found no inputs to measure with, expected data=…")
        if self.ms is not None:
            return lambda chosen: median_ms(cut_network(bound.model, chosen)[0], bound.example), self.ms
        listed = bound.listed()
        shapes = shapes_of(listed)
        if self.parameters is not None:
            uses = {s.name: 1 for s in listed if s.kind is not Kind.BUFFER}
        else:
            measured = uses_of(bound.model, bound.example)
            uses = {s.name: sum(measured.get(n, 0) for n in s.names) for s in listed}
        allowed = self.parameters if self.parameters is not None else self.macs
        assert allowed is not None

        def count(chosen: Sequence[tuple[Coupling, Tensor]]) -> float:
            cuts = cuts_of(chosen, shapes)
            total = 0
            for name, times in uses.items():
                small = list(shapes[name])
                for dim, cut in cuts.get(name, {}).items():
                    small[dim] = int(cut.keep.sum()) * cut.repeat
                total += times * prod(small)
            return float(total)

        return count, allowed * count([])


def keeps(
    scored: Sequence[tuple[Coupling, Tensor]], ratio: float, scope: str, multiple: int, *, relative: bool
) -> list[tuple[Coupling, Tensor]]:
    """Which channels stay when a fraction of them goes.

    Args:
        scored: couplings with their scores, higher = keep.
        ratio: fraction that goes, 0 to 1.
        scope: "uniform", of every coupling the same fraction; "global", the worst of all of them.
        multiple: the number of channels that stays is rounded to one of this, where there are 16 or more.
        relative: compare scores across couplings after division by the coupling's mean.

    Returns:
        The couplings with bool masks [channels], True = kept; at least one channel of each stays.
    """
    if scope == "uniform":
        left = [len(s) - round(ratio * len(s)) for _, s in scored]
    else:
        scaled = [s / s.mean().clamp_min(1e-30) if relative else s for _, s in scored]
        everything = torch.cat(scaled) if scaled else torch.zeros(0)
        owner = torch.cat([torch.full((len(s),), i) for i, s in enumerate(scaled)]) if scaled else everything.long()
        worst = everything.argsort(stable=True)[: round(ratio * len(everything))]
        gone = torch.bincount(owner[worst], minlength=len(scaled))
        left = [len(s) - int(g) for s, g in zip(scaled, gone, strict=True)]
    found = []
    for (coupling, scores), wanted in zip(scored, left, strict=True):
        count = _rounded(coupling, wanted, multiple)
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[scores.argsort(descending=True, stable=True)[:count]] = True
        found.append((coupling, mask))
    return found


def _rounded(coupling: Coupling, wanted: int, multiple: int) -> int:
    # A unit of a grouped convolution is a channel in each group: fewer units make the multiple.
    width = min(m.index.shape[1] for m in coupling.members)
    step = 1 if coupling.channels * width < _SMALL_LAYER else multiple // gcd(multiple, width)
    if wanted >= coupling.channels:
        return coupling.channels
    return min(coupling.channels, max(step, int(wanted / step + 0.5) * step))


def reach(
    target: Target, bound: Bound, choose: Callable[[float], list[tuple[Coupling, Tensor]]], who: str
) -> list[tuple[Coupling, Tensor]]:
    """The choice with the smallest ratio that meets the target, by bisection.

    Args:
        target: what is wanted.
        bound: the network.
        choose: ratio → choice; a larger ratio never keeps more.
        who: for messages.

    Raises:
        PlanError: a target below what is left when everything that can go has gone.
    """
    if target.sparsity is not None:
        return choose(target.sparsity)
    cost, allowed = target.cost(bound, who)
    unit = "parameters" if target.parameters is not None else "MACs" if target.macs is not None else "ms"
    best, smallest = choose(1.0), cost(choose(1.0))
    if smallest > allowed:
        raise PlanError(f"{who}: found {smallest:.4g} {unit} with all removed that can be, expected {allowed:.4g}")
    if cost(choose(0.0)) <= allowed:
        return choose(0.0)
    low, high = 0.0, 1.0
    for _ in range(_MS_STEPS if target.ms is not None else 30):
        middle = (low + high) / 2
        chosen = choose(middle)
        if cost(chosen) <= allowed:
            best, high = chosen, middle
        else:
            low = middle
    return best
