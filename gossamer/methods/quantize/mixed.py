"""Different numbers of bits for different tensors, chosen under one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
from torch import Tensor

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import Ask, Evidence, Plan, Site, Step, Summary, live_values
from gossamer.methods.quantize.groups import Groups, PerGroup, ScaleType
from gossamer.methods.quantize.inputs import matrix_shape, seen_grams
from gossamer.methods.quantize.rtn import AFFINE, RoundToNearest
from gossamer.methods.second_order import row_errors

__all__ = ["MixedBits", "allocate"]

_MOST_STATES = 1 << 12


@final
@dataclass(frozen=True, kw_only=True)
class MixedBits(PerGroup):
    """Round to nearest with b(t) bits for tensor t, where b minimises Σ_t error(t, b(t)) under one budget.

    error(t, b) = Σ (w − q_b(w))² over the live weights of t; weighted by the gradient it is Σ g² · (w − q_b(w))², an
    estimate of how much the loss rises (g²: squared gradients, summed over batches); weighted by inputs it is
    tr(E·G·Eᵀ) / tr(W·G·Wᵀ) with E = W − q_b(W) and G = Σ x·xᵀ: the share of the layer's outputs that is lost.

    Args:
        bits: to choose from, each 2 to 8.
        average_bits: budget in bits per live weight, scales not counted; or
        budget_bytes: budget in bytes for integers, scales and zero points at fixed width, masks not counted.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest and in training.
        weighted: "none", or, with data, "gradient" or "inputs".

    Cost: one rounding of every tensor per choice of bits; then at most 2¹² partial sums per tensor.

    Exact: the best of all allocations as long as at most 2¹² partial allocations are not dominated by another;
    beyond that within 2⁻¹² of the budget per tensor.

    Example:
        >>> MixedBits(average_bits=3.5).bits
        (2, 3, 4, 6, 8)

    Source: Dong et al. 2019, HAWQ-V2, arXiv 1911.03852, section 3 (allocation by sensitivity × error); multiple-choice
    knapsack by dominance, Kellerer, Pferschy, Pisinger 2004, chapter 11.
    """

    produced: ClassVar[Skeleton] = AFFINE

    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    average_bits: float | None = None
    budget_bytes: int | None = None
    symmetric: bool = True
    scale_dtype: ScaleType = "float32"
    weighted: Literal["none", "gradient", "inputs"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bits or list(self.bits) != sorted(set(self.bits)):
            raise PlanError(f"MixedBits: bits: found {self.bits}, expected different numbers, ascending")
        for bits in self.bits:
            self._rounding(bits)
        budgets = (self.average_bits, self.budget_bytes)
        if sum(b is not None for b in budgets) != 1 or any(b is not None and b <= 0 for b in budgets):
            raise PlanError(f"MixedBits: found average_bits, budget_bytes {budgets}, expected one of them, above 0")
        if self.weighted not in ("none", "gradient", "inputs"):
            raise PlanError(f"MixedBits: weighted: found {self.weighted!r}, expected 'none', 'gradient' or 'inputs'")

    def _rounding(self, bits: int) -> RoundToNearest:
        return RoundToNearest(bits=bits, group=self.group, symmetric=self.symmetric, scale_dtype=self.scale_dtype)

    @property
    def needs(self) -> frozenset[str]:
        """Squared gradients or products of inputs, if they are to count."""
        return {"gradient": frozenset({"grad_sq"}), "inputs": frozenset({"gram", "sq", "count"})}.get(
            self.weighted, frozenset()
        )

    @property
    def observes(self) -> bool:
        """The error at every choice of bits."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Error and size in bits for every choice."""
        del ask
        positions, values = live_values(weight)
        importance: Tensor | float = 1.0
        if self.weighted == "gradient":
            if "grad_sq" not in evidence:
                raise PlanError(f"MixedBits: {site.key}: found no squared gradients, expected data to gather them from")
            flat = evidence["grad_sq"].double().reshape(-1)
            importance = flat if positions is None else flat[positions.long()]
        grams = seen_grams(f"MixedBits: {site.key}", site, evidence)[0] if self.weighted == "inputs" else None
        errors, sizes = [], []
        for bits in self.bits:
            made = self._rounding(bits).encode(site, weight, {}, {})
            value = made.value if isinstance(made, Masked) else made
            assert isinstance(value, Value)
            if grams is None:
                wrong = value.values(positions).double().reshape(-1) - values.double()
                errors.append(float((importance * wrong.square()).sum()))
            else:
                errors.append(_lost(weight, made, grams))
            sizes.append(value.size_bits() if self.budget_bytes is not None else bits * values.numel())
        return {"errors": errors, "sizes": sizes, "live": values.numel()}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """The best allocation."""
        del ask
        listed = [summaries[s.key] for s in sites]
        live = sum(s["live"] for s in listed)
        budget = self.average_bits * live if self.average_bits is not None else 8.0 * (self.budget_bytes or 0)
        least = sum(s["sizes"][0] for s in listed)
        if budget < least:
            raise PlanError(
                f"MixedBits: found a budget of {budget / 8:,.0f} bytes for {live:,} weights, expected at least "
                f"{least / 8:,.0f}, which {self.bits[0]} bits each take"
            )
        chosen = allocate([s["errors"] for s in listed], [s["sizes"] for s in listed], budget)
        return Plan(tuple(Step((s.key,), {"bits": self.bits[c]}) for s, c in zip(sites, chosen, strict=True)))

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """A grid with the number of bits that the plan says."""
        return self._rounding(int(entry["bits"])).fit(values, groups, entry, name)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest grid point."""
        return self._rounding(self.bits[0]).place(values, groups, grid, shape)


def _lost(weight: Encoding, made: Encoding, grams: Tensor) -> float:
    """Share of a layer's outputs that is lost."""
    dense = weight.to_dense().detach().double()
    matrix = dense.reshape(matrix_shape(tuple(dense.shape)))
    off = matrix - made.to_dense().detach().double().reshape(matrix.shape)
    wrong, all_of_it = (
        sum(float(row_errors(rows, gram).sum()) for rows, gram in zip(m.chunk(len(grams)), grams, strict=True))
        for m in (off, matrix)
    )
    return wrong / all_of_it if all_of_it > 0 else 0.0


