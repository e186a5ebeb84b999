"""Networks in eval mode for as long as they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["Network", "evaluating"]

Network = Callable[[Tensor], Tensor]
"""Inputs to outputs: a module, one that was lowered, or any function."""


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode in which it was. What is no module passes by.

    Args:
        models: networks, other callables, or None.

    Example:
        >>> network = nn.Sequential(nn.Dropout().train(), nn.Identity().eval())
        >>> with evaluating(network):
        ...     [m.training for m in network]
        [False, False]
        >>> [m.training for m in network]
        [True, False]
    """
    networks = [model for model in models if isinstance(model, nn.Module)]
    before = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in before:
            module.training = mode
