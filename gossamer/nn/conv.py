"""``torch.nn.Conv2d`` whose parameters are the live weights only."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import PlanError
from gossamer.nn.dead import SeenPlanes
from gossamer.nn.laid_out import compiled
from gossamer.nn.layer import SparseLayer
from gossamer.nn.topology import Topology
from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.live_conv import LiveConvolution
from gossamer.runtime.live_conv_code import STRIDES
from gossamer.runtime.live_planes import Blocks, interleaved, planes_math

__all__ = ["SparseConv2d"]

Pair = int | tuple[int, int]

_DENSE_LEAD = 2.5
"""How many times as many multiply-adds per second PyTorch's dense convolutions do, changes of layout counted."""


@final
class SparseConv2d(SparseLayer):
    """Y = W ⊛ X + b, W live at the positions of a topology and zero elsewhere; float32 values [live] are what trains.

    Under autocast inputs are cast to the type of the values, and so are arithmetic and output. That is float32, the
    only type that kernels know; what follows casts its own inputs. Outputs have channels last in memory if inputs have.

    Args:
        in_channels: C.
        out_channels: M.
        kernel_size: rows and columns of the kernel.
        stride: step of each dimension.
        padding: zeros around the planes.
        dilation: distance of neighbouring weights.
        bias: whether there is one.
        topology: of shape (M, C, kh, kw).
        values: float32 [live]; None to draw them as `torch.nn.Conv2d` would, U(−1/√n, 1/√n), with n the mean number of
            live weights of an output channel instead of C·kh·kw: the variance does not depend on the density.

    Raises:
        PlanError: shapes do not fit.

    Cost: live multiply-adds per output position forward, and as many for each of the two gradients. Weights of which
        more than some 40% are live, and batches that fill only a small part of a vector, are faster in dense
        convolutions of PyTorch; the dense weight then exists for a while.
    Exact: sums in float32; in kernels, their order depends on the topology and the number of images alone.

    Example:
        >>> topology = Topology((1, 2, 1, 2), torch.tensor([0, 3], dtype=torch.int32))
        >>> layer = SparseConv2d(2, 1, (1, 2), bias=False, topology=topology, values=torch.tensor([2.0, -1.0]))
        >>> layer(torch.tensor([[[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]]])).tolist()
        [[[[-18.0, -26.0]]]]
        >>> layer
        SparseConv2d(1, 2, 1, 2, bias=False, live=2, sparsity=0.5000, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = True,
        *,
        topology: Topology,
        values: Tensor | None = None,
    ) -> None:
        kernel = _pair("kernel_size", kernel_size, 1)
        shape = (out_channels, in_channels, *kernel)
        if topology.shape != shape:
            raise PlanError(f"SparseConv2d: found topology {topology.shape}, expected {shape}")
        bound = 1 / math.sqrt(max(1.0, math.prod(shape[1:]) * topology.density))
        device = topology.positions.device
        if values is None:
            values = torch.empty(topology.live, device=device).uniform_(-bound, bound)
        drawn = torch.empty(out_channels, device=device).uniform_(-bound, bound) if bias else None
        super().__init__(topology, values, drawn)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
        self.dilation = _pair("dilation", dilation, 1)
        self.geometry = Geometry(kernel, self.stride, self.padding, self.padding, self.dilation)

    @classmethod
    def of(cls, conv: nn.Conv2d, mask: Tensor) -> SparseConv2d:
        """A dense layer without the weights that a mask takes out; weights and bias are copied.

        Args:
            conv: the layer; without groups, padded with equally many zeros on opposite sides.
            mask: bool [M, C, kh, kw], True = kept.

        Raises:
            PlanError: the mask does not fit, or the layer has groups or another padding.
        """
        if mask.shape != conv.weight.shape:
            raise PlanError(f"mask: found {tuple(mask.shape)}, expected {tuple(conv.weight.shape)}")
        if conv.groups != 1:
            raise PlanError(f"SparseConv2d: found {conv.groups} groups, expected 1")
        topology = Topology.of_mask(mask)
        values = conv.weight.detach().reshape(-1)[topology.positions.long()].float()
        made = cls(
            conv.in_channels,
            conv.out_channels,
            _two(conv.kernel_size),
            _two(conv.stride),
            _padding(conv),
            _two(conv.dilation),
            conv.bias is not None,
            topology=topology,
            values=values,
        )
        with torch.no_grad():
            if made.bias is not None and conv.bias is not None:
                made.bias.copy_(conv.bias)
        return made.train(conv.training)

    def to_conv(self) -> nn.Conv2d:
        """The same layer with its zeros, parameters copied."""
        made = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device=self.values.device,
        )
        made.to(self.values.dtype)
        with torch.no_grad():
            made.weight.copy_(self.dense_weight())
            if self.bias is not None and made.bias is not None:
                made.bias.copy_(self.bias)
        return made.train(self.training)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of outputs for planes of a size; not positive if the kernel is larger than a plane."""
        return self.geometry.outputs(size)

    def forward(self, x: Tensor) -> Tensor:
        """W ⊛ X + b.

        Args:
            x: [N, C, rows, columns] or [C, rows, columns], float32 or, under autocast, any floating type.

        Returns:
            [N, M, …] or [M, …].
        """
        if x.ndim == 3:
            return self.forward(x[None])[0]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            found = f"found input {tuple(x.shape)}"
            raise RuntimeError(f"SparseConv2d: {found}, expected [N, {self.in_channels}, rows, columns]")
        if min(self.outputs((x.shape[2], x.shape[3]))) < 1:
            reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
            padded = tuple(n + 2 * p for n, p in zip(x.shape[2:], self.padding, strict=True))
            raise RuntimeError(f"SparseConv2d: found padded planes of {padded}, expected at least {reach}")
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._apply_to(x.to(self.values.dtype))
        return self._apply_to(x)

    def live_convolution(self) -> LiveConvolution | None:
        """The places laid out for compiled kernels; None where there are none for this device, type or stride."""
        return self.laid_out(self._lay_out) if self.stride[1] in STRIDES else None

    def _lay_out(self, positions: Tensor) -> LiveConvolution:
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return LiveConvolution(shape, self.geometry, positions.numpy(), planes_math())

    def _pays(self, images: int) -> bool:
        """Whether sparse kernels beat dense convolutions: they compute whole vectors of images."""
        lanes = planes_math().lanes if compiled() else 1
        computed = -(-images // lanes) * lanes * self.values.numel()
        return computed * _DENSE_LEAD <= images * self.topology.size

    def _apply_to(self, x: Tensor) -> Tensor:
        kernels = x.dtype is torch.float32 and x.is_cpu and x.numel() and self._pays(len(x))
        live = self.live_convolution() if kernels else None
        if live is None:
            y: Tensor = _PlainConvolution.apply(x, self.values, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            y = _Convolution.apply(x, self.values, self.bias, self, live)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class _Convolution(torch.autograd.Function):
    """The product and its two gradients on compiled kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseConv2d, live: LiveConvolution
    ) -> Tensor:
        """W ⊛ X + b; the input is kept in the layout of the kernels, for the gradient of the values."""
        size = (x.shape[2], x.shape[3])
        x_frame, ctx.frame = live.frames(size)
        blocks = live.math.pack(x.resolve_neg(), x_frame)
        ctx.last = interleaved(x)
        y = live.math.unpack(live.product(values, blocks, bias), last=ctx.last)
        kept = ctx.needs_input_grad[1] or layer.watching
        ctx.save_for_backward(values, blocks.data if kept else None)
        ctx.live, ctx.layer, ctx.size = live, layer, size
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        values, x_data = ctx.saved_tensors
        live, layer, size = ctx.live, ctx.layer, ctx.size
        needs_x, needs_values, needs_bias, *_ = ctx.needs_input_grad
        blocks = live.math.pack(dy.resolve_neg(), ctx.frame)
        dx = live.math.unpack(live.input_gradient(values, blocks, size), last=ctx.last) if needs_x else None
        dvalues = None
        if x_data is not None:
            x = Blocks(x_data, len(dy), layer.in_channels, size, live.frames(size)[0], live.math.lanes)
            dvalues = live.gradient(x, blocks) if needs_values else None
            if layer.watching:
                geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
                layer.saw(SeenPlanes(x.planes(), blocks.planes(), *geometry))
        return dx, dvalues, dy.sum((0, 2, 3)) if needs_bias else None, None, None


class _PlainConvolution(torch.autograd.Function):
    """In PyTorch's own operations, on any device and in any type; the dense weight exists meanwhile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseConv2d) -> Tensor:
        """W ⊛ X + b."""
        topology = layer.topology
        ctx.save_for_backward(x, values)
        ctx.topology, ctx.layer = topology, layer
        return F.conv2d(x, topology.dense(values), bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        x, values = ctx.saved_tensors
        topology, layer = ctx.topology, ctx.layer
        needs = ctx.needs_input_grad[:3]
        dx, dweight, dbias = torch.ops.aten.convolution_backward(
            dy,
            x,
            topology.dense(values),
            [len(dy[0])] if needs[2] else None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            (0, 0),
            1,
            needs,
        )
        dvalues = dweight.reshape(-1)[topology.positions.long()] if needs[1] else None
        if layer.watching:
            seen = SeenPlanes(x, dy, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            layer.saw(seen)
        return dx, dvalues, dbias, None


def _pair(name: str, given: Pair, least: int) -> tuple[int, int]:
    made = (given, given) if isinstance(given, int) else given
    if min(made) < least:
        raise PlanError(f"SparseConv2d: found {name} = {given}, expected one or two integers of at least {least}")
    return made[0], made[1]


def _two(given: tuple[int, ...]) -> tuple[int, int]:
    a, b = given
    return a, b


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Of both dimensions, with ``"same"`` and ``"valid"`` resolved."""
    if conv.padding_mode != "zeros":
        raise PlanError(f"SparseConv2d: found padding mode {conv.padding_mode}, expected zeros")
    if not isinstance(conv.padding, str):
        return _two(conv.padding)
    if conv.padding == "valid":
        return 0, 0
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if total[0] % 2 or total[1] % 2:
        raise PlanError(f"SparseConv2d: found {tuple(total)} zeros in all, expected equally many on opposite sides")
    return total[0] // 2, total[1] // 2
