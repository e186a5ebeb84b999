"""``torch.nn.Linear`` whose parameters are the live weights only."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.nn.dead import SeenTokens
from gossamer.nn.layer import SparseLayer
from gossamer.nn.topology import Topology
from gossamer.runtime.live import Batch, LiveMatrix, live_math

__all__ = ["SparseLinear", "live_product"]


@final
class SparseLinear(SparseLayer):
    """y = x·Wᵀ + b, W live at the positions of a topology and zero elsewhere; float32 values [live] are what trains.

    Under autocast inputs are cast to the type of the values, and so are arithmetic and output. That is float32, the
    only type that kernels know; what follows casts its own inputs.

    Args:
        in_features: K.
        out_features: M.
        bias: whether there is one.
        topology: of shape (M, K).
        values: float32 [live]; None to draw them as `torch.nn.Linear` would, U(−1/√n, 1/√n), with n the mean number of
            live weights of a row instead of K: the variance of the outputs does not depend on the density.

    Raises:
        PlanError: shapes do not fit.

    Cost: live multiply-adds per token forward, and as many for each of the two gradients.
    Exact: sums in float32 whose order depends on the topology alone.

    Example:
        >>> topology = Topology((2, 3), torch.tensor([1, 3], dtype=torch.int32))
        >>> layer = SparseLinear(3, 2, bias=False, topology=topology, values=torch.tensor([2.0, -1.0]))
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[20.0, -1.0]]
        >>> layer
        SparseLinear(2, 3, bias=False, live=2, sparsity=0.6667)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        topology: Topology,
        values: Tensor | None = None,
    ) -> None:
        if topology.shape != (out_features, in_features):
            raise PlanError(f"SparseLinear: found topology {topology.shape}, expected {(out_features, in_features)}")
        bound = 1 / math.sqrt(max(1.0, in_features * topology.density))
        device = topology.positions.device
        if values is None:
            values = torch.empty(topology.live, device=device).uniform_(-bound, bound)
        drawn = torch.empty(out_features, device=device).uniform_(-bound, bound) if bias else None
        super().__init__(topology, values, drawn)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def of(cls, linear: nn.Linear, mask: Tensor) -> SparseLinear:
        """A dense layer without the weights that a mask takes out; weights and bias are copied.

        Args:
            linear: the layer.
            mask: bool [M, K], True = kept.

        Raises:
            PlanError: the mask does not fit.
        """
        if mask.shape != linear.weight.shape:
            raise PlanError(f"mask: found {tuple(mask.shape)}, expected {tuple(linear.weight.shape)}")
        topology = Topology.of_mask(mask)
        values = linear.weight.detach().reshape(-1)[topology.positions.long()].float()
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, topology=topology, values=values)
        with torch.no_grad():
            if made.bias is not None:
                made.bias.copy_(linear.bias)
        return made.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """The same layer with its zeros, parameters copied."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.values.device)
        made.to(self.values.dtype)
        with torch.no_grad():
            made.weight.copy_(self.dense_weight())
            if self.bias is not None:
                made.bias.copy_(self.bias)
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b.

        Args:
            x: [..., K], float32 or, under autocast, any floating type.

        Returns:
            [..., M].
        """
        if x.shape[-1:] != (self.in_features,):
            raise RuntimeError(f"SparseLinear: found input {tuple(x.shape)}, expected [..., {self.in_features}]")
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._apply_to(x.to(self.values.dtype))
        return self._apply_to(x)

    def live_matrix(self) -> LiveMatrix | None:
        """The places laid out for compiled kernels; None where there are none for this device or type."""
        return self.laid_out(self._lay_out)

    def _lay_out(self, positions: Tensor) -> LiveMatrix:
        return LiveMatrix((self.out_features, self.in_features), positions.numpy(), live_math())

    def _apply_to(self, x: Tensor) -> Tensor:
        matrix = self.live_matrix() if x.dtype is torch.float32 and x.is_cpu and x.numel() else None
        if matrix is None:
            y: Tensor = _PlainLinear.apply(x, self.values, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            y = _Linear.apply(x, self.values, self.bias, self, matrix)  # type: ignore[no-untyped-call]
        return y


def live_product(x: Tensor, values: Tensor, bias: Tensor | None, matrix: LiveMatrix) -> Tensor:
    """x·Wᵀ + b on compiled kernels, differentiable in everything but the places.

    Args:
        x: float32 [..., K] on the CPU.
        values: float32 [live], row-major.
        bias: float32 [M] or None.
        matrix: where the values are in W.

    Returns:
        float32 [..., M].
    """
    y: Tensor = _Linear.apply(x, values, bias, None, matrix)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    """The product and its two gradients on compiled kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseLinear | None, matrix: LiveMatrix
    ) -> Tensor:
        """x·Wᵀ + b; activations are kept in the layout of the kernels, for the gradient of the values."""
        batch = matrix.math.batch(_rows(x, matrix.columns))
        y = matrix.math.rows(matrix.product(values, batch, bias))
        kept = ctx.needs_input_grad[1] or (layer is not None and layer.watching)
        ctx.save_for_backward(values, batch.data if kept else None)
        ctx.matrix, ctx.layer, ctx.shape, ctx.tokens = matrix, layer, x.shape, batch.tokens
        return y.view(*x.shape[:-1], matrix.rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        values, x_data = ctx.saved_tensors
        matrix, layer = ctx.matrix, ctx.layer
        needs_x, needs_values, needs_bias, *_ = ctx.needs_input_grad
        batch = matrix.math.batch(_rows(dy, matrix.rows))
        dx = matrix.math.rows(matrix.transposed_product(values, batch)).view(ctx.shape) if needs_x else None
        dvalues, dbias = None, None
        if needs_values:
            dvalues, dbias = matrix.gradient(Batch(x_data, ctx.tokens), batch, bias=needs_bias)
        elif needs_bias:
            dbias = batch.data.sum(2).sum(0)
        if layer is not None and layer.watching and x_data is not None:
            layer.saw(SeenTokens(x_data, batch.data))
        return dx, dvalues, dbias, None, None


class _PlainLinear(torch.autograd.Function):
    """The same in PyTorch's own operations, on any device and in any type; the dense weight exists meanwhile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: SparseLinear) -> Tensor:
        """x·Wᵀ + b."""
        rows, topology = x.reshape(-1, layer.in_features), layer.topology
        ctx.save_for_backward(rows, values)
        ctx.topology, ctx.layer, ctx.shape = topology, layer, x.shape
        y = nn.functional.linear(rows, topology.dense(values), bias)
        return y.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        rows, values = ctx.saved_tensors
        topology, layer = ctx.topology, ctx.layer
        dy = dy.reshape(-1, topology.shape[0])
        needs_x, needs_values, needs_bias, _ = ctx.needs_input_grad
        dx = (dy @ topology.dense(values)).view(ctx.shape) if needs_x else None
        dvalues = (dy.T @ rows).reshape(-1)[topology.positions.long()] if needs_values else None
        if layer.watching:
            layer.saw(SeenTokens(rows.T[None], dy.T[None]))
        return dx, dvalues, dy.sum(0) if needs_bias else None, None


def _rows(x: Tensor, features: int) -> Tensor:
    """[..., features] as [tokens, features] whose rows are contiguous."""
    rows = x.resolve_neg().reshape(x.shape[:-1].numel(), features)
    return rows if rows.stride(1) == 1 else rows.contiguous()
