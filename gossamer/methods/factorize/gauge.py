"""What a factorization leaves open: the signs and the scales of its factors. Here they are always the same."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["balanced", "signs"]


def signs(columns: Tensor) -> Tensor:
    """±1 per column, such that the entry of largest magnitude becomes positive; LAPACK leaves this open.

    Args:
        columns: [..., n, r].

    Returns:
        [..., r].

    Example:
        >>> signs(torch.tensor([[1.0, 1.0], [-2.0, 0.5]])).tolist()
        [-1.0, 1.0]
    """
    largest = columns.abs().argmax(-2, keepdim=True)
    sign = columns.gather(-2, largest).squeeze(-2).sign()
    return torch.where(sign == 0, 1.0, sign)


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product with all factors at one root mean square, so that one learning rate suits them all.

    A factorization may move scale from one factor to another freely. Factors of a zero weight stay as they are.

    Example:
        >>> [f.tolist() for f in balanced([torch.tensor([8.0]), torch.tensor([2.0])])]
        [[4.0], [4.0]]
    """
    sizes = [float(f.double().square().mean().sqrt()) for f in factors]
    if min(sizes) == 0:
        return list(factors)
    middle = prod(s ** (1 / len(sizes)) for s in sizes)
    return [f * (middle / s) for f, s in zip(factors, sizes, strict=True)]
