"""Dense weights that learn from a sparse network: pruning with feedback, and iterative hard thresholding."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.base import Method
from gossamer.methods.prune import Magnitude
from gossamer.train.from_dense.base import DenseMethod, FromDense, Relaxation, chosen
from gossamer.train.from_dense.masking import Masking, put_masks

__all__ = ["Feedback", "HardThresholding"]


@dataclass(frozen=True, kw_only=True)
class _Chosen(DenseMethod, ABC):
    """A method that every so many steps chooses anew which weights live; the gradient of every weight is computed.

    Args:
        prune: which weights live; a method that looks at weights alone.
        every: steps from one choice to the next.
    """

    prune: Method = field(default_factory=lambda: Magnitude(sparsity=0.9))
    every: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.every < 1:
            raise PlanError(f"{name}: every: found {self.every}, expected at least 1")
        if not isinstance(self.prune, Method):
            found = f"found {type(self.prune).__name__}, expected a method such as gs.prune.Magnitude"
            raise PlanError(f"{name}: prune: {found}")
        if self.prune.needs:
            raise PlanError(f"{name}: found {type(self.prune).__name__}, expected a method that needs no data")


@final
@dataclass(frozen=True, kw_only=True)
class Feedback(_Chosen):
    """Dynamic pruning with feedback: w ← w − η · ∇L(m·w), every weight updated by the gradient at the masked point.

    The layer computes with m·w alone; dead weights go on collecting what the sparse network says of them, and may come
    back when the mask is next chosen from the dense weights. Sparsity rises as ``prune.at`` has it, cubic for
    `Magnitude`, over ``ramp`` steps.

    Args:
        prune: which weights live, at the end of the ramp; a method that looks at weights alone.
        every: steps from one choice to the next; the paper has 16.
        ramp: steps over which sparsity rises; 0: full from the start.

    Cost: dense arithmetic and memory in every step; a choice costs a pass over all weights.

    Exact: dense weights get the gradient of L at m·w, nothing added; the harvested network is m·w.

    Example:
        >>> Feedback(prune=Magnitude(sparsity=0.9)).dense_share(1000)
        1.0

    Source: Lin, Stich, Barba, Dmitriev and Jaggi 2020, arXiv 2006.07253, section 4, algorithm 1.
    """

    every: int = 16
    ramp: int = 0

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A mask that gradients pass by."""
        del weight
        return Masking(spec, passed_by=True)

    def advance(self, run: FromDense) -> None:
        """Choose anew."""
        if run.done % self.every == 0 or run.done == self.ramp:
            reached = 1.0 if run.done >= self.ramp else run.done / self.ramp
            put_masks(run, chosen(self.prune.at(reached), run.places, within=False))


@final
@dataclass(frozen=True, kw_only=True)
class HardThresholding(_Chosen):
    """Iterative hard thresholding: every so many steps all but the best weights become zero, w ← H(w).

    In between all weights train, zeros included: with ``every`` 1 the network is sparse whenever a gradient is taken,
    w ← H(w − η · ∇L(w)), and the choice is made from one step's update, so a zero comes back only where it moves
    further than the smallest survivor. Larger ones give zeros time to grow.

    Args:
        prune: which weights stay; a method that looks at weights alone.
        every: steps from one thresholding to the next.

    Cost: dense arithmetic and memory in every step; a thresholding costs a pass over all weights.

    Exact: after a thresholding all others are exactly zero; the harvested network is that of the last one's mask.

    Example:
        >>> HardThresholding(prune=Magnitude(sparsity=0.9), every=10).dense_share(100)
        1.0

    Source: Blumensath and Davies 2009, Appl. Comput. Harmon. Anal. 27, equation 11; Jin et al. 2016, arXiv 1607.05423,
        section 3 (for networks; its phases with zeros held are `Phases`).
    """

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A mask that gradients pass by; it is there for the end, values are zero anyway after a thresholding."""
        del weight
        return _Projected(spec)

    @torch.no_grad()
    def advance(self, run: FromDense) -> None:
        """Threshold when it is time."""
        if run.done and run.done % self.every == 0:
            for name, mask in chosen(self.prune, run.places, within=False).items():
                relaxation, weight = run.places[name]
                assert isinstance(relaxation, _Projected)
                relaxation.mask.copy_(mask)
                weight.mul_(mask)


@final
class _Projected(Relaxation):
    """The weight itself in training, what the last thresholding kept in eval mode."""

    mask: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mask", torch.ones(spec.shape, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """w, or m·w in eval mode."""
        return weight if self.training else weight * self.mask

    def live(self, weight: Tensor) -> Tensor:
        """What the last thresholding kept."""
        del weight
        return self.mask.clone()
