"""Mixed bits against trying every allocation."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on, source_of
from torch import Tensor

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.encoding import Affine
from gossamer.errors import PlanError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import MixedBits, RoundToNearest
from gossamer.methods.quantize.mixed import allocate

BITS = (2, 3, 4, 6, 8)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(8, 16), "b": 5 * torch.randn(4, 9), "c": 0.1 * torch.randn(20, 30)}


def exhaustive(found: dict[str, Tensor], budget: float, importance: dict[str, Tensor] | None = None) -> float:
    """Smallest sum of errors of all allocations whose bits fit."""
    error = {
        (n, b): float(
            (
                (importance or {}).get(n, torch.ones(()))
                * (one(RoundToNearest(bits=b), w).to_dense() - w).double().square()
            ).sum()
        )
        for n, w in found.items()
        for b in BITS
    }
    best = float("inf")
    for choice in itertools.product(BITS, repeat=len(found)):
        if sum(b * w.numel() for b, w in zip(choice, found.values(), strict=True)) <= budget:
            best = min(best, sum(error[n, b] for n, b in zip(found, choice, strict=True)))
    return best


@pytest.mark.parametrize("average", [2.0, 2.6, 3.5, 5.1, 8.0])
def test_the_allocation_is_the_best_of_all(average: float) -> None:
    found = weights()
    elements = sum(w.numel() for w in found.values())
    result = result_on(MixedBits(bits=BITS, average_bits=average), found)
    spent = sum(t.q.numel() * t.bits for t in result.values() if isinstance(t, Affine))
    assert spent <= average * elements
    error = sum(float((result[n].to_dense() - w).double().square().sum()) for n, w in found.items())
    assert error == pytest.approx(exhaustive(found, average * elements), rel=1e-9)


def test_a_budget_in_bytes_counts_scales_too() -> None:
    found = weights()
    result = result_on(MixedBits(budget_bytes=500, symmetric=False, scale_dtype="float16"), found)
    assert sum(t.size_bits() for t in result.values()) <= 8 * 500
    assert len({t.bits for t in result.values() if isinstance(t, Affine)}) > 1
    with pytest.raises(PlanError, match=r"budget of 100 bytes for 764 weights, expected at least 319"):
        result_on(MixedBits(budget_bytes=100), found)


def test_squared_gradients_decide_where_bits_go() -> None:
    found = weights()
    importance = {"a": torch.full((8, 16), 1e-6), "b": torch.full((4, 9), 1e-6), "c": torch.full((20, 30), 1e6)}
    method = MixedBits(bits=BITS, average_bits=4.0, weighted="gradient")
    assert method.needs == {"grad_sq"}
    sites = planned_on(RoundToNearest(), found).sites
    source = source_of(found)
    seen = {n: method.observe(s, source.read(n), {"grad_sq": importance[n]}, None) for n, s in sites.items()}
    plan = method.plan(list(sites.values()), seen, None)
    bits = {step.targets[0]: step.entry["bits"] for step in plan.steps}  # type: ignore[union-attr]
    assert bits["c"] == 4  # 6 bits for the largest tensor do not fit, 4 of 4 on average do
    error = sum(seen[n]["errors"][BITS.index(b)] for n, b in bits.items())
    assert error == pytest.approx(exhaustive(found, 4.0 * 764, importance), rel=1e-9)
    with pytest.raises(PlanError, match="found no squared gradients"):
        method.observe(sites["a"], source.read("a"), {}, None)


def test_only_live_weights_count() -> None:
    pruned = {n: one(Magnitude(sparsity=0.75), w) for n, w in weights().items()}
    result = result_on(MixedBits(average_bits=3.0), pruned)
    spent = sum(t.at("/value").size_bits() - 32 * len(t.to_dense()) for t in result.values())
    assert spent <= 3.0 * 764 / 4


problem = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=3, max_size=3), min_size=1, max_size=5
)


@given(problem, st.floats(0, 1))
def test_allocation_is_exact_for_any_errors_and_sizes(items: list[list[tuple[int, int]]], share: float) -> None:
    sizes = [sorted(s for s, _ in item) for item in items]
    errors = [[float(e) for _, e in item] for item in items]  # larger may even be worse
    least, most = sum(s[0] for s in sizes), sum(s[-1] for s in sizes)
    budget = least + share * (most - least)
    chosen = allocate(errors, sizes, budget)
    assert sum(s[c] for s, c in zip(sizes, chosen, strict=True)) <= budget
    best = min(
        sum(e[c] for e, c in zip(errors, choice, strict=True))
        for choice in itertools.product(range(3), repeat=len(items))
        if sum(s[c] for s, c in zip(sizes, choice, strict=True)) <= budget
    )
    assert sum(e[c] for e, c in zip(errors, chosen, strict=True)) == best


def test_a_hundred_of_tensors_stay_within_the_budget_and_near_the_relaxed_optimum() -> None:
    random = torch.Generator().manual_seed(0)
    counts = (torch.rand(100, generator=random) * 1e6).long() + 1
    spread = torch.rand(100, generator=random) * 10
    sizes = [[int(n) * b for b in BITS] for n in counts]
    errors = [[float(n * v) * 4.0**-b for b in BITS] for n, v in zip(counts, spread, strict=True)]
    budget = 3.3 * float(counts.sum())
    chosen = allocate(errors, sizes, budget)
    assert sum(s[c] for s, c in zip(sizes, chosen, strict=True)) <= budget
    found = sum(e[c] for e, c in zip(errors, chosen, strict=True))
    # Any multiplier gives a lower bound (Lagrangian duality).
    bounds = []
    for price in torch.logspace(-6, 1, 400).tolist():
        cheapest = sum(
            min(e + price * s for e, s in zip(*pair, strict=True)) for pair in zip(errors, sizes, strict=True)
        )
        bounds.append(cheapest - price * budget)
    assert max(bounds) <= found <= 1.01 * max(bounds)


def test_the_share_of_outputs_that_is_lost_can_decide() -> None:
    found = weights()
    random = torch.Generator().manual_seed(1)
    inputs = {n: torch.randn(80, w.shape[1], generator=random) * (3.0 if n == "c" else 1.0) for n, w in found.items()}
    evidence = {n: {"gram": x.T @ x} for n, x in inputs.items()}
    source = source_of(found)

    def lost(name: str, made: Tensor) -> float:
        x, w = inputs[name].double(), found[name].double()
        return float((x @ (w - made.double()).T).square().sum() / (x @ w.T).square().sum())

    average = 4.0
    budget = average * sum(w.numel() for w in found.values())
    table = {(n, b): lost(n, one(RoundToNearest(bits=b), w).to_dense()) for n, w in found.items() for b in BITS}
    best = min(
        sum(table[n, b] for n, b in zip(found, choice, strict=True))
        for choice in itertools.product(BITS, repeat=len(found))
        if sum(b * w.numel() for b, w in zip(choice, found.values(), strict=True)) <= budget
    )
    planned = plan_method(MixedBits(bits=BITS, average_bits=average, weighted="inputs"), source, evidence)
    result = apply_plan(planned, source)
    assert sum(lost(n, t.to_dense()) for n, t in result.items()) == pytest.approx(best, rel=1e-6)
