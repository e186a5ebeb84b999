"""``torch.nn.Linear`` with zeros in its weight, for inference."""

from __future__ import annotations

from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.kernels import PackKernels, RowKernels, load
from gossamer.runtime.spmm import SparseProduct
from gossamer.runtime.threads import openmp

__all__ = ["SparseLinear", "available", "checked_rows"]


def available() -> bool:
    """Whether kernels can be compiled here; ``gossamer.jit.cpu.unavailable()`` says why not."""
    return unavailable() is None


@final
class SparseLinear(torch.nn.Module):
    """y = f(x·Wᵀ + b) for a weight W [M, K] with zeros, f the identity or ReLU; fp32 on the CPU, without gradients.

    It has no parameters: the packed weight never changes, and copies of the module share it.

    Args:
        shape: (M, K), as ``weight.shape`` of ``torch.nn.Linear``.
        positions: integers [n], where W is not zero: row · K + column, ascending.
        values: float32 [n], what is there.
        bias: float32 [M] or None.
        relu: whether negative results become zero; NaN stays NaN.
        dtype: of inputs and outputs, float32 or bfloat16; arithmetic is float32.
        level: instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: sizes or positions do not fit, or kernels cannot be compiled here.

    Cost: 6 bytes per non-zero; n multiply-adds per token.
    Exact: up to the order of float32 additions; 1e-6 of the largest output is typical.

    Example:
        >>> layer = SparseLinear((2, 3), torch.tensor([1, 3]), torch.tensor([2.0, -1.0]), None, relu=True)
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]]))
        tensor([[20.,  0.]])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        positions: Tensor | npt.NDArray[Any],
        values: Tensor | npt.NDArray[np.float32],
        bias: Tensor | npt.NDArray[np.float32] | None,
        *,
        relu: bool = False,
        dtype: torch.dtype = torch.float32,
        level: Level | None = None,
    ) -> None:
        super().__init__()
        if reason := unavailable():
            raise PlanError(f"sparse kernels: {reason}, expected a processor that LLVM can compile for at run time")
        self.out_features, self.in_features = shape
        self.relu = relu
        self.dtype = dtype
        level = wanted_level() if level is None else level
        self._product = SparseProduct(
            shape,
            _array(positions),
            _array(values),
            None if bias is None else _array(bias),
            relu=relu,
            kernels=_kernels(level),
            openmp=openmp(),
            packers=load(PackKernels, host(level), cache_directory()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """f(x·Wᵀ + b).

        Args:
            x: [..., K] on the CPU, any strides.

        Returns:
            [..., M], contiguous, of the same dtype.

        Raises:
            RuntimeError: x has another dtype, device or width, or a gradient is asked for.
        """
        rows = checked_rows(x, self.in_features, "SparseLinear", self.dtype)
        y = self._product(rows) if self.dtype is torch.float32 else self._product(rows.float()).to(self.dtype)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self._product.resident_bytes

    @property
    def product(self) -> SparseProduct:
        """The packed weight and its kernels."""
        return self._product

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        zeros = 1 - self._product.nonzeros / max(1, self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, sparsity={zeros:.3f}, relu={self.relu}"
        )


def checked_rows(x: Tensor, features: int, who: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input [..., features] as rows [tokens, features] whose elements are adjacent.

    Raises:
        RuntimeError: it has another dtype, device or width, or a gradient is asked for.
    """
    if x.dtype is not dtype or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
        raise RuntimeError(_refusal(x, features, who, dtype))
    x = x.resolve_neg()  # imaginary parts of conjugates are stored with the other sign
    if x.ndim == 2 and x.shape[1] == features:
        return x if x.is_contiguous() or x.stride(1) == 1 else x.contiguous()
    if x.ndim in (0, 2) or x.shape[-1] != features:
        raise RuntimeError(_refusal(x, features, who, dtype))
    return x.reshape(x.shape[:-1].numel(), features).contiguous()


def _refusal(x: Tensor, features: int, who: str, dtype: torch.dtype) -> str:
    if x.requires_grad and torch.is_grad_enabled():
        return f"{who}: found an input that requires a gradient, expected inference; train with .trainable()"
    found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
    return f"{who}: {found}, expected [..., {features}] {dtype} on cpu"


@cache
def _kernels(level: Level) -> RowKernels:
    return load(RowKernels, host(level), cache_directory())


def _array(given: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not isinstance(given, Tensor):
        return given
    array: npt.NDArray[Any] = given.detach().cpu().numpy()
    return array
