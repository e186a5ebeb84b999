"""The methods of the literature by name, each a combination of parts; every docstring says where ours differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from gossamer.errors import PlanError
from gossamer.train import schedule as when
from gossamer.train.allocation import Allocation, ErdosRenyi, Uniform
from gossamer.train.drift import Drift
from gossamer.train.drop import DropScore, Magnitude, SignFlip
from gossamer.train.exploration import Exploration
from gossamer.train.grow import Gradient, GrowScore, Momentum, Random
from gossamer.train.method import Parts, SparseTraining
from gossamer.train.schedule import Schedule
from gossamer.train.scope import ByStrength, BySurvivors, Global, PerLayer
from gossamer.train.structure import ConstantFanIn, Free, Structure
from gossamer.train.structure import NofM as NofMStructure

__all__ = [
    "DSR",
    "ITOP",
    "SET",
    "SNFS",
    "DeepR",
    "Developmental",
    "GradualMagnitude",
    "NofM",
    "RigL",
    "SRigL",
    "Static",
    "TopKAST",
]


@dataclass(frozen=True, kw_only=True)
class _Sparse(SparseTraining, ABC):
    """A method with a sparsity.

    Args:
        sparsity: share of zeros among all weights of the layers together, 0 to 1, 1 excluded.
        allocation: of live weights among layers.
    """

    sparsity: float
    allocation: Allocation = ErdosRenyi()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        self.check()

    @property
    def final_sparsity(self) -> float:
        """``sparsity``."""
        return self.sparsity


@dataclass(frozen=True, kw_only=True)
class _Rewired(_Sparse, ABC):
    """A method that exchanges connections every so many steps.

    Args:
        steps: of the whole training run.
        every: steps from one update to the next (ΔT).
        fraction: share of the live weights that the first update exchanges, 0 to 1.
        until: share of the run in which the topology changes, 0 to 1; afterwards it rests.
    """

    steps: int
    every: int = 100
    fraction: float = 0.3
    until: float = 0.75

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.steps < 1 or not 0 < self.until <= 1 or self.every > self.until * self.steps:
            found = f"found steps {self.steps}, every {self.every}, until {self.until}"
            most = int(min(1.0, self.until) * self.steps)
            hint = f": set every= to at most {most}, better {max(1, most // 10)}" if most >= 1 else ""
            raise PlanError(f"{type(self).__name__}: {found}, expected at least one update within the run{hint}")
        super().__post_init__()

    @property
    def end(self) -> int:
        """Last step with an update."""
        return max(1, int(self.until * self.steps))

    @abstractmethod
    def parts(self) -> Parts:
        """What it is made of."""

    def cosine(self) -> Schedule:
        """The usual decay."""
        return when.Cosine(every=self.every, end=self.end, fraction=self.fraction)

    def constant(self) -> Schedule:
        """No decay."""
        return when.Constant(every=self.every, end=self.end, fraction=self.fraction)


@final
@dataclass(frozen=True, kw_only=True)
class Static(_Sparse):
    """A random topology that never changes: the control.

    Args:
        structure: that it has.

    Example:
        >>> Static(sparsity=0.9).parts().grow is None
        True

    Source: Mocanu et al. 2018, arXiv 1707.04780 (there: "fixed probability"); Evci et al. 2020, arXiv 1911.11134
    ("Static").
    """

    structure: Structure = Free()  # noqa: RUF009

    def parts(self) -> Parts:
        """No updates."""
        return Parts(schedule=when.Never(), allocation=self.allocation, structure=self.structure)


@final
@dataclass(frozen=True, kw_only=True)
class SET(_Rewired):
    """Sparse evolutionary training: the smallest weights go, as many come anywhere; every layer keeps its number.

    Differs: the smallest in magnitude go, where the paper takes the smallest positive and the largest negative ones;
    what grows starts from zero instead of at random; updates come every so many steps, an epoch in the paper.

    Example:
        >>> SET(sparsity=0.9, steps=1000).parts().grow
        Random()

    Source: Mocanu et al. 2018, arXiv 1707.04780, algorithm 1.
    """

    until: float = 1.0

    def parts(self) -> Parts:
        """Magnitude, random growth, a constant share."""
        return Parts(schedule=self.constant(), grow=Random(), allocation=self.allocation)


@final
@dataclass(frozen=True, kw_only=True)
class RigL(_Rewired):
    """The smallest weights go, those with the largest gradients come; every layer keeps its number.

    Differs: the step before an update is also used to train, where the paper uses its gradients for growth alone.

    Args:
        structure: `Free`, or `ConstantFanIn` and `NofM`, which need one layer's dense gradient at a time.

    Example:
        >>> round(RigL(sparsity=0.9, steps=1000).parts().schedule.exchanged(375), 6)
        0.15

    Cost: one dense weight gradient per update, in tiles.

    Source: Evci et al. 2020, arXiv 1911.11134, algorithm 1.
    """

    structure: Structure = Free()  # noqa: RUF009

    def parts(self) -> Parts:
        """Magnitude, gradient growth, cosine decay."""
        return Parts(schedule=self.cosine(), grow=Gradient(), allocation=self.allocation, structure=self.structure)


@final
@dataclass(frozen=True, kw_only=True)
class SNFS(_Rewired):
    """Sparse networks from scratch: growth by momentum, and layers get weights in proportion to their mean momentum.

    Differs: momentum is our own mean of gradients, so that any optimiser may be used; with ``window`` it is taken over
    the last steps before an update only.

    Args:
        beta: of the momentum.
        window: see `Momentum`; None as in the paper: **a dense gradient on every step and one float per weight.**

    Example:
        >>> SNFS(sparsity=0.9, steps=1000, window=8).parts().grow
        Momentum(beta=0.9, window=8, initialise=True)

    Source: Dettmers and Zettlemoyer 2019, arXiv 1907.04840, section 3, algorithm 1.
    """

    fraction: float = 0.5
    until: float = 1.0
    allocation: Allocation = Uniform()  # noqa: RUF009
    beta: float = 0.9
    window: int | None = None

    def parts(self) -> Parts:
        """Magnitude, momentum growth, cosine decay, layers by strength."""
        return Parts(
            schedule=self.cosine(),
            grow=Momentum(self.beta, self.window),
            allocation=self.allocation,
            scope=ByStrength(),
        )


@final
@dataclass(frozen=True, kw_only=True)
class DSR(_Rewired):
    """Dynamic sparse reparameterisation: one adaptive threshold drops, layers grow in proportion to what survived.

    The total of live weights stays exactly the same; those of layers do not.

    Args:
        threshold: before the first update; it doubles or halves until ``fraction`` of the weights go per update.
        tolerance: δ.

    Example:
        >>> DSR(sparsity=0.9, steps=1000).parts().scope
        BySurvivors(threshold=0.001, tolerance=0.1)

    Source: Mostafa and Wang 2019, arXiv 1902.05967, algorithm 1.
    """

    fraction: float = 0.1
    until: float = 1.0
    threshold: float = 1e-3
    tolerance: float = 0.1

    def parts(self) -> Parts:
        """Magnitude, random growth, one threshold."""
        scope = BySurvivors(self.threshold, self.tolerance)
        return Parts(schedule=self.constant(), grow=Random(), allocation=self.allocation, scope=scope)


@final
@dataclass(frozen=True, kw_only=True)
class DeepR(_Sparse):
    """Deep Rewiring: a connection has a sign for life; one whose weight would change it goes, another comes anywhere.

    Differs: gradient steps are the optimiser's (the paper's are plain SGD's), the rest of the walk is added after them;
    updates may come less often than every step, as each costs about as much as one.

    Args:
        steps: of the whole run.
        every: steps from one update to the next.
        l1: α, the pull towards zero.
        temperature: T of the noise √(2 η T).

    Example:
        >>> DeepR(sparsity=0.9, steps=1000, l1=1e-4).parts().drift
        Drift(l1=0.0001, temperature=0.0)

    Source: Bellec et al. 2018, arXiv 1711.05136, algorithm 1 (DEEP R) with a constant number of connections per layer.
    """

    steps: int
    every: int = 1
    l1: float = 1e-4
    temperature: float = 0.0

    def parts(self) -> Parts:
        """Sign flips, random growth, the walk."""
        return Parts(
            # How many go the signs say; the share only says that updates exchange at all.
            schedule=when.Constant(every=self.every, end=self.steps, fraction=1.0),
            drop=SignFlip(),
            grow=Random(),
            allocation=self.allocation,
            drift=Drift(self.l1, self.temperature),
        )


@final
@dataclass(frozen=True, kw_only=True)
class TopKAST(_Rewired):
    """The largest weights (A) make the forward pass; a larger set (B) gets gradients, and may overtake them.

    Differs: in the paper all weights exist, if only in slow memory, and B are the largest of all. Here what is outside
    B does not exist: at every update the smallest ``fraction`` of B is replaced by dead weights at random, which start
    from zero and enter A if gradients make them grow. The forward pass costs as much as B.

    Args:
        sparsity: of the forward pass, 1 − |A| / weights.
        backward_sparsity: 1 − |B| / weights, at most ``sparsity``: what is in memory.
        forward_every: steps for which A stays.
        decay: λ of the penalty on B, see `Exploration`; outside A it is divided by A's density.

    Example:
        >>> TopKAST(sparsity=0.9, backward_sparsity=0.8, steps=1000).parts().exploration.forward_share
        0.5

    Source: Jayakumar et al. 2020, arXiv 2106.03517, sections 2.1 and 2.2.
    """

    backward_sparsity: float
    fraction: float = 0.1
    forward_every: int = 1
    decay: float = 0.0

    @property
    def final_sparsity(self) -> float:
        """Of B: what is in memory."""
        return self.backward_sparsity

    def parts(self) -> Parts:
        """Magnitude, random growth, exploration."""
        if not 0 <= self.backward_sparsity <= self.sparsity < 1:
            raise PlanError(
                f"TopKAST: found backward_sparsity {self.backward_sparsity}, sparsity {self.sparsity}, "
                "expected 0 ≤ backward_sparsity ≤ sparsity < 1"
            )
        share = round((1 - self.sparsity) / (1 - self.backward_sparsity), 12)
        return Parts(
            schedule=self.cosine(),
            grow=Random(),
            allocation=self.allocation,
            exploration=Exploration(share, self.forward_every, self.decay),
        )


@final
@dataclass(frozen=True, kw_only=True)
class ITOP(_Rewired):
    """In-time over-parameterisation: SET or RigL with rare, large updates to the end, so that more weights ever live.

    The share of weights that ever lived is in `Sparsifier.explored`; weights should have time to grow up between
    updates, and the run be long enough for many of them.

    Args:
        growth: `Random` (SET-ITOP) or `Gradient` (RigL-ITOP).

    Example:
        >>> ITOP(sparsity=0.9, steps=40_000).parts().counts_explored
        True

    Cost: one bit per weight, for the count.

    Source: Liu et al. 2021, arXiv 2102.02389, sections 3 and 4.
    """

    every: int = 1500
    fraction: float = 0.5
    until: float = 1.0
    growth: GrowScore = Random()  # noqa: RUF009

    def parts(self) -> Parts:
        """Magnitude, a constant share, counted."""
        return Parts(schedule=self.constant(), grow=self.growth, allocation=self.allocation, counts_explored=True)


@final
@dataclass(frozen=True, kw_only=True)
class Developmental(_Sparse):
    """The brain's course: sparse start, early densification, heavy pruning, then rewiring at a stable density.

    Args:
        sparsity: of the mature network.
        steps: of the whole run.
        every: steps from one update to the next.
        start: density at birth relative to the mature one.
        peak: largest density relative to the mature one.
        dense_at: share of the run at which the peak is reached.
        mature_at: share of the run at which the mature density is reached.
        until: share of the run after which the topology rests.
        rewired: share of the connections exchanged per update in maturity, 0 to 0.4.
        grow: which connections come.
        drop: which go.

    Example:
        >>> method = Developmental(sparsity=0.9, steps=1000)
        >>> round(method.mean_density(1000), 3)
        0.135

    Cost: in proportion to the density; up to ``peak`` times that of the mature network.

    Source: Hoefler et al. 2021, arXiv 2102.00554, section 1.1.1.
    """

    steps: int
    every: int = 20
    start: float = 0.5
    peak: float = 3.0
    dense_at: float = 0.2
    mature_at: float = 0.6
    until: float = 0.9
    rewired: float = 0.3
    grow: GrowScore = Gradient()  # noqa: RUF009
    drop: DropScore = Magnitude()  # noqa: RUF009

    def parts(self) -> Parts:
        """A life."""
        life = when.Developmental(
            every=self.every,
            end=int(self.until * self.steps),
            start=self.start,
            peak=self.peak,
            dense_at=int(self.dense_at * self.steps),
            mature_at=int(self.mature_at * self.steps),
            rewired=self.rewired,
        )
        return Parts(schedule=life, drop=self.drop, grow=self.grow, allocation=self.allocation)


@final
@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(_Sparse):
    """Starts dense; the smallest weights go along a cubic ramp; the live set only shrinks.

    Its dense phase: all weights live until the first update, ``dense_share(steps)`` of the run, and steps cost what
    the density of the moment costs, on average ``mean_density(steps)`` of dense ones (a sparse layer that is full is
    slower than a dense one). `gs.Gradual` does the same with recipes.

    Args:
        steps: of the whole run.
        every: steps from one update to the next.
        begin: share of the run before pruning starts.
        until: share of the run after which the final sparsity is reached.
        drop: which go.
        across_layers: one threshold for all layers rather than the allocation's share of each.

    Example:
        >>> method = GradualMagnitude(sparsity=0.9, steps=1000, begin=0.1)
        >>> round(method.dense_share(1000), 2), round(method.mean_density(1000), 2)
        (0.12, 0.31)

    Source: Zhu and Gupta 2017, arXiv 1710.01878.
    """

    steps: int
    every: int = 20
    begin: float = 0.0
    until: float = 0.6
    drop: DropScore = Magnitude()  # noqa: RUF009
    across_layers: bool = False
    rescale: bool | None = False

    def parts(self) -> Parts:
        """A ramp."""
        ramp = when.Cubic(
            every=self.every, begin=int(self.begin * self.steps), end=max(1, int(self.until * self.steps))
        )
        scope = Global() if self.across_layers else PerLayer()
        return Parts(schedule=ramp, drop=self.drop, allocation=self.allocation, scope=scope)


@final
@dataclass(frozen=True, kw_only=True)
class SRigL(_Rewired):
    """RigL with the same number of live weights in every row (constant fan-in), and ablation of neurons.

    Differs: an update may leave up to (rows − 1) live weights of a layer unused after an ablation, as fan-ins are whole
    numbers; ablated neurons stay ablated.

    Args:
        ablate: γ_sal, share of a neuron's weights that must be salient, 0 to 1; 0: no ablation.

    Example:
        >>> SRigL(sparsity=0.9, steps=1000).parts().structure
        ConstantFanIn(ablate=0.3)

    Cost: one layer's dense weight gradient at a time, in memory too, per update.

    Source: Lasby et al. 2024, arXiv 2305.02299, section 3, algorithm 1.
    """

    ablate: float = 0.3

    def parts(self) -> Parts:
        """RigL in a structure."""
        return Parts(
            schedule=self.cosine(),
            grow=Gradient(),
            allocation=self.allocation,
            structure=ConstantFanIn(self.ablate),
        )


@final
@dataclass(frozen=True, kw_only=True)
class NofM(SparseTraining):
    """N of every M consecutive weights of a row live, at every step; drop and growth happen within the groups.

    Args:
        n: live.
        m: of so many, up to 16; rows must divide by it, layers whose rows do not are a `PlanError`: skip them.
        steps: of the whole run.
        every: steps from one update to the next.
        fraction: share of the live weights that the first update exchanges.
        until: share of the run in which the topology changes.
        grow: `Gradient` (RigL within groups) or `Random` (SET within groups).

    Example:
        >>> NofM(n=2, m=4, steps=1000).final_sparsity
        0.5

    Cost: with `Gradient` one layer's dense weight gradient at a time, per update.

    Source: groups: Zhou et al. 2021, arXiv 2102.04010; drop and growth: Evci et al. 2020, arXiv 1911.11134.
    """

    n: int
    m: int
    steps: int
    every: int = 100
    fraction: float = 0.3
    until: float = 0.75
    grow: GrowScore = Gradient()  # noqa: RUF009

    def __post_init__(self) -> None:
        self.check()

    @property
    def final_sparsity(self) -> float:
        """1 − N / M."""
        return 1 - self.n / self.m

    def parts(self) -> Parts:
        """RigL in groups."""
        structure = NofMStructure(self.n, self.m)
        decay = when.Cosine(every=self.every, end=max(1, int(self.until * self.steps)), fraction=self.fraction)
        return Parts(schedule=decay, grow=self.grow, allocation=Uniform(), structure=structure)
