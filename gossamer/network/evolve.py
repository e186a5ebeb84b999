"""Change the topology of attached weights during training; the optimiser's state follows the surviving values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.network.attach import attached

__all__ = ["carried", "evolve"]


def evolve(model: nn.Module, new: Mapping[str, Encoding], optimizer: torch.optim.Optimizer) -> None:
    """Put new trees of the same skeleton into an attached network, in place.

    Live values that stay keep their optimiser state (momentum, second moments); new ones start from zero.

    Args:
        model: as made by `attach`.
        new: per attached tensor its new tree; masks and packed values may differ from the old tree, nothing else.
        optimizer: over the model's parameters; its groups and state are changed to the new parameters.
    """
    holders = attached(model)
    # A tied weight has one holder per name over the same leaves: all of them get the same new tree.
    made: dict[tuple[int, ...], Encoding] = {}
    moved: dict[int, nn.Parameter] = {}
    for name, tree in new.items():
        old = holders[name].tree
        made[_identity(old)] = _take_over(old, tree, optimizer, moved)
    for holder in holders.values():
        tree_now = made.get(_identity(holder.tree))
        if tree_now is not None:
            holder.replace(tree_now)


def _identity(tree: Encoding) -> tuple[int, ...]:
    return tuple(id(leaf.tensor) for leaf in tree.leaves())


def _take_over(
    old: Encoding, new: Encoding, optimizer: torch.optim.Optimizer, moved: dict[int, nn.Parameter]
) -> Encoding:
    """The new tree over the old tree's parameters; packed values whose positions changed become new parameters.

    ``moved`` remembers them by the old ones: what several trees share moves once.
    """
    parameters: dict[str, Tensor] = {
        leaf.path: leaf.tensor for leaf in old.leaves() if isinstance(leaf.tensor, nn.Parameter)
    }
    for path, before in old.nodes():
        after = new.at(path)
        if isinstance(before, Masked) and isinstance(after, Masked) and isinstance(before.value, Dense):
            assert isinstance(after.value, Dense)
            was = before.value.array
            if id(was) not in moved:
                moved[id(was)] = nn.Parameter(after.value.array.detach().clone(), was.requires_grad)
                _move_state(optimizer, before, after, moved[id(was)])
            parameters[f"{path}/value/array"] = moved[id(was)]
    return new.map_leaves(lambda leaf: parameters.get(leaf.path, leaf.tensor))


def _move_state(optimizer: torch.optim.Optimizer, old: Masked, new: Masked, parameter: nn.Parameter) -> None:
    assert isinstance(old.value, Dense)
    before = old.value.array
    for group in optimizer.param_groups:
        group["params"] = [parameter if p is before else p for p in group["params"]]
    if before not in optimizer.state:
        return
    state = optimizer.state.pop(before)
    was, now = old.where.positions(), new.where.positions()
    optimizer.state[parameter] = {
        key: carried(value, was, now) if isinstance(value, Tensor) and value.shape == before.shape else value
        for key, value in state.items()
    }


def carried(values: Tensor, was: Tensor, now: Tensor) -> Tensor:
    """What belongs to positions, after they changed; zero where a position is new.

    Args:
        values: [n], one per old position.
        was: old flat positions, ascending, int [n].
        now: new ones, ascending, int [m].

    Returns:
        [m].
    """
    if not len(was):
        return values.new_zeros(len(now))
    at = torch.searchsorted(was, now).clamp(max=len(was) - 1)
    return torch.where(was[at] == now, values[at], 0)
