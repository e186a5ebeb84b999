"""Another floating-point format for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, MASKED, Method, Rule, Site, live_values

__all__ = ["Cast"]

_DTYPES = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@final
@dataclass(frozen=True, kw_only=True)
class Cast(Method):
    """w ≈ the nearest number of a smaller floating-point format.

    The network computes in its own dtype as before; only the stored numbers are smaller. A cast weight no longer trains
    on its own, since steps smaller than its grain would vanish: cast last, or within `QuantizationAware`.

    Args:
        dtype: "float16" (11 significant bits), "bfloat16" (8), "float8_e4m3fn" (4, largest 448) or "float8_e5m2" (3).

    Cost: linear. Exact for numbers that the format holds; relative error ≤ 2^−(significant bits) for ordinary ones.

    Example:
        >>> Cast(dtype="bfloat16").dtype
        'bfloat16'

    Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433.
    """

    dtype: Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise PlanError(f"Cast: dtype: found {self.dtype!r}, expected one of {', '.join(_DTYPES)}")

    def rules(self) -> tuple[Rule, ...]:
        """The same tree with smaller numbers."""
        return (Rule(DENSE, lambda s: s), Rule(MASKED, lambda s: s))

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Values that are shared or quantized already are smaller than a cast would make them"

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Cast one site."""
        del entry, shared
        dtype: torch.dtype = getattr(torch, self.dtype)
        values = live_values(weight)[1]
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest > torch.finfo(dtype).max:
            found = f"found a weight of magnitude {largest:.4g}, which {self.dtype} cannot hold"
            raise PlanError(f"Cast: {site.key}: {found}, expected at most {torch.finfo(dtype).max:.4g}")
        small = Dense(values.to(dtype, copy=True), fixed=True)
        if isinstance(weight, Masked):
            return Masked(weight.where, small)
        return Dense(small.array.view(site.shape), fixed=True)

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """Cast anew; there is nothing to keep."""
        del grid
        return self.encode(site, weight, {}, {})
