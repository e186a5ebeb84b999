"""Iterative pruning with rewinding: lottery tickets, weight rewinding, learning-rate rewinding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.prune import Budgeted
from gossamer.train.from_dense.base import DenseMethod, FromDense, Relaxation, chosen
from gossamer.train.from_dense.masking import Masking, hold_zeros, put_masks

__all__ = ["IterativePruning", "LotteryTicket"]


@final
@dataclass(frozen=True, kw_only=True)
class IterativePruning(DenseMethod):
    """Train, prune a share of what is left, go back, train again; so many rounds, then a last time.

    After round k of n a share (1 − sparsity)^(k/n) of the weights lives. ``rewind`` says what goes back to step
    ``to``: "weights" everything the network holds, with the learning rates of that time (a lottery ticket if ``to`` is
    0 or early), "rate" the learning rates alone, "nothing" neither (plain iterative fine-tuning at the rates that the
    user's scheduler gives). After going back the optimiser starts without state; rates are those that its groups had
    during the first ``length`` steps, so call ``step`` after a scheduler's.

    Args:
        prune: which weights stay, at the sparsity of the end; only of those that live.
        rounds: n ≥ 1.
        length: steps of the first training.
        to: step that is gone back to, 0 to length − 1.
        rewind: what goes back.

    Cost: length + rounds · (length − to) steps (without rewinding all of ``length``). Dense arithmetic in all of them.

    Exact: rewound weights are those of step ``to`` where the mask is True, bit for bit, and zero elsewhere.

    Source: Frankle and Carbin 2019, arXiv 1803.03635, section 2 (strategy 1); Frankle et al. 2020, arXiv 1912.05671,
        section 3 (rewinding to an early step); Renda, Frankle and Carbin 2020, arXiv 2003.02389, section 2 (rates).
    """

    prune: Budgeted
    rounds: int
    length: int
    to: int = 0
    rewind: Literal["weights", "rate", "nothing"] = "weights"

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.to < self.length:
            found = f"found rounds {self.rounds}, length {self.length}, to {self.to}"
            raise PlanError(f"IterativePruning: {found}, expected at least one round, and a step within the length")
        if self.rewind not in ("weights", "rate", "nothing"):
            raise PlanError(f"IterativePruning: rewind: found {self.rewind!r}, expected weights, rate or nothing")
        if self.prune.sparsity is None or self.prune.sparsity >= 1 or self.prune.needs:
            raise PlanError(f"IterativePruning: found {self.prune}, expected a sparsity below 1 and no need for data")

    @property
    def again(self) -> int:
        """Steps of every training after the first."""
        return self.length if self.rewind == "nothing" else self.length - self.to

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.length + self.rounds * self.again

    def dense_share(self, steps: int) -> float:
        """Share of the first training, in which every weight lives."""
        return min(self.length, steps) / max(1, steps)

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A mask."""
        del weight
        return Masking(spec)

    def advance(self, run: FromDense) -> None:
        """Remember, prune and go back when it is time."""
        groups = run.optimizer.param_groups
        if run.done < self.length:
            run.kept.setdefault("rates", []).append([float(group["lr"]) for group in groups])
        if run.done == self.to and self.rewind == "weights":
            run.kept["weights"] = {n: t.detach().clone() for n, t in _held(run).items()}
        later = run.done - self.length
        if later >= 0 and later % self.again == 0 and later // self.again < self.rounds:
            self._prune(run, later // self.again + 1)
        if later >= 0 and self.rewind != "nothing":
            for group, rate in zip(groups, run.kept["rates"][self.to + later % self.again], strict=True):
                group["lr"] = rate
        hold_zeros(run)

    @torch.no_grad()
    def _prune(self, run: FromDense, number: int) -> None:
        assert self.prune.sparsity is not None
        sparsity = 1 - (1 - self.prune.sparsity) ** (number / self.rounds)
        method = dataclasses.replace(self.prune, sparsity=sparsity)
        put_masks(run, chosen(method, run.places, within=True))
        if self.rewind == "nothing":
            return
        run.optimizer.state.clear()
        if self.rewind == "weights":
            for name, tensor in _held(run).items():
                tensor.copy_(run.kept["weights"][name])


def _held(run: FromDense) -> dict[str, Tensor]:
    """Everything that a rewound network gets back: parameters and statistics, not the masks."""
    masks = {id(relaxation.mask) for relaxation, _ in run.places.values() if isinstance(relaxation, Masking)}
    return {n: t for n, t in run.model.state_dict(keep_vars=True).items() if id(t) not in masks}


def LotteryTicket(*, prune: Budgeted, rounds: int, length: int, to: int = 0) -> IterativePruning:
    """A lottery ticket: iterative pruning whose weights go back to where they were at an early step.

    Args:
        prune: which weights stay.
        rounds: trainings after which a share goes.
        length: steps of the first training.
        to: step that weights go back to; 0 is the original hypothesis, larger networks need a little training first.

    Example:
        >>> from gossamer.methods.prune import Magnitude
        >>> LotteryTicket(prune=Magnitude(sparsity=0.9, scope="global"), rounds=10, length=100, to=10).steps
        1000

    Source: Frankle and Carbin 2019, arXiv 1803.03635, section 2.
    """
    return IterativePruning(prune=prune, rounds=rounds, length=length, to=to, rewind="weights")
