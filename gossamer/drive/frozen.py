"""Tensors that do not train for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize

from gossamer.errors import PlanError
from gossamer.methods.base import matches, patterns_in

__all__ = ["frozen"]


@contextmanager
def frozen(network: nn.Module, patterns: str | Sequence[str]) -> Iterator[None]:
    """Within it, parameters of the tensors that any of the patterns matches take no gradients.

    Statistics, such as those of BatchNorm, go on: they do not train.

    Args:
        network: plain, or as made by `attach`: then all leaves of a matching tensor's tree stay.
        patterns: globs of tensor names.

    Raises:
        PlanError: a pattern that matches no tensor.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> with frozen(network, "0.*"):
        ...     [name for name, p in network.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """
    names = {_tensor(name) for name, _ in network.named_parameters(remove_duplicate=False)} | _computed(network)
    for pattern in patterns_in(patterns):
        if not matches(sorted(names), pattern):
            known = ", ".join(sorted(names)[:4])
            raise PlanError(
                f"Tune: skip: found {pattern!r}, which matches no tensor that trains, expected names like {known}"
            )
    stopped = {n for n, p in _parameters(network, patterns) if p.requires_grad}
    for _, parameter in _parameters(network, patterns):
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        # By name: pruning in between may have put other parameters in their places.
        for name, parameter in _parameters(network, patterns):
            parameter.requires_grad_(name in stopped)


def _computed(network: nn.Module) -> set[str]:
    """Tensors that are made of others, of which none may be left to train."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(module)
        for name in module.parametrizations
    }


def _parameters(network: nn.Module, patterns: str | Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    every = network.named_parameters(remove_duplicate=False)  # a tied tensor stays under whichever name is meant
    return [(name, p) for name, p in every if matches([_tensor(name)], patterns)]


def _tensor(parameter: str) -> str:
    """The tensor that a parameter belongs to: of an attached one the weight that it is a leaf of."""
    owner, mark, rest = parameter.partition("parametrizations.")
    return owner + rest.partition(".")[0] if mark else parameter
