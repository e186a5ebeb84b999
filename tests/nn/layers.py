"""Sparse layers with random places and values, and how far results are from float64's."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.nn import SparseConv2d, SparseLinear, Topology

__all__ = ["conv_of", "linear_of", "off"]


def off(found: Tensor | None, exact: Tensor | None) -> float:
    assert found is not None and exact is not None
    assert found.shape == exact.shape
    found, exact = found.detach(), exact.detach()
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)) if exact.numel() else 0.0


def linear_of(shape: tuple[int, int], density: float, seed: int = 0, bias: bool = True) -> SparseLinear:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=draw) < density
    made = SparseLinear(shape[1], shape[0], bias, topology=Topology.of_mask(mask))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return made


def conv_of(
    shape: tuple[int, int, int, int], density: float, seed: int = 0, bias: bool = True, **geometry: int
) -> SparseConv2d:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=draw) < density
    rows, columns, *kernel = shape
    made = SparseConv2d(
        columns,
        rows,
        (kernel[0], kernel[1]),
        bias=bias,
        topology=Topology.of_mask(mask),
        **geometry,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return made
