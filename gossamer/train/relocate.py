"""Moving a layer to another topology: values, the optimiser's state and what is remembered follow the survivors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.nn.topology import Topology, index_dtype
from gossamer.train.choose import carried, sources
from gossamer.train.tracked import Tracked

__all__ = ["Moved", "group_of", "relocate"]


@final
@dataclass(frozen=True)
class Moved:
    """What an update did to a layer.

    Args:
        dropped: weights that live no longer.
        grown: weights that live now.
        live: weights that live afterwards.
    """

    dropped: int
    grown: int
    live: int


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The parameter group that a parameter is in, None: no group has it."""
    # Looked up each time: loading an optimiser's state makes new groups.
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)


@torch.no_grad()
def relocate(
    layer: Tracked,
    positions: Tensor,
    optimizer: torch.optim.Optimizer,
    newborn: Callable[[str, int], Tensor],
    momentum: Callable[[Tensor], Tensor] | None,
    source: Tensor | None = None,
) -> Moved:
    """Give a layer other live weights, in place; those it did not have are exactly zero.

    State tensors of the optimiser that have one number per live weight (momentum, second moments, …) keep those of the
    survivors and are zero for the others; its scalars, such as step counts, stay.

    Args:
        layer: whose.
        positions: int64 [live], ascending.
        optimizer: that trains it.
        newborn: (what, how many) → what ``layer.memory`` holds of new weights.
        momentum: positions int64, ascending → the mean gradients that SGD's momentum of new weights starts from; None:
            zero. Adam's first moment starts from zero in any case: beside a second moment of zero it would be a leap.
        source: the `sources` of the positions among those that lived, where they are known.
    """
    old, values = layer.layer.topology, layer.layer.values
    new = Topology(old.shape, positions.to(index_dtype(old.shape)))
    if source is None:
        source = sources(layer.positions, positions, old.live)
    fresh = source.numpy() == old.live
    grown = int(np.count_nonzero(fresh))
    if grown or new.live != old.live:
        needed = momentum is not None or layer.memory
        at = torch.from_numpy(np.flatnonzero(fresh)) if needed else torch.zeros(0, dtype=torch.int64)
        state = optimizer.state.get(values, {})
        for key, held in state.items():
            if isinstance(held, Tensor) and held.shape == values.shape:
                state[key] = carried(held, source)
                if momentum is not None and key == "momentum_buffer":
                    state[key][at] = _as_buffer(momentum(positions[at]), group_of(optimizer, values))
        for what, remembered in layer.memory.items():
            layer.memory[what] = carried(remembered, source)
            layer.memory[what][at] = newborn(what, grown)
        layer.layer.set_topology(new, carried(values.detach(), source))
    return Moved(old.live - (new.live - grown), grown, new.live)


def _as_buffer(mean: Tensor, group: dict[str, Any] | None) -> Tensor:
    """What SGD's buffer would be after many steps with that gradient: a sum, not a mean."""
    if group is None:
        return mean
    dampening, momentum = float(group.get("dampening", 0.0)), float(group.get("momentum", 0.0))
    return mean * ((1 - dampening) / max(1e-3, 1 - momentum))


def check_optimizer(optimizer: torch.optim.Optimizer, layers: list[Tracked]) -> None:
    """Refuse an optimiser that does not train the sparse layers, or cannot follow them.

    Raises:
        PlanError: names the layer.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise PlanError("optimizer: found LBFGS, whose history has no place per weight, expected another one")
    for layer in layers:
        if layer.layer.values.requires_grad and group_of(optimizer, layer.layer.values) is None:
            raise PlanError(
                f"optimizer: {layer.name}: found no parameter group with its values, expected the optimiser to be made "
                "after sparsify()"
            )