def allocate(errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: float) -> list[int]:
    """One choice per item with the smallest sum of errors whose sum of sizes is within the budget.

    Args:
        errors: per item and choice.
        sizes: per item and choice, ascending along the choices; the smallest ones fit the budget.
        budget: in the unit of the sizes.

    Returns:
        The index of each item's choice.

    Example:
        >>> allocate([[9.0, 1.0], [4.0, 3.0]], [[2, 4], [2, 4]], 6)
        [1, 0]
    """
    rest = np.cumsum([0.0, *[float(s[0]) for s in reversed(sizes)]])[::-1]  # what the items still to come take at least
    size, error = np.zeros(1), np.zeros(1)
    history: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    for i, (mine, costs) in enumerate(zip(errors, sizes, strict=True)):
        choices = len(mine)
        new_size = (size[:, None] + np.asarray(costs, dtype=np.float64)).reshape(-1)
        new_error = (error[:, None] + np.asarray(mine, dtype=np.float64)).reshape(-1)
        order = np.lexsort((new_error, new_size))
        order = order[new_size[order] + rest[i + 1] <= budget]
        # Dominated: another takes no more and errs no more.
        best = np.minimum.accumulate(np.concatenate([[np.inf], new_error[order][:-1]]))
        order = order[new_error[order] < best]
        if len(order) > _MOST_STATES:  # of those of nearly the same size the one with the smallest error
            bucket = np.floor(new_size[order] / budget * _MOST_STATES)
            last = np.append(bucket[1:] != bucket[:-1], True)
            last[0] = True  # the smallest sizes always fit
            order = order[last]
        history.append((order // choices, order % choices))
        size, error = new_size[order], new_error[order]
    state = int(error.argmin())
    chosen = []
    for before, choice in reversed(history):
        chosen.append(int(choice[state]))
        state = int(before[state])
    return chosen[::-1]
