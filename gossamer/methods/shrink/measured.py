"""What is measured on the network itself: how often each weight is used, how long it takes, what a channel does."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.methods.shrink.check import outputs_of
from gossamer.methods.shrink.coupling import Coupling
from gossamer.network.inspect import is_transformers_conv1d

__all__ = ["changed_by", "influence", "median_ms", "uses_of"]


def uses_of(model: nn.Module, example: Any) -> dict[str, int]:
    """Multiplications per element of every weight in one forward pass.

    Σ uses · elements over all weights are the MACs of the layers; products without weights (attention's scores) are
    not counted.

    Args:
        model: in eval mode.
        example: its inputs.

    Example:
        >>> uses_of(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
        {'weight': 9}
    """
    uses: dict[str, int] = {}

    def add(name: str, times: int) -> None:
        uses[name] = uses.get(name, 0) + times

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        prefix = f"{name}." if name else ""

        def count(module: nn.Module, inputs: tuple[Any, ...], found: Any) -> None:
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if isinstance(module, nn.Linear):
                add(f"{prefix}weight", found.numel() // module.out_features)
            elif is_transformers_conv1d(module):
                add(f"{prefix}weight", found.numel() // found.shape[-1])
            elif isinstance(module, _ConvTransposeNd) and first is not None:
                add(f"{prefix}weight", first.numel() // module.in_channels)
            elif isinstance(module, _ConvNd):
                add(f"{prefix}weight", found.numel() // module.out_channels)
            elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and first is not None:
                for key, _ in module.named_parameters(recurse=False):
                    if key.startswith("weight"):
                        add(prefix + key, first.numel() // module.input_size)
            elif isinstance(module, nn.MultiheadAttention):
                for key, p in module.named_parameters():
                    if p.dim() == 2:
                        add(prefix + key, found[0].numel() // module.embed_dim)

        return count

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules()]
    try:
        outputs_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return uses


def median_ms(model: nn.Module, example: Any, *, seconds: float = 0.25, at_least: int = 5) -> float:
    """Median time of a forward pass, milliseconds, after three to warm up; the caller's number of threads."""
    for _ in range(3):
        outputs_of(model, example)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < at_least or (time.perf_counter() < until and len(taken) < 500):
        start = time.perf_counter()
        outputs_of(model, example)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2] * 1e3


def changed_by(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Σ ‖after − before‖² / Σ ‖before‖² over all floating-point outputs."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b.is_floating_point()]
    moved = sum(float((a.double() - b.double()).square().sum()) for b, a in pairs)
    return moved / max(sum(float(b.double().square().sum()) for b, _ in pairs), 1e-30)


def influence(model: nn.Module, couplings: Sequence[Coupling], example: Any) -> list[Tensor]:
    """How much the outputs change when what reads a channel reads zero instead.

    Args:
        model: in eval mode; not changed.
        couplings: whose channels.
        example: inputs, as many as are to be measured on.

    Returns:
        Per coupling float64 [channels], see `changed_by`. Costs one forward pass per channel.
    """
    own = copy.deepcopy(model)
    parameters: dict[str, Tensor] = dict(own.named_parameters(remove_duplicate=False))
    before = outputs_of(own, example)
    found = []
    for coupling in couplings:
        scores = torch.zeros(coupling.channels, dtype=torch.float64)
        for c in range(coupling.channels):
            saved: list[tuple[Tensor, Tensor]] = []
            with torch.no_grad():
                for member in coupling.readers():
                    tensor = parameters[member.tensor]
                    dim = _dim_in_network(own, member.tensor, member.dim)
                    index = member.index[c]
                    saved.append((tensor, tensor.detach().clone()))
                    tensor.index_fill_(dim, index, 0.0)
                scores[c] = changed_by(before, outputs_of(own, example))
                for tensor, old in saved:
                    tensor.copy_(old)
        found.append(scores)
    return found


def _dim_in_network(model: nn.Module, name: str, dim: int) -> int:
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 - dim if isinstance(owner, _ConvTransposeNd) or is_transformers_conv1d(owner) else dim
