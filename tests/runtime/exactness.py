"""Layers with zeros, what they compute in float64, and how far results are from it."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv1d, nn.Conv2d, nn.Conv1d | nn.Conv2d)

__all__ = ["error", "exact", "thinned"]


def error(y: Tensor, exact: Tensor) -> float:
    """max|y − y64| / max|y64|."""
    assert y.shape == exact.shape and y.dtype == torch.float32
    if exact.numel() == 0:
        return 0.0
    return float((y - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer computes in float64."""
    with torch.inference_mode():
        found: Tensor = copy.deepcopy(layer).double()(x.double())
        return found


def thinned(layer: Layer, density: float) -> Layer:
    """The layer in eval mode with random zeros."""
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < density
    return layer.eval()
