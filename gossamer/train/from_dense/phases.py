"""Phases in which a network is masked, and phases in which it is dense: AC/DC, dense-sparse-dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.base import Method
from gossamer.methods.prune import Magnitude
from gossamer.train.from_dense.base import DenseMethod, FromDense, Relaxation, chosen
from gossamer.train.from_dense.masking import Masking, hold_zeros, put_masks

__all__ = ["ACDC", "DSD", "Phase", "Phases"]


@final
@dataclass(frozen=True)
class Phase:
    """A stretch of steps.

    Args:
        steps: how many; the last phase goes on as long as training does.
        sparse: whether dead weights take no part.
    """

    steps: int
    sparse: bool


@final
@dataclass(frozen=True, kw_only=True)
class Phases(DenseMethod):
    """Dense and sparse phases in any order.

    At the start of a sparse phase ``prune`` chooses what lives, from the dense weights of the moment; the others become
    zero, with their optimiser state, and stay so during the phase. A dense phase lets them grow from zero.

    Args:
        prune: which weights live in sparse phases; a method that looks at weights alone.
        phases: in order.

    Cost: dense arithmetic and memory in every phase; sparse phases multiply with a mask on top. Run the last, long one
        on sparse layers instead: ``gs.train.sparsify(dense, gs.train.Static(…), start=live_masks(model))``.

    Exact: in sparse phases dead weights are exactly zero after every step.
    """

    prune: Method = field(default_factory=lambda: Magnitude(sparsity=0.9))
    phases: tuple[Phase, ...] = (Phase(0, sparse=False),)

    def __post_init__(self) -> None:
        if not self.phases or any(p.steps < 1 for p in self.phases[:-1]):
            raise PlanError(f"Phases: found {self.phases}, expected at least one, each of at least one step")
        if self.prune.needs:
            raise PlanError(f"Phases: found {type(self.prune).__name__}, expected a method that needs no data")

    def phase_at(self, step: int) -> int:
        """Number of the phase that step number ``step`` (from 0) belongs to."""
        for number, phase in enumerate(self.phases[:-1]):
            if step < phase.steps:
                return number
            step -= phase.steps
        return len(self.phases) - 1

    def dense_share(self, steps: int) -> float:
        """Share of the steps in dense phases."""
        return sum(not self.phases[self.phase_at(s)].sparse for s in range(steps)) / max(1, steps)

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A mask."""
        del weight
        return Masking(spec)

    def advance(self, run: FromDense) -> None:
        """Begin a phase if its turn has come."""
        now = self.phase_at(run.done)
        if run.done == 0 or now != self.phase_at(run.done - 1):
            if self.phases[now].sparse:
                put_masks(run, chosen(self.prune, run.places, within=False))
            else:
                put_masks(run, {n: r.live(w).fill_(True) for n, (r, w) in run.places.items()})
        hold_zeros(run)


def ACDC(*, prune: Method, steps: int, warmup: int, period: int, final: int) -> Phases:
    """Alternating compressed and decompressed training.

    Dense for ``warmup`` steps, then sparse and dense phases of ``period`` steps in turn, sparse first, and sparse for
    at least the last ``final`` steps: dense phases let pruned weights come back, and the run gives a sparse network
    that trained as long as the dense one. The dense network of the last dense phase comes for free.

    Args:
        prune: which weights live in sparse phases; the paper takes the largest of all layers together.
        steps: of the whole run.
        warmup: dense steps at the start.
        period: steps per phase.
        final: sparse steps at the end, at least.

    Raises:
        PlanError: it does not fit.

    Example:
        >>> method = ACDC(prune=Magnitude(sparsity=0.9, scope="global"), steps=100, warmup=20, period=10, final=30)
        >>> [(p.steps, p.sparse) for p in method.phases]
        [(20, False), (10, True), (10, False), (10, True), (10, False), (40, True)]
        >>> method.dense_share(100)
        0.4

    Source: Peste, Iofinova, Vladu and Alistarh 2021, arXiv 2106.12379, algorithm 1 and section 4 (schedules).
    """
    if min(warmup, period, final) < 1 or warmup + final > steps:
        found = f"found steps {steps}, warmup {warmup}, period {period}, final {final}"
        raise PlanError(f"ACDC: {found}, expected positive numbers, warmup and final within the run")
    pairs = (steps - warmup - final) // (2 * period)
    between = (Phase(period, sparse=True), Phase(period, sparse=False)) * pairs
    rest = steps - warmup - 2 * period * pairs
    return Phases(prune=prune, phases=(Phase(warmup, sparse=False), *between, Phase(rest, sparse=True)))


def DSD(*, prune: Method, dense: int, sparse: int) -> Phases:
    """Dense, sparse, dense: sparsity as a regulariser; the network at the end is dense again.

    Args:
        prune: which weights live in the sparse phase; the paper takes 25 to 50% of each layer out.
        dense: steps of the first phase.
        sparse: steps of the second; the third goes on to the end. The paper divides the learning rate by 10 there,
            which is the user's scheduler's business.

    Example:
        >>> DSD(prune=Magnitude(sparsity=0.3), dense=50, sparse=30).dense_share(100)
        0.7

    Source: Han et al. 2017, arXiv 1607.04381, section 2 and algorithm 1.
    """
    return Phases(prune=prune, phases=(Phase(dense, sparse=False), Phase(sparse, sparse=True), Phase(0, sparse=False)))
