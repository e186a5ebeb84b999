"""Neurons and channels physically removed, the weakest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final, get_args

from torch import nn

from gossamer.errors import PlanError
from gossamer.methods.shrink.chain import chain
from gossamer.methods.shrink.check import believed
from gossamer.methods.shrink.coupling import Coupling
from gossamer.methods.shrink.graph import depends, installed
from gossamer.methods.shrink.score import Score
from gossamer.methods.shrink.structured import How, Structured
from gossamer.methods.shrink.target import Scope

__all__ = ["Channels"]


@final
@dataclass(frozen=True, kw_only=True)
class Channels(Structured):
    """Remove output channels, neurons or hidden units, and everything that read them.

    Channels that only die together (through additions, concatenations, depthwise convolutions, gates) are one unit.
    Of n units n − round(ratio · n) stay, rounded to ``multiple``, at least one. The network is rebuilt smaller; its
    outputs never change width. Where no normalisation takes statistics over the channels, it equals the network in
    which those channels are zero (scores "reconstruction" and "merge" change the weights that stay).

    With data, and torch-pruning installed (``pip install gossamer[structured]``), the network is run and its
    dependency graph followed; each coupling is tried before it is believed. Without, chains of layers are found.

    Args:
        sparsity: fraction of the units removed, 0 to 1; or one of the next three.
        parameters: largest fraction of the parameters that stays.
        macs: largest fraction of the layers' multiplications that stays, counted with the first batch.
        ms: longest time of a forward pass with the first batch, measured on this machine; not deterministic.
        score: "magnitude", ‖rows‖₂; "taylor", |Σ w · dL/dw| where the channel is read; "batchnorm", |γ|;
            "influence", measured change of the outputs when it is read as zero, one forward pass per unit;
            "apoz", share of its values that are not zero; "reconstruction", greedy by the error of what reads it,
            whose weights are then fitted again; "merge", by magnitude, but what is removed is added to the most
            similar one that stays.
        scope: "uniform", the same ratio everywhere; "global", the worst of all layers, by scores relative to the
            layer's mean for magnitude, merge and apoz.
        multiple: how many channels stay is rounded to a multiple of this in layers of 16 or more; 1: not at all.

    Cost: linear in the weights, one run of the network per candidate coupling at worst; bisection for a target.

    Example:
        >>> Channels(sparsity=0.5).sparsity
        0.5

    Source: Li et al. 2017, arXiv 1608.08710, section 3.1 (magnitude); Molchanov et al. 2017, arXiv 1611.06440,
    section 2.2 (Taylor); Liu et al. 2017, arXiv 1708.06519 (γ); Hu et al. 2016, arXiv 1607.03250 (APoZ); Luo et al.
    2017, arXiv 1707.06342 (reconstruction); Kim et al. 2020, arXiv 2010.13160 (merging); Fang et al. 2023, arXiv
    2301.12900 (dependency graph).
    """

    score: Score = "magnitude"
    scope: Scope = "uniform"
    multiple: int = 8

    def __post_init__(self) -> None:
        self.target().check("Channels")
        if self.score not in get_args(Score) or self.scope not in get_args(Scope):
            expected = f"{', '.join(get_args(Score))}; {', '.join(get_args(Scope))}"
            raise PlanError(f"Channels: found score {self.score!r}, scope {self.scope!r}, expected {expected}")
        if self.multiple < 1:
            raise PlanError(f"Channels: multiple: found {self.multiple}, expected at least 1")

    def how(self) -> How:
        """As set."""
        return How(self.score, self.scope, self.multiple)

    def find_couplings(self, model: nn.Module, example: Any) -> tuple[tuple[Coupling, ...], dict[str, str]]:
        """Layers whose channels can go."""
        return _found(model, example)


def _found(model: nn.Module, example: Any) -> tuple[tuple[Coupling, ...], dict[str, str]]:
    """By the dependency graph where that is possible, else along chains of layers."""
    found: tuple[Coupling, ...] = ()
    reasons: dict[str, str] = {}
    why = "pip install gossamer[structured] would follow more"
    if installed() and example is None:
        why = "with data=… the network would be run and more be followed"
    elif installed():
        found, reasons = depends(model, example)
        why = reasons.pop("", "")
    if not found:
        chained, by_chain = chain(model)
        found, reasons = chained, {**by_chain, **reasons}
        reasons = {name: f"{reason}; {why}" if why else reason for name, reason in reasons.items()}
    if example is not None and found:
        found, refused = believed(model, found, example)
        reasons |= refused
    return found, reasons
