"""``torch.nn.Conv1d`` and ``Conv2d`` with zeros in their weights, for inference."""

from __future__ import annotations

import copy
from functools import cache
from typing import cast, final

import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.conv_code import widths
from gossamer.runtime.conv_plan import Geometry, plan
from gossamer.runtime.conv_product import ConvolutionProduct, GroupedProduct, PlaneProduct, panel_width
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.kernels import ConvolutionKernels, PackKernels, load
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.stepped_product import SteppedProduct, pointwise_part
from gossamer.runtime.strips import in_strips
from gossamer.runtime.threads import openmp

__all__ = ["SparseConv", "geometry_of", "product_of", "refusal"]


def geometry_of(layer: nn.Conv1d | nn.Conv2d) -> Geometry | str:
    """A layer's geometry with two dimensions, or why there is no kernel for it."""
    if layer.groups > 1 and layer.in_channels == layer.groups:
        return f"{layer.groups} groups of one channel: it stays dense"
    if layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode!r}: sparse kernels pad with zeros"
    spatial = len(layer.kernel_size)

    def two(given: tuple[int, ...], missing: int) -> tuple[int, int]:
        return (missing, given[0]) if spatial == 1 else (given[0], given[1])

    kernel, dilation = layer.kernel_size, layer.dilation
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if layer.padding == "same":
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
    elif layer.padding == "valid":
        before = after = (0,) * spatial
    else:
        before = after = cast("tuple[int, ...]", layer.padding)
    return Geometry(two(kernel, 1), two(layer.stride, 1), two(before, 0), two(after, 0), two(dilation, 1))


def refusal(layer: nn.Conv1d | nn.Conv2d, size: tuple[int, ...], density: float) -> str:
    """Why there is no kernel for a layer and inputs of a size; empty if there is one."""
    geometry = geometry_of(layer)
    if isinstance(geometry, str):
        return geometry
    high, wide = (1, size[0]) if len(size) == 1 else (size[0], size[1])
    if min(geometry.outputs((high, wide))) < 1:
        return "no outputs"
    lanes, channels = host(wanted_level()).lanes, layer.in_channels // layer.groups
    try:
        for way in Way:
            known = widths(way, lanes)
            panel = panel_width(channels, geometry, (high, wide), density, known, lanes)
            plan(geometry, (high, wide), channels, panel, 1, lanes, known, high * wide)
    except PlanError as error:
        return str(error)
    return ""


@cache
def _kernels(level: Level) -> ConvolutionKernels:
    return load(ConvolutionKernels, host(level), cache_directory())


def product_of(
    layer: nn.Conv1d | nn.Conv2d,
    way: Way,
    size: tuple[int, ...],
    *,
    activation: Activation = Activation.NONE,
    level: Level | None = None,
    panel: int | None = None,
) -> PlaneProduct:
    """A layer's weight packed for images like those of a size.

    Raises:
        PlanError: there is no kernel for it, or kernels cannot be compiled here.
    """
    if reason := unavailable():
        raise PlanError(f"sparse kernels: {reason}, expected a processor that LLVM can compile for at run time")
    geometry = geometry_of(layer)
    if isinstance(geometry, str):
        raise PlanError(f"sparse convolution: found {geometry}")
    level = wanted_level() if level is None else level
    kernels, packers = _kernels(level), load(PackKernels, host(level), cache_directory())
    weight = layer.weight.detach().cpu().float()
    weight = weight.reshape(*weight.shape[:2], *geometry.kernel)
    bias = None if layer.bias is None else layer.bias.detach().cpu().float().numpy()
    rows = layer.out_channels // layer.groups
    size = (1, size[0]) if len(size) == 1 else (size[0], size[1])
    stepped = pointwise_part(geometry, kernels.processor.lanes) if layer.groups == 1 else None
    parts = tuple(
        ConvolutionProduct(
            weight[first : first + rows].numpy(),
            None if bias is None else bias[first : first + rows],
            stepped or geometry,
            activation=activation,
            kernels=kernels,
            packers=packers,
            openmp=openmp(),
            way=way,
            size=geometry.outputs(size) if stepped else size,
            panel=panel,
        )
        for first in range(0, layer.out_channels, rows)
    )
    if stepped:
        return SteppedProduct(geometry, parts[0], openmp())
    return parts[0] if len(parts) == 1 else GroupedProduct(parts)


