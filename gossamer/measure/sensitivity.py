"""How much the loss rises when one tensor alone is pruned: the curves that an allocation by sensitivity needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.encoding.values import Dense
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Plan, Site
from gossamer.methods.prune import Budgeted, Magnitude, Sensitivity
from gossamer.network.inspect import specs, tensors

__all__ = ["sensitivity"]


def sensitivity(
    model: nn.Module,
    data: Iterable[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    *,
    method: Callable[[float], Budgeted] | None = None,
    batches: int = 4,
) -> Sensitivity:
    """Prune each weight alone to each sparsity, one shot, and measure the mean loss on a few batches.

    Args:
        model: dense; not changed.
        data: (inputs, targets) batches.
        loss: (outputs, targets) → scalar.
        sparsities: rising, above 0 and up to 1.
        method: sparsity → pruning method that ranks by the weights alone; None: magnitude, single weights.
        batches: how many of ``data``, from its start.

    Returns:
        Per weight its loss increase at each sparsity. Plain numbers: ``json.dumps(found.curves)`` and back.

    Raises:
        DataError: no batch.
        PlanError: a method that needs more than the weights.

    Cost: batches · weights · sparsities forward passes.

    Example:
        >>> from torch.nn import functional as F
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> found = sensitivity(nn.Linear(4, 4), data, F.cross_entropy, (0.5, 0.9))
        >>> [(name, [s for s, _ in points]) for name, points in found.curves]
        [('weight', [0.5, 0.9])]

    Source: Li et al. 2017, arXiv 1608.08710, section 3.2 (one layer at a time).
    """
    make = method if method is not None else _magnitude
    few = list(islice(data, batches))
    if not few:
        raise DataError("sensitivity: found no batches, expected at least one")
    network = copy.deepcopy(model).eval()
    current = tensors(network)
    base = _mean(network, few, loss)
    curves = []
    for spec in specs(network):
        probe = make(sparsities[0])
        if probe.needs:
            raise PlanError(
                f"sensitivity: found {type(probe).__name__}, expected a method that needs the weights alone"
            )
        if not probe.find(spec, DENSE).paths:
            continue
        weight = current[spec.name]
        first = weight.permute(spec.output_first) if spec.output_first else weight
        site = Site(spec, "", tuple(first.shape))
        if probe.refuses(site):
            continue
        original = weight.clone()
        points = []
        for sparsity in sparsities:
            pruned = _pruned(make(sparsity), site, Dense(first.clone()))
            weight.copy_(pruned.permute(spec.output_first) if spec.output_first else pruned)
            points.append((float(sparsity), _mean(network, few, loss) - base))
            weight.copy_(original)
        curves.append((spec.name, tuple(points)))
    return Sensitivity(tuple(curves))


def _magnitude(sparsity: float) -> Magnitude:
    return Magnitude(sparsity=sparsity)


def _pruned(method: Budgeted, site: Site, weight: Dense) -> Tensor:
    plan = method.plan([site], {}, None)
    if not isinstance(plan, Plan):
        raise PlanError(f"sensitivity: found scope {method.scope!r}, expected 'uniform'")
    return method.select(site, weight, int(plan.steps[0].entry["keep"]), {}).to_dense()


def _mean(network: nn.Module, batches: Sequence[Any], loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    with torch.no_grad():
        return sum(float(loss(network(inputs), targets)) for inputs, targets in batches) / len(batches)
