"""Ternary weights against loops, and the optimal threshold against every possible one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one

from gossamer.encoding import Affine, Masked
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import Ternary


def by_hand(values: list[float], threshold: float) -> list[float]:
    """One group, Δ = threshold · mean|w|, in float64."""
    delta = min(threshold * sum(map(abs, values)) / len(values), max(map(abs, values)))
    chosen = [v for v in values if abs(v) >= delta and v != 0]
    scale = sum(map(abs, chosen)) / max(1, len(chosen))
    return [scale * ((v > 0) - (v < 0)) if v in chosen else 0.0 for v in values]


def best_error(values: list[float]) -> float:
    """Smallest Σ (w − s·t)² over every number of magnitudes kept, each with its best s."""
    magnitudes = sorted(map(abs, values), reverse=True)
    total = sum(m * m for m in magnitudes)
    return min(total - sum(magnitudes[:k]) ** 2 / k for k in range(1, len(magnitudes) + 1))


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("group", ["tensor", "channel", 5])
@pytest.mark.parametrize("pruned", [False, True])
def test_every_group_has_its_own_threshold_and_scale(threshold: float, group: str | int, pruned: bool) -> None:
    torch.manual_seed(1)
    w = torch.randn(6, 12)
    tree = one(Magnitude(sparsity=0.4), w) if pruned else w
    mask = tree.where.mask() if isinstance(tree, Masked) else torch.ones(6, 12, dtype=torch.bool)
    dense = one(Ternary(threshold=threshold, group=group), tree).to_dense()  # type: ignore[arg-type]
    assert not bool(dense[~mask].any())
    rows = [slice(None)] if group == "tensor" else [slice(r, r + 1) for r in range(6)]
    for row in rows:
        for start in range(0, 12, 5 if group == 5 else 12):
            part = (row, slice(start, start + (5 if group == 5 else 12)))
            live = w[part][mask[part]].tolist()
            if live:
                torch.testing.assert_close(dense[part][mask[part]], torch.tensor(by_hand(live, threshold)))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12))
def test_the_optimal_threshold_is_the_best_of_all(values: list[float]) -> None:
    w = torch.tensor([values])
    found = float((one(Ternary(threshold="optimal"), w).to_dense().double() - w.double()).square().sum())
    assert found <= best_error(values) + 1e-5 * max(1.0, float(w.double().square().sum()))


def test_the_optimal_threshold_holds_per_group_over_survivors() -> None:
    torch.manual_seed(2)
    tree = one(Magnitude(sparsity=0.5), torch.randn(4, 30))
    assert isinstance(tree, Masked)
    w, mask = tree.to_dense(), tree.where.mask()
    found = one(Ternary(threshold="optimal"), tree).to_dense()
    for r in range(4):
        error = float((found[r] - w[r]).double().square().sum())
        assert error == pytest.approx(best_error(w[r][mask[r]].tolist()), rel=1e-5)


def test_constants_stay_zeros_stay_and_no_group_dies() -> None:
    for threshold in (0.7, 3.0, "optimal"):
        method = Ternary(threshold=threshold)  # type: ignore[arg-type]
        torch.testing.assert_close(one(method, torch.full((2, 3), -0.3)).to_dense(), torch.full((2, 3), -0.3))
        assert not bool(one(method, torch.zeros(2, 3)).to_dense().any())
        torch.testing.assert_close(one(method, torch.tensor([[0.0, 2.0]])).to_dense(), torch.tensor([[0.0, 2.0]]))


def test_three_symbols_and_one_scale_per_group_are_all_that_is_stored() -> None:
    tree = one(Ternary(), torch.randn(8, 20))
    assert isinstance(tree, Affine)
    assert [f.field for f in tree.leaves()] == ["q", "array"]
    assert set(tree.q.unique().tolist()) == {0, 1, 2}
    assert tree.size_bits() == 8 * 20 * 2 + 8 * 32