@final
class SparseConv(nn.Module):
    """A drop-in replacement of a convolution with zeros in its weight; fp32 on the CPU, without gradients.

    It has no parameters: the packed weight never changes, and copies of the module share it.

    Args:
        layer: padded with zeros, not depthwise; its weight is copied.
        way: how a group's non-zeros are ordered.
        size: rows and columns, or the length, of typical inputs.
        activation: applied to the outputs.
        level: instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.
        panel: channels per panel; None to choose.

    Raises:
        PlanError: there is no kernel for the layer, or kernels cannot be compiled here.

    Cost: 6 bytes per non-zero; n multiply-adds per output place.
    Exact: up to the order of float32 additions; 1e-6 of the largest output is typical.

    Example:
        >>> layer = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 0.0, 10.0]]]))
        >>> SparseConv(layer, Way.SLICED, (4,))(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        tensor([[[20., 31., 42.,  3.]]])
    """

    def __init__(
        self,
        layer: nn.Conv1d | nn.Conv2d,
        way: Way,
        size: tuple[int, ...],
        *,
        activation: Activation = Activation.NONE,
        level: Level | None = None,
        panel: int | None = None,
    ) -> None:
        super().__init__()
        self.product = product_of(layer, way, size, activation=activation, level=level, panel=panel)
        self.dimensions = len(layer.kernel_size)

    def within(self, activation: Activation, memory: Slabs) -> SparseConv:
        """The same weight, shared, with another activation and outputs in the memory of a network."""
        made = copy.copy(self)
        made.product = self.product.within(activation, memory)
        return made

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """float32 [N, C, …] or [C, …] → [N, M, …] or [M, …].

        Args:
            x: any strides.
            residual: added before the activation; of the result's shape.

        Raises:
            RuntimeError: x has another dtype, device or shape, or a gradient is asked for.
        """
        product, n = self.product, self.dimensions
        fits = (
            x.dtype is torch.float32 and x.is_cpu and x.ndim in (n + 1, n + 2) and x.shape[-n - 1] == product.channels
        )
        if not fits or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(self._refusal(x))
        size = (1, x.shape[-1]) if n == 1 else (x.shape[-2], x.shape[-1])
        if min(product.geometry.outputs(size)) < 1 or 0 in size:
            raise RuntimeError(f"SparseConv: found input {tuple(x.shape)}, smaller than the kernel")
        outer = x.shape[: x.ndim - n - 1]
        if residual is not None:
            rows, columns = product.geometry.outputs(size)
            places = (columns,) if n == 1 else (rows, columns)
            if residual.shape != (*outer, product.rows, *places) or residual.dtype is not torch.float32:
                found = f"found residual {tuple(residual.shape)} {residual.dtype}"
                raise RuntimeError(f"SparseConv: {found}, expected {(*outer, product.rows, *places)} torch.float32")
            residual = residual.resolve_neg().contiguous()
        y = in_strips(product, x.resolve_neg().contiguous().view(-1, product.channels, *size), residual)
        return y.view(*outer, product.rows, *(y.shape[3:] if n == 1 else y.shape[2:]))

    def _refusal(self, x: Tensor) -> str:
        if x.requires_grad and torch.is_grad_enabled():
            return "SparseConv: found an input that requires a gradient, expected inference; train with .trainable()"
        places = ", length" if self.dimensions == 1 else ", rows, columns"
        found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
        return f"SparseConv: {found}, expected [N, {self.product.channels}{places}] torch.float32 on cpu"

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self.product.resident_bytes

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        p = self.product
        return f"{p.channels}, {p.rows}, {p.geometry}, sparsity={1 - p.density:.3f}, {p.way.name.lower()}"
