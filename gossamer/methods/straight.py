"""Straight-through: the value of one tensor, the gradient of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked

__all__ = ["straight_through"]


class _StraightThrough(torch.autograd.Function):
    # w + (q − w).detach() has the same gradient, but is q only up to rounding.

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0].to(ctx.dtype), None


def straight_through(weight: Encoding, quantized: Encoding) -> Encoding:
    """A tree with the numbers of ``quantized``, exactly, whose derivative with respect to ``weight`` is 1.

    Args:
        weight: any tree with leaves that train.
        quantized: of the same shape.

    Returns:
        `Dense`, or `Masked` where both are masked by the same pattern.

    Example:
        >>> w = torch.tensor([0.4, 1.3], requires_grad=True)
        >>> q = straight_through(Dense(w), Dense(w.detach().round())).to_dense()
        >>> q.square().sum().backward()
        >>> q.tolist(), w.grad.tolist()
        ([0.0, 1.0], [0.0, 2.0])

    Source: Bengio et al. 2013, arXiv 1308.3432, section 4.
    """
    if isinstance(weight, Masked) and isinstance(quantized, Masked) and weight.where is quantized.where:
        positions = weight.where.positions()
        return Masked(weight.where, Dense(_join(weight.value.values(positions), quantized.value.values(positions))))
    return Dense(_join(weight.to_dense(), quantized.to_dense()))


def _join(weight: Tensor, quantized: Tensor) -> Tensor:
    joined: Tensor = _StraightThrough.apply(weight, quantized.detach())  # type: ignore[no-untyped-call]
    return joined
