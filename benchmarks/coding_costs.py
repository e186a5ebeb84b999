"""What a lost share of each layer's energy costs a network, measured: that layer alone is rounded, the rest stays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from math import exp, log

import torch
from torch import Tensor, nn

from gossamer.drive.recipe import run, run_method
from gossamer.methods.base import Method
from gossamer.methods.quantize import RateDistortion

__all__ = ["measured_costs", "priced"]

_LEAST = 0.02  # of the mean cost: what a few pictures hardly show is not free
_PART = 16


@torch.inference_mode()
def _answers(network: nn.Module, images: Tensor) -> Tensor:
    """Logits, of mean zero: a softmax does not see their mean."""
    found = torch.cat([network(part) for part in images.split(_PART)])
    return found - found.mean(1, keepdim=True)


def measured_costs(network: nn.Module, images: Tensor, rounding: RateDistortion) -> dict[str, float]:
    """Squared error of the answers, as a share of their variance, per lost share of the energy of each weight alone.

    Errors of layers add up while they are small, so that at one price of a bit in errors of the answers a layer's rate
    is in inverse proportion to its cost.

    Args:
        network: a classifier in eval mode.
        images: that no measure sees, [n, …].
        rounding: about as coarse as the network will be.

    Returns:
        Name of a weight → cost; the mean of its logarithm over all numbers is 0.

    Cost: one forward pass over the images per weight.
    """
    state = run(network, [])
    run_method(rounding, state, {})
    tried = copy.deepcopy(network)
    parameters = dict(tried.named_parameters())
    wanted = _answers(network, images)
    costs, elements = dict[str, float](), dict[str, int]()
    for spec in state.specs:
        if len(spec.shape) < 2:
            continue
        held = parameters[spec.name]
        dense, rounded = held.data, state.trees[spec.name].to_dense().detach()
        held.data = rounded
        wrong = (_answers(tried, images) - wanted).square().mean(1) / wanted.var(1)
        held.data = dense
        lost = float((rounded - dense).square().sum() / dense.square().sum())
        costs[spec.name], elements[spec.name] = float(wrong.mean()) / max(lost, 1e-12), spec.elements
    total = sum(elements.values())
    mean = sum(elements[name] * cost for name, cost in costs.items()) / total
    costs = {name: max(cost, _LEAST * mean) for name, cost in costs.items()}
    middle = exp(sum(elements[name] * log(cost) for name, cost in costs.items()) / total)
    return {name: cost / middle for name, cost in costs.items()}


def priced(rounding: RateDistortion, rate: float, costs: Mapping[str, float]) -> list[Method]:
    """The same rounding of every weight at its own rate.

    Args:
        rounding: settings beside the rate.
        rate: at a cost of 1.
        costs: as `measured_costs` found them.
    """
    return [replace(rounding, rate=rate / cost, only=(name,)) for name, cost in costs.items()]
