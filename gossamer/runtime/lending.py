"""Copies of networks that read the original's weights until it is known which of them they keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import final

from torch import nn

__all__ = ["Loan"]


@final
class Loan:
    """Weights of a network's Linear and convolution layers, lent to a copy of it.

    Most of them are packed and then not needed any more: copying them first would take as long as running the network,
    and as much memory as it has.

    Args:
        model: is never changed.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> loan = Loan(model)
        >>> borrowed = loan.copy()
        >>> borrowed[0].weight.data_ptr() == model[0].weight.data_ptr()
        True
        >>> loan.settle(borrowed)
        >>> borrowed[0].weight.data_ptr() == model[0].weight.data_ptr()
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lent = {
            id(module.weight): nn.Parameter(module.weight.detach(), requires_grad=False)
            for module in model.modules()
            if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) and type(module.weight) is nn.Parameter
        }

    def copy(self) -> nn.Module:
        """The network with modules and tensors of its own, but for the weights lent."""
        return copy.deepcopy(self._model, dict(self._lent))

    def settle(self, network: nn.Module) -> None:
        """Gives a network that was made of the copy, in place, its own memory for what it still reads."""
        lent = {id(parameter) for parameter in self._lent.values()}
        own: dict[int, nn.Parameter] = {}
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in lent:
                    if id(parameter) not in own:
                        own[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                    module._parameters[name] = own[id(parameter)]
            for name, value in vars(module).items():
                if not (name.startswith("_") and isinstance(value, dict)):  # registered parts are seen above
                    for parameter in _parameters_in(value, set()):
                        if id(parameter) in lent:
                            parameter.data = parameter.data.clone()


def _parameters_in(value: object, seen: set[int]) -> Iterator[nn.Parameter]:
    """Parameters in lists and the like, where modules do not see them."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _parameters_in(part, seen)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _parameters_in(part, seen)
