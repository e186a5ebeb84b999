"""Turn a layer's inputs before another method quantizes its weights: no column stands out any more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import final

from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of
from gossamer.encoding.rotated import Rotated, block_of
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Entry, Evidence, Method, Rule, Shared, Site
from gossamer.methods.quantize.groups import PerGroup

__all__ = ["Rotate"]


@final
@dataclass(frozen=True, kw_only=True)
class Rotate(Method):
    """w = q · R with q ≈ w·Rᵀ quantized by ``inner`` and R orthogonal, made from a seed and not stored.

    R is a permutation, signs and Hadamard blocks (see `gossamer.encoding.Rotated`), so that values of w·Rᵀ are nearly
    normal whatever outliers w has, and groups have ranges without waste. ``inner`` sees the Gram matrix R·G·Rᵀ. Pays
    where some input columns or weights are much larger than others; where none are, it neither helps nor harms.

    Args:
        inner: a quantizer per group that plans nothing, such as `GPTQ`, `RoundToNearest` or `NormalFloat`.
        seed: of signs and permutations; every tensor has its own.

    Cost: log2(block) additions per weight beyond the inner method, again at every load.

    Example:
        >>> from gossamer.methods.quantize.rtn import RoundToNearest
        >>> Rotate(inner=RoundToNearest(bits=4)).seed
        0

    Source: Chee et al. 2023, QuIP, arXiv 2307.13304, section 4; Ashkboos et al. 2024, QuaRot, arXiv 2404.00456.
    """

    inner: Method
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, PerGroup) or self.inner.observes:
            found = type(self.inner).__name__
            raise PlanError(f"Rotate: inner: found {found}, expected a quantizer per group without a budget")

    @property
    def needs(self) -> frozenset[str]:
        """Those of the inner method."""
        return self.inner.needs

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights only: turned, nothing is zero any more."""
        return (Rule(DENSE, lambda s: Skeleton(Rotated, (("inner", self.inner.produces(s)),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "A rotation would fill a mask's zeros, and values that are quantized or shared already cannot be turned"

    def refuses(self, site: Site) -> str:
        """Shapes that leave nothing to mix."""
        if len(site.shape) < 2 or block_of(prod(site.shape[1:])) < 2:
            return f"found inputs of shape {site.shape[1:]}, expected an even number of them to turn"
        return self.inner.refuses(site)

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Turn, then the inner method."""
        matrix = weight.to_dense().detach().float().flatten(1)
        frame = Rotated(Dense(matrix.view(site.shape)), block_of(matrix.shape[1]), key_of(self.seed, site.key))
        turned = Dense(frame.turned(matrix).view(site.shape))
        below = frame.hand_down("inner", evidence)
        inner = self.inner.apply([site], {site.key: turned}, entry, shared, {site.key: below})
        return replace(frame, inner=inner[site.key])
