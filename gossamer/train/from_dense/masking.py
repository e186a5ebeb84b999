"""A mask over dense weights, on and off again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from gossamer.encoding.spec import TensorSpec
from gossamer.train.from_dense.base import FromDense, Relaxation

__all__ = ["Masking", "hold_zeros", "put_masks"]


class _PassedBy(torch.autograd.Function):
    """m·w, whose derivative with respect to w is taken as 1: dead weights get the gradient at the masked point."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


@final
class Masking(Relaxation):
    """w ↦ m·w with a mask that is no parameter; with all of it True the weight itself.

    Args:
        spec: of the weight.
        passed_by: whether dead weights get gradients, those at the masked point.
    """

    mask: Tensor

    def __init__(self, spec: TensorSpec, *, passed_by: bool = False) -> None:
        super().__init__(spec)
        self.passed_by = passed_by
        self.register_buffer("mask", torch.ones(spec.shape, dtype=torch.bool))
        self.full = True

    def put(self, mask: Tensor) -> None:
        """Another mask, bool of the weight's shape."""
        self.mask.copy_(mask)
        self.full = bool(self.mask.all())

    def forward(self, weight: Tensor) -> Tensor:
        """m·w."""
        if self.full:
            return weight
        if self.passed_by:
            made: Tensor = _PassedBy.apply(weight, self.mask)  # type: ignore[no-untyped-call]
            return made
        return weight * self.mask

    def live(self, weight: Tensor) -> Tensor:
        """The mask."""
        del weight
        return self.mask.clone()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.full = bool(self.mask.all())


def put_masks(run: FromDense, masks: Mapping[str, Tensor]) -> None:
    """New masks, by tensor name."""
    for name, mask in masks.items():
        relaxation = run.places[name][0]
        assert isinstance(relaxation, Masking)
        relaxation.put(mask)


@torch.no_grad()
def hold_zeros(run: FromDense) -> None:
    """Dead weights are zero and stay so, whatever momentum is left."""
    for name, (relaxation, weight) in run.places.items():
        assert isinstance(relaxation, Masking)
        if not relaxation.full:
            weight.mul_(relaxation.mask)
            run.clear_state(name, relaxation.mask)
