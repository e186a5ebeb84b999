"""Pointwise convolutions with strides: what they read is picked out first, then they are products of what is left."""

from __future__ import annotations

from typing import Self, final

from torch import Tensor

from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.conv_product import ConvolutionProduct, PlaneProduct
from gossamer.runtime.conv_tiles import PlaneTiles
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.pooling import every_second
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import OpenMP

__all__ = ["SteppedProduct", "pointwise_part"]


def pointwise_part(geometry: Geometry, lanes: int) -> Geometry | None:
    """What is left of a pointwise convolution once its stride of 2 has been taken; None for other convolutions.

    Where vectors hold more than 8 floats it was not measured whether that pays.
    """
    stepped = Geometry((1, 1), (2, 2), (0, 0), (0, 0), geometry.dilation)
    return Geometry((1, 1), (1, 1), (0, 0), (0, 0), (1, 1)) if geometry == stepped and lanes <= 8 else None


@final
class SteppedProduct(PlaneProduct):
    """Y = f(W ⊛ X + b + R) for a weight W [M, C, 1, 1] and a stride of 2.

    Args:
        geometry: with the stride.
        inner: the product without it.
        openmp: where threads come from.

    Cost: that of the product, and a copy of a quarter of X.
    """

    def __init__(self, geometry: Geometry, inner: ConvolutionProduct, openmp: OpenMP) -> None:
        super().__init__(inner.rows, inner.channels, geometry, inner.activation, inner.kernels, inner.way)
        self.inner, self._openmp = inner, openmp

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """f(W ⊛ x + b + R), of planes."""
        return self.inner(x[..., ::2, ::2].contiguous(), residual)

    def tiled(self, x: PlaneTiles, residual: PlaneTiles | None = None, *, into: bool = False) -> PlaneTiles:
        """The same for planes cut into blocks."""
        return self.inner.tiled(every_second(x, self.kernels, self._openmp, self.memory), residual, into=into)

    def within(self, activation: Activation, memory: Slabs) -> Self:
        """The same weight, shared, with another f and outputs in the memory of a network."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.activation, made.memory, made.inner = activation, memory, self.inner.within(activation, memory)
        return made

    def forget(self) -> None:
        """Drops tables of image sizes that were met; they are made anew when needed."""
        self.inner.forget()

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return self.inner.nonzeros

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.inner.density

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, indices, counts and order; without the bias."""
        return self.inner.resident_bytes
