"""A mask that is learned by the objective itself, so that what is kept is what robustness needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.train.from_dense.base import DenseMethod, FromDense, Relaxation

__all__ = ["Hydra"]


@final
@dataclass(frozen=True, kw_only=True)
class Hydra(DenseMethod):
    """Search, then fine-tune: min over scores s of L(w ⊙ 1[|s| among the k largest of its layer]), then over w.

    In the first ``search`` steps weights stand still and scores train: gradients go straight through the choice,
    ∂L/∂s = sign(s) · w · ∂L/∂(w ⊙ m). They start at the weights, scaled to √(6 / fan-in) at most, so the first mask is
    that of magnitudes. Then the mask is settled and the survivors train. With the loss of `gs.Adversarial` on a network
    that was trained with it, scores are robust importance. Biases and norms train along in both parts.

    Args:
        sparsity: fraction of each layer's weights that become zero, above 0 and below 1.
        search: steps in which the mask is sought, ≥ 1.

    Cost: dense arithmetic and memory in every step, and a selection per layer in each of the search; one score per
        weight.

    Exact: from the first step on the layers see exactly k of their weights.

    Example:
        >>> Hydra(sparsity=0.9, search=100).dense_share(1000)
        1.0

    Source: Sehwag, Wang, Mittal, Jana 2020, arXiv 2002.10509, section 3 and algorithm 1.
    """

    sparsity: float = 0.9
    search: int

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1 or self.search < 1:
            found = f"sparsity {self.sparsity}, search {self.search}"
            raise PlanError(f"Hydra: found {found}, expected above 0 and below 1, and 1 or more steps")

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """Scores."""
        return _Scored(spec, weight, self.sparsity)

    def advance(self, run: FromDense) -> None:
        """Settle the masks when the search is over."""
        if run.done == self.search:
            for relaxation, _ in run.places.values():
                assert isinstance(relaxation, _Scored)
                relaxation.settle()


class _Chosen(torch.autograd.Function):
    """w·m, whose derivative with respect to scores is taken as sign(s)·w, and with respect to w as none."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(scores, weight)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        scores, weight = ctx.saved_tensors
        return gradients[0] * weight * scores.sign(), None, None


@final
class _Scored(Relaxation):
    mask: Tensor
    settled: Tensor

    def __init__(self, spec: TensorSpec, weight: Tensor, sparsity: float) -> None:
        super().__init__(spec)
        self.keep = max(1, round((1 - sparsity) * weight.numel()))
        most = math.sqrt(6 / max(1, weight[0].numel()))
        start = weight.detach() / weight.detach().abs().max().clamp_min(1e-12) * most
        self.scores = nn.Parameter(start.clone())
        self.register_buffer("mask", torch.ones(spec.shape, dtype=torch.bool))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """The chosen weights."""
        if bool(self.settled):
            return weight * self.mask
        made: Tensor = _Chosen.apply(self.scores, weight.detach(), self._best())  # type: ignore[no-untyped-call]
        return made

    def settle(self) -> None:
        """The mask is final, and weights train from now on."""
        self.mask.copy_(self._best())
        self.settled.fill_(True)

    def live(self, weight: Tensor) -> Tensor:
        """The present choice."""
        del weight
        return self.mask.clone() if bool(self.settled) else self._best()

    @torch.no_grad()
    def _best(self) -> Tensor:
        flat = self.scores.abs().flatten()
        made = torch.zeros(flat.shape, dtype=torch.bool)
        made[flat.topk(self.keep, sorted=False).indices] = True
        return made.view(self.scores.shape)
