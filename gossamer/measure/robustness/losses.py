"""What attacks raise: numbers per example that grow as the right class loses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Objective", "difference_ratio", "likeliest_others", "log_odds", "margin", "targeted_ratio"]

Objective = Callable[[Tensor], Tensor]
"""Logits [n, classes] → [n]."""


def _others(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.scatter(1, targets[:, None], -torch.inf)


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """log Σ_{k≠y} exp z_k − z_y, which is cross-entropy made immune to saturation.

    Cross-entropy is log(1 + exp of this), so both grow together and their gradients have one direction; but
    cross-entropy's is exactly 0 in float32 once p(y) rounds to 1, where steps by the sign of the gradient would stop.

    Example:
        >>> z = torch.tensor([[200.0, 0.0]], requires_grad=True)
        >>> log_odds(z, torch.tensor([0])).sum().backward()
        >>> z.grad.tolist(), torch.nn.functional.cross_entropy(z, torch.tensor([0])).item()
        ([[-1.0, 1.0]], 0.0)
    """
    return torch.logsumexp(_others(logits, targets), 1) - _of(logits, targets)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y: above 0 where another class wins.

    Example:
        >>> margin(torch.tensor([[1.0, 3.0]]), torch.tensor([0])).tolist()
        [2.0]
    """
    return _others(logits, targets).amax(1) - _of(logits, targets)


def difference_ratio(logits: Tensor, targets: Tensor) -> Tensor:
    """(max_{k≠y} z_k − z_y) / (z_(1) − z_(3)), the DLR loss; with two classes `margin`, which has no third.

    Example:
        >>> difference_ratio(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0])).tolist()
        [-0.5]

    Source: Croce and Hein 2020, arXiv 2003.01690, section 4.1, equation 6.
    """
    if logits.shape[1] < 3:
        return margin(logits, targets)
    top = logits.topk(3, dim=1).values
    return margin(logits, targets) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def targeted_ratio(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """(z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), the targeted DLR loss, for one wrong class t per example.

    With fewer than four classes there is no such denominator, and it is left out: the direction of steps and the order
    of points do not need it.

    Args:
        logits: [n, classes].
        targets: y, int64 [n].
        goals: t, int64 [n].

    Example:
        >>> targeted_ratio(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([2])).tolist()
        [-0.6666666865348816]

    Source: Croce and Hein 2020, arXiv 2003.01690, section 4.1, equation 7.
    """
    gain = _of(logits, goals) - _of(logits, targets)
    if logits.shape[1] < 4:
        return gain
    top = logits.topk(4, dim=1).values
    return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)


def likeliest_others(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """The classes beside y with the largest logits, int64 [n, at most count], largest first."""
    return _others(logits, targets).topk(min(count, logits.shape[1] - 1), dim=1).indices
