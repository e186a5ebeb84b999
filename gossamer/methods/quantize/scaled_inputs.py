"""The frame of quantizers that scale a layer's inputs, and its weights the other way, before they round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked, Scaled
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, MASKED, Entry, Evidence, Rule, Shared, Site
from gossamer.methods.quantize.gptq import affine_of, live_mask
from gossamer.methods.quantize.grid import fitted
from gossamer.methods.quantize.groups import (
    Groups,
    PerGroup,
    ScaleType,
    check_bits,
    check_scale_dtype,
    grouping_of,
    stored_scale,
)
from gossamer.methods.quantize.inputs import matrix_shape, seen_grams
from gossamer.methods.quantize.rtn import AFFINE, RoundToNearest
from gossamer.methods.second_order import row_errors

__all__ = ["ScaledInputs"]

_LEAST = 1e-4  # of the largest input, or of the largest weight: what is smaller counts as that


@dataclass(frozen=True, kw_only=True)
class ScaledInputs(PerGroup):
    """w = q · diag(1/a): columns of large inputs are made larger by a before they are rounded, and keep more digits.

    1/a is stored as the input scale of the encoding: nothing outside the layer changes.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest.
    """

    produced: ClassVar[Skeleton] = AFFINE

    bits: int = 4
    symmetric: bool = False
    scale_dtype: ScaleType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)

    @property
    def needs(self) -> frozenset[str]:
        """Products of inputs; their squares for layers that have no more."""
        return frozenset({"gram", "sq", "count"})

    def rules(self) -> tuple[Rule, ...]:
        """Dense or masked weights become scaled quantized ones."""

        def scaled(inner: Skeleton) -> Skeleton:
            return Skeleton(Scaled, (("inner", inner), ("input_scale", DENSE)))

        return (
            Rule(DENSE, lambda _: scaled(AFFINE)),
            Rule(MASKED, lambda s: scaled(Skeleton(Masked, (("where", s.at("/where")), ("value", AFFINE))))),
        )

    def refuses(self, site: Site) -> str:
        """Vectors have no inputs to scale."""
        return "" if len(site.shape) >= 2 else f"found shape {site.shape}, expected at least two dimensions"

    @abstractmethod
    def gains(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """Factors a [n] to choose from.

        Args:
            inputs: float64 [n], root mean square of each input, the largest 1, none below 1e-4.
            weights: float64 [n], largest magnitude in each column, none below 1e-4 of the largest of all.
        """

    @property
    @abstractmethod
    def ranges(self) -> int:
        """Ranges tried per group."""

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Quantize with what is known of the inputs."""
        del entry, shared
        shape = matrix_shape(site.shape)
        matrix, keep = weight.to_dense().detach().double().reshape(shape), live_mask(weight, shape)
        grams, _ = seen_grams(f"{type(self).__name__}: {site.key}", site, evidence)
        size = inputs_size(grams)
        largest = matrix.abs().amax(0) if len(matrix) else matrix.new_ones(shape[1])
        most = float(largest.max()) or 1.0
        largest = torch.where(largest > 0, largest.clamp_min(_LEAST * most), most)
        best: tuple[float, Encoding] | None = None
        for gain in self.gains(size, largest):
            back = stored_scale(self, 1 / gain, self.scale_dtype, site.key)
            inner, found = self._rounded(site, weight, matrix / back.double(), keep, grams, back.double())
            off = matrix - found * back.double()
            error = sum(float(row_errors(rows, g).sum()) for rows, g in zip(off.chunk(len(grams)), grams, strict=True))
            if best is None or error < best[0]:
                best = error, Scaled(inner, Dense(back), None)
        if best is None:
            raise PlanError(f"{type(self).__name__}: {site.key}: found nothing to choose from, expected factors")
        return best[1]

    def _rounded(
        self, site: Site, weight: Encoding, matrix: Tensor, keep: Tensor | None, grams: Tensor, back: Tensor
    ) -> tuple[Encoding, Tensor]:
        cost = grams.diagonal(dim1=1, dim2=2) * back.square()  # of an error of one in each column, [groups, n]
        cost = cost / cost.mean().clamp_min(torch.finfo(torch.float64).tiny)
        grid = fitted(
            matrix,
            cost.repeat_interleave(len(matrix) // len(grams), 0),
            keep,
            size=grouping_of(self.group, site.shape).size if self.group != "tensor" else matrix.shape[1],
            bits=self.bits,
            symmetric=self.symmetric,
            shared=self.group == "tensor",
            candidates=self.ranges,
            store=lambda scale: stored_scale(self, scale, self.scale_dtype, site.key).to(scale.dtype),
        )
        steps = grid.steps(matrix if keep is None else matrix * keep)
        q = steps + grid.spread(grid.zero, matrix.shape[1])
        inner = affine_of(self, site, weight, q, grid.scale.T.reshape(-1), grid.zero.T.reshape(-1))
        return inner, grid.values(steps)

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """A grid over the range of each group."""
        return self._rounding().fit(values, groups, entry, name)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest grid point."""
        return self._rounding().place(values, groups, grid, shape)

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """Round anew on the same scales, those of the inputs too."""
        if not isinstance(grid, Scaled) or grid.input_scale is None:
            return None
        back = grid.input_scale.to_dense().detach().float()
        if isinstance(weight, Masked):
            positions = weight.where.positions()
            each = back[(positions % len(back)).long()]
            divided: Encoding = Masked(weight.where, Dense(weight.value.values(positions).detach().float() / each))
        else:
            divided = Dense((weight.to_dense().detach().float().flatten(1) / back).view(site.shape))
        inner = super().assign(site, divided, grid.inner)
        return None if inner is None else Scaled(inner, grid.input_scale, None)

    def _rounding(self) -> RoundToNearest:
        return RoundToNearest(bits=self.bits, group=self.group, symmetric=self.symmetric, scale_dtype=self.scale_dtype)


def inputs_size(grams: Tensor) -> Tensor:
    """Root mean square of each input over the groups of rows, the largest 1, none below 1e-4, float64 [n]."""
    size = grams.diagonal(dim1=1, dim2=2).mean(0).clamp_min(0).sqrt()
    largest = float(size.max()) if len(size) else 0.0
    return (size / largest).clamp_min(_LEAST) if largest > 0 else torch.ones_like(size)
