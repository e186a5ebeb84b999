"""Hashing: a hash decides which of a few stored values each weight is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from gossamer.encoding.generated import Hashed, hashed_places
from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Method, Rule, Site, check_fraction

__all__ = ["Hashing"]


@final
@dataclass(frozen=True, kw_only=True)
class Hashing(Method):
    """w[i] = sign(i) · table[h(i)]: few values, spread over a tensor by a hash that costs 8 bytes.

    The table is the least-squares fit, the mean of sign · w over each entry's weights. One-shot that is nearly
    nothing, because weights that share a value are alike by chance only: fine-tune afterwards, the table trains.

    Args:
        stored: stored values as a fraction of the weights, above 0 to 1.
        seed: of the hash, together with the tensor's name.

    Cost: one pass over the weights.

    Exact: never, also at stored = 1, where about a third of the entries is used by nothing and others by several.

    Example:
        >>> Hashing(stored=1 / 16).seed
        0

    Source: Chen et al. 2015, Compressing neural networks with the hashing trick, arXiv 1504.04788, section 4.
    """

    stored: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("Hashing: stored", self.stored)
        if self.stored == 0:
            raise PlanError("Hashing: stored: found 0.0, expected more than nothing")

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become hashed ones."""
        return (Rule(DENSE, lambda _: Skeleton(Hashed, (("table", DENSE),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "A hash spreads few values over all weights of a plain tensor: hash first, then quantize the table"

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Fit the table of one site."""
        w = weight.to_dense().detach()
        numbers = w.double().reshape(-1).numpy()
        entries = max(1, round(self.stored * len(numbers)))
        key = key_of(self.seed, site.key)
        places = hashed_places(key, len(numbers), entries).numpy()
        signed = np.where(places >= entries, -numbers, numbers)
        total = np.bincount(places % entries, weights=signed, minlength=entries)
        count = np.bincount(places % entries, minlength=entries)
        table = torch.from_numpy(total / np.maximum(count, 1)).to(w.dtype)
        return Hashed(Dense(table), site.shape, key)
