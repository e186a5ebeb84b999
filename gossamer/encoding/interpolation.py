"""A factor of which some rows are those of the identity, and not stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import INPUT_STATISTICS, Category, Encoding, child, computable, require
from gossamer.encoding.patterns import Mask

__all__ = ["Interpolation"]


@final
@dataclass(frozen=True, eq=False)
class Interpolation(Encoding):
    """u [out, rank] with u[rows] = 1, the identity, and u[all others] = rest.

    As the u of a `LowRank`, v is ``rank`` rows of the weight itself and ``rest`` says how the others follow from them:
    rank · (out + in − rank) numbers, where two full factors take rank · (out + in).

    Args:
        rest: [out − rank, rank].
        rows: mask [out] of the rows of the identity, in ascending order.

    Source: Cheng, Gimbutas, Martinsson, Rokhlin 2005, On the compression of low rank matrices, section 3.
    """

    rest: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))
    rows: Mask = field(metadata=child(category=Category.POSITIONS))

    def __post_init__(self) -> None:
        require(isinstance(self.rows, Mask), self, f"rows = {type(self.rows).__name__}", "a mask")
        rest, rows = self.rest.dense_shape(), self.rows.dense_shape()
        require(len(rest) == 2 and len(rows) == 1, self, f"rest {rest} and rows {rows}", "[out − r, r] and [out]")
        require(sum(rest) == rows[0], self, f"rest {rest}", f"[{rows[0]} − r, r]")

    def dense_shape(self) -> tuple[int, ...]:
        """[out, rank]."""
        return (self.rows.dense_shape()[0], self.rest.dense_shape()[1])

    def others(self) -> Tensor:
        """Rows that are stored, int64, ascending."""
        return torch.nonzero(~self.rows.mask())[:, 0]

    def order(self) -> Tensor:
        """For each row its place among those of the identity and the stored ones behind them, int64 [out]."""
        return torch.cat([self.rows.positions().long(), self.others()]).argsort()

    def to_dense(self) -> Tensor:
        """The stored rows and those of the identity in place, in float32 for half-precision leaves."""
        rest = computable(self.rest.to_dense())
        one = torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device)
        return torch.cat([one, rest]).index_select(0, self.order().to(rest.device))

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``rest`` sees the same inputs, and has its rows of what has the shape of u."""
        if field != "rest":
            return {}
        others = self.others()
        return {k: v if k in INPUT_STATISTICS else v.index_select(0, others) for k, v in evidence.items()}

    def validate(self) -> None:
        """As many rows of the identity as the rank."""
        found, rank = self.rows.positions().numel(), self.rest.dense_shape()[1]
        require(found == rank, self, f"{found} rows of the identity", f"{rank}, the rank")
