"""One global budget divided among all layers beforehand, so that blocks can then be pruned one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn import functional as F

from gossamer.drive.one_shot import plan_method
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.recipe import State, example_for
from gossamer.drive.source import ModelSource
from gossamer.drive.tune import Loss
from gossamer.errors import PlanError
from gossamer.methods.prune import Budgeted, PerTensor

__all__ = ["allocate"]


def allocate(
    model: nn.Module,
    method: Budgeted,
    data: Iterable[Any] | None,
    *,
    loss: Loss = F.cross_entropy,
    progress: Progress | None = None,
) -> PerTensor:
    """How sparse each tensor would become if the method were planned over the whole dense network at once.

    A driver that goes block by block sees one block at a time, and a threshold over all layers needs all of them. So
    the threshold is found here, and the result is the ``scope`` of the method that is then carried out, which need not
    be the same one.

    Args:
        model: dense; not changed.
        method: whose budget and scope are to be met, for example ``SparseGPT(sparsity=0.5, scope="global")``.
        data: batches for the statistics that it needs; with targets, if it needs gradients.
        loss: (outputs, targets) → scalar, for gradients.
        progress: where to say how far it is.

    Returns:
        The sparsity of each tensor (of each gate, where a tensor is several).

    Raises:
        PlanError: a method whose scope divides the budget without looking at the weights.
        CompositionError: a method that matches no layer.
        DataError: a method that needs data, and none were given.

    Cost: gathers the evidence of all layers at once, for "gram" in² numbers per layer; `Wanda` needs one number per
    input.

    Example:
        >>> from gossamer.methods.prune import Magnitude
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> found = allocate(net, Magnitude(sparsity=0.5, scope="global"), None)
        >>> sum(sparsity for _, sparsity in found.sparsities)
        1.0
    """
    if method.scope not in ("global", "lamp"):
        raise PlanError(f"allocate: scope: found {method.scope!r}, expected 'global' or 'lamp': others need no search")
    own = copy.deepcopy(model).eval()
    source = ModelSource(own)
    trees = {spec.name: source.read(spec.name) for spec in source.specs()}
    state = State(own, source.specs(), trees, data, loss, progress or NoProgress())
    bound = method.bind(own, example_for(method, data))
    planned = plan_method(bound, state.source(), state.evidence(bound))
    found = []
    for step in planned.plan.steps:
        site = planned.sites[step.targets[0]]
        units = method.structure.units(site.shape)
        found.append((site.key, 1 - int(step.entry["keep"]) / max(1, units)))
    return PerTensor(tuple(found))
