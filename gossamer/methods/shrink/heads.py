"""Attention heads physically removed, the weakest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from torch import nn

from gossamer.errors import PlanError
from gossamer.methods.shrink.check import believed
from gossamer.methods.shrink.coupling import Coupling, Member
from gossamer.methods.shrink.structured import How, Structured
from gossamer.methods.shrink.target import Scope
from gossamer.network.attention import AttentionPart, attention_parts

__all__ = ["Heads"]

_BIASES = ("bias", "in_proj_bias")

HeadScore = Literal["magnitude", "taylor", "influence"]


@final
@dataclass(frozen=True, kw_only=True)
class Heads(Structured):
    """Remove whole attention heads: their rows of the query, key and value weights, their columns of the output's.

    At least one head of every attention stays; its width outside does not change. The smaller network equals the one
    in which the removed heads' outputs are zero. Found are `nn.MultiheadAttention` and modules of linear layers for
    query, key, value and output (BERT, LLaMA), or for the first three together (GPT-2; needs data, to try which rows
    are whose), with an attribute such as ``num_heads``, which is set to the new number. Where query heads share a key
    and a value, whole groups go: what counts as a head here is then such a group.

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
        parts, reasons = [], {}
        for part in attention_parts(model):
            if part.fused and example is None:
                reasons[part.rows[0].tensor] = (
                    "which of its rows belong to which head has to be tried, expected data=… with inputs to try them on"
                )
                continue
            aside = part.interleaved() if part.fused and not _holds(model, part, example) else part
            parts.append(aside if aside is part or _holds(model, aside, example) else part)
        found = tuple(_coupling(part) for part in parts)
        if not found:
            return found, reasons or {"": "it belongs to no attention whose heads are known"}
        if example is None:
            return found, reasons
        good, wrong = believed(model, found, example)
        return good, reasons | wrong


def _holds(model: nn.Module, part: AttentionPart, example: Any) -> bool:
    return bool(believed(model, (_coupling(part),), example)[0])


def _coupling(part: AttentionPart) -> Coupling:
    members = [Member(owned.tensor, 0, owned.index(part.heads)) for owned in part.rows]
    members.append(Member(part.columns.tensor, 1, part.columns.index(part.heads)))
    made = tuple(owned.tensor for owned in part.rows if owned.tensor.rpartition(".")[2] not in _BIASES)
    return Coupling(made, part.heads, tuple(members))
