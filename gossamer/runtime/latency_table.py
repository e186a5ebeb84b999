"""Milliseconds of each layer at several densities, on this machine, with the kernels that `lower` would choose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.latency import interleaved
from gossamer.methods.prune import LatencyTable
from gossamer.network.inspect import tensors
from gossamer.runtime.lower import lower

__all__ = ["latency_table"]

_SECONDS = 0.1


def latency_table(
    model: nn.Module, example_inputs: Tensor, densities: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.4)
) -> LatencyTable:
    """Lower the network at each density and take the layers' times; density 1 is the dense layer.

    Args:
        model: dense; not changed.
        example_inputs: of the batch size that matters.
        densities: rising, above 0 and below 1; positions of the weights that stay are spread evenly.

    Raises:
        DataError: inputs that the network rejects.

    Cost: about 0.3 s per layer and density. Nothing is estimated: numbers of another machine are worth nothing here.
    """
    times: dict[str, list[tuple[float, float]]] = {}
    for density in densities:
        thin = copy.deepcopy(model).eval()
        with torch.no_grad():
            for weight in tensors(thin).values():
                if weight.dim() >= 2:
                    weight.copy_(_thinned(weight, density))
        for choice in lower(thin, example_inputs).explain():
            if choice.ms == choice.ms:  # layers for which nothing was tried have no time
                times.setdefault(choice.layer, []).append((float(density), choice.ms))
    dense = _dense_times(model, example_inputs)
    layers = []
    for layer, ms in dense.items():
        # A layer that only dense code can run takes the same time at any density.
        points = times.get(layer) or [(float(densities[0]), ms)]
        layers.append((f"{layer}.weight" if layer else "weight", (*points, (1.0, ms))))
    return LatencyTable(tuple(layers))


def _thinned(weight: Tensor, density: float) -> Tensor:
    places = torch.arange(weight.numel(), dtype=torch.float64)
    kept = ((places + 1) * density).floor() > (places * density).floor()
    # An even stride would give every row the same columns; a fixed shuffle of each row's start does not.
    rows = kept.view(weight.shape[0], -1)
    shifts = (torch.arange(weight.shape[0]) * 7919) % max(1, rows.shape[1])
    at = (torch.arange(rows.shape[1]) + shifts[:, None]) % max(1, rows.shape[1])
    return torch.where(rows.gather(1, at).view(weight.shape), torch.ones_like(weight), 0)


def _dense_times(model: nn.Module, example: Tensor) -> dict[str, float]:
    network = copy.deepcopy(model).eval()
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.setdefault(name, (module, inputs[0].detach().clone()))

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in network.named_modules()
        if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            network(example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"example_inputs: the network rejects them: {str(error).splitlines()[0][:160]}") from error
    finally:
        for handle in handles:
            handle.remove()
    calls: dict[str, Callable[[], object]] = {name: partial(layer, x) for name, (layer, x) in seen.items()}
    measured = interleaved(calls, seconds=_SECONDS * max(1, len(calls)))
    return {name: timing.median_ms for name, timing in measured.items()}
