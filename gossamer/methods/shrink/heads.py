"""Attention heads physically removed, the weakest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import nn

from gossamer.errors import PlanError
from gossamer.methods.shrink.check import believed
from gossamer.methods.shrink.coupling import Coupling, Member
from gossamer.methods.shrink.structured import How, Structured
from gossamer.methods.shrink.target import Scope
from gossamer.network.attention import AttentionPart, attention_parts

__all__ = ["Heads"]

HeadScore = Literal["magnitude", "taylor", "influence"]


@final
@dataclass(frozen=True, kw_only=True)
class Heads(Structured):
    """Remove whole attention heads: their rows of the query, key and value weights, their columns of the output's.

    At least one head of every attention stays; its width outside does not change. The smaller network equals the one
    in which the removed heads' outputs are zero. Found are `nn.MultiheadAttention` and modules of separate Linear
    layers for query, key, value and output (BERT, LLaMA without shared keys) with an attribute such as ``num_heads``,
    which is set to the new number.

    Args:
        sparsity: fraction of the heads removed, 0 to 1; or one of the next three.
        parameters: largest fraction of the parameters that stays.
        macs: largest fraction of the layers' multiplications that stays, counted with the first batch.
        ms: longest time of a forward pass with the first batch, measured.
        score: "magnitude", ‖query, key and value rows‖₂; "taylor", |Σ w · dL/dw| of the output's columns;
            "influence", measured change of the outputs without the head, one forward pass per head.
        scope: "uniform", the same ratio everywhere; "global", the worst of all layers.

    Cost: linear in the weights.

    Example:
        >>> Heads(sparsity=0.5, score="influence").scope
        'global'

    Source: Michel et al. 2019, Are sixteen heads really better than one, arXiv 1905.10650, section 4.
    """

    score: HeadScore = "magnitude"
    scope: Scope = "global"

    def __post_init__(self) -> None:
        self.target().check("Heads")
        if self.score not in get_args(HeadScore) or self.scope not in get_args(Scope):
            expected = f"{', '.join(get_args(HeadScore))}; {', '.join(get_args(Scope))}"
            raise PlanError(f"Heads: found score {self.score!r}, scope {self.scope!r}, expected {expected}")

    def how(self) -> How:
        """As set; the number of heads is not rounded."""
        return How(self.score, self.scope, 1)

    def find_couplings(self, model: nn.Module, example: Any) -> tuple[tuple[Coupling, ...], dict[str, str]]:
        """Attentions whose heads can go."""
        found = tuple(_coupling(part) for part in attention_parts(model))
        if not found:
            return found, {"": "it belongs to no attention whose heads are known"}
        return (found, {}) if example is None else believed(model, found, example)


def _coupling(part: AttentionPart) -> Coupling:
    owned = torch.arange(part.heads * part.head_dim).view(part.heads, part.head_dim)

    def members() -> Iterator[Member]:
        for name, blocks in zip(part.rows, part.blocks, strict=True):
            width = part.heads * part.head_dim
            yield Member(name, 0, torch.cat([owned + block * width for block in range(blocks)], 1))
        yield Member(part.columns, 1, owned)

    made = tuple(name for name in part.rows if "bias" not in name)
    return Coupling(made, part.heads, tuple(members()))
