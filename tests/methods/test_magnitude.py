"""Magnitude pruning against sorting and loops: exact counts, ties to the earlier, dead stays dead."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on
from torch import Tensor

from gossamer.encoding import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.prune import Block, Columns, Magnitude, NofM, Rows, Structure

coarse = st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0])  # many ties
fine = st.floats(-10, 10, width=32)
sparsities = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9, 0.95])


@st.composite
def matrices(draw: st.DrawFn, rows: int = 6, columns: int = 8) -> Tensor:
    r, c = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    numbers = draw(st.lists(draw(st.sampled_from([coarse, fine])), min_size=r * c, max_size=r * c))
    return torch.tensor(numbers, dtype=torch.float32).view(r, c)


def kept_of(tree: object) -> list[int]:
    assert isinstance(tree, Masked)
    return tree.where.positions().tolist()


def best(scores: list[float], keep: int) -> list[int]:
    """Positions of the largest, ties to the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


@given(matrices(), sparsities)
def test_uniform_keeps_exactly_the_largest(w: Tensor, sparsity: float) -> None:
    n = w.numel()
    keep = n - round(sparsity * n)
    assume(keep or not w.any())
    tree = one(Magnitude(sparsity=sparsity), w)
    assert kept_of(tree) == best(w.abs().flatten().tolist(), keep)
    assert torch.equal(tree.to_dense(), torch.where(tree.where.mask(), w, 0))  # type: ignore[attr-defined]


@given(st.lists(matrices(4, 5), min_size=1, max_size=4), sparsities)
def test_global_keeps_exactly_the_largest_of_all_tensors(weights: list[Tensor], sparsity: float) -> None:
    flat = [x for w in weights for x in w.abs().flatten().tolist()]
    kept = set(best(flat, len(flat) - round(sparsity * len(flat))))
    expected, start = {}, 0
    for i, w in enumerate(weights):
        expected[str(i)] = [p for p in range(w.numel()) if start + p in kept]
        start += w.numel()
    named = {str(i): w for i, w in enumerate(weights)}
    counts = {
        s.targets[0]: s.entry["keep"]
        for s in planned_on(Magnitude(sparsity=sparsity, scope="global"), named).plan.steps
    }
    assert counts == {name: len(positions) for name, positions in expected.items()}
    assume(all(expected[n] or not w.any() for n, w in named.items()))  # a dead layer is refused
    result = result_on(Magnitude(sparsity=sparsity, scope="global"), named)
    assert {name: kept_of(tree) for name, tree in result.items()} == expected


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constants_lose_exactly_the_share_the_later_first(scope: str, value: float) -> None:
    tree = one(Magnitude(sparsity=0.3, scope=scope), torch.full((4, 5), value))  # type: ignore[arg-type]
    assert kept_of(tree) == list(range(14))


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_sparsity_zero_keeps_all_and_one_kills_and_is_refused(scope: str) -> None:
    w = torch.randn(3, 4)
    tree = one(Magnitude(sparsity=0.0, scope=scope), w)  # type: ignore[arg-type]
    assert torch.equal(tree.to_dense(), w)
    plan = planned_on(Magnitude(sparsity=1.0, scope=scope), {"w": w}).plan  # type: ignore[arg-type]
    assert [s.entry["keep"] for s in plan.steps] == [0]
    with pytest.raises(PlanError, match="w: found a plan that keeps 0 of 12 weights"):
        one(Magnitude(sparsity=1.0, scope=scope), w)  # type: ignore[arg-type]


def unit_scores(w: Tensor, height: int, width: int) -> list[tuple[float, list[int]]]:
    """(root mean square, positions) of every block, by loops."""
    rows, columns = w.shape
    found = []
    for i in range(0, rows, height):
        for j in range(0, columns, width):
            inside = [(r, c) for r in range(i, min(i + height, rows)) for c in range(j, min(j + width, columns))]
            square = sum(float(w[r, c]) ** 2 for r, c in inside) / len(inside)
            found.append(
                (float(torch.tensor(square, dtype=torch.float64).sqrt().float()), [r * columns + c for r, c in inside])
            )
    return found


@given(matrices(), st.sampled_from(["rows", "columns", "2x3", "4x2"]), sparsities)
def test_structures_keep_exactly_the_units_that_loops_choose(w: Tensor, name: str, sparsity: float) -> None:
    rows, columns = w.shape
    structure, size = {
        "rows": (Rows(), (1, columns)),
        "columns": (Columns(), (rows, 1)),
        "2x3": (Block(2, 3), (2, 3)),
        "4x2": (Block(4, 2), (4, 2)),
    }[name]
    units = unit_scores(w, *size)
    chosen = best([score for score, _ in units], len(units) - round(sparsity * len(units)))
    assume(chosen or not w.any())
    tree = one(Magnitude(sparsity=sparsity, structure=structure), w)  # type: ignore[arg-type]
    assert kept_of(tree) == sorted(p for u in chosen for p in units[u][1])


@pytest.mark.parametrize("structure", [Rows(), Columns(), Block(2, 2)], ids=lambda s: type(s).__name__)
def test_global_structures_reach_the_sparsity_to_within_one_unit(structure: Structure) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(8, 6), "b": torch.randn(12, 10) * 1.2, "c": torch.randn(6, 4) * 1.3}
    result = result_on(Magnitude(sparsity=0.4, structure=structure, scope="global"), weights)  # type: ignore[arg-type]
    live = sum(len(kept_of(t)) for t in result.values())
    total = sum(w.numel() for w in weights.values())
    largest = max(structure.size(tuple(w.shape)) for w in weights.values())
    assert abs(live - 0.6 * total) <= largest
    lowest_kept, highest_dead = 9.0, 0.0
    for name, w in weights.items():
        mask = set(kept_of(result[name]))
        for score, positions in unit_scores(w, *structure.block(tuple(w.shape))):  # type: ignore[attr-defined]
            if positions[0] in mask:
                lowest_kept = min(lowest_kept, score)
            else:
                highest_dead = max(highest_dead, score)
    assert lowest_kept >= highest_dead


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_n_of_m_keeps_the_n_best_of_each_group(m: int, groups: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m))
    w = torch.tensor(data.draw(st.lists(coarse, min_size=2 * m * groups, max_size=2 * m * groups))).view(2, -1)
    tree = one(Magnitude(structure=NofM(n, m)), w)
    flat = w.abs().flatten().tolist()
    expected = [g + p for g in range(0, len(flat), m) for p in best(flat[g : g + m], n)]
    assert kept_of(tree) == expected


def test_rows_that_do_not_divide_are_left_alone_with_the_reason() -> None:
    weights = {"fits": torch.randn(3, 8), "odd": torch.randn(3, 7), "vector": torch.randn(8)}
    planned = planned_on(Magnitude(structure=NofM(2, 4)), weights)
    assert set(planned.sites) == {"fits"}
    assert "rows of 7, expected a multiple of 4" in planned.skipped["odd"]
    assert "vector" in planned.skipped
    with pytest.raises(CompositionError, match="odd: found rows of 7"):
        planned_on(Magnitude(structure=NofM(2, 4)), {"odd": weights["odd"]})


@given(matrices(), st.sampled_from([0.2, 0.5]), st.sampled_from([0.0, 0.5, 0.8]))
def test_what_is_dead_stays_dead_and_counts(w: Tensor, first: float, second: float) -> None:
    w = w + torch.where(w >= 0, 1.0, -1.0)  # no zeros among the live
    n = w.numel()
    once = one(Magnitude(sparsity=first), w)
    keep = min(n - round(first * n), n - round(second * n))
    assume(keep)
    twice = one(Magnitude(sparsity=second), once)
    assert kept_of(twice) == best(w.abs().flatten().tolist(), keep)


def test_a_live_zero_is_kept_before_a_dead_weight() -> None:
    once = one(Magnitude(sparsity=0.5), torch.zeros(1, 4))
    assert kept_of(one(Magnitude(sparsity=0.25), once)) == [0, 1]


def test_the_ramp_is_cubic_and_ends_at_the_method_itself() -> None:
    method = Magnitude(sparsity=0.8)
    for progress in (0.0, 0.25, 0.5, 1.0):
        assert method.at(progress).sparsity == pytest.approx(0.8 * (1 - (1 - progress) ** 3))  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="schedule"):
        Magnitude(structure=NofM(2, 4)).at(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_by_its_own_values(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    w = torch.randn(16, 16).to(dtype)
    tree = one(Magnitude(sparsity=0.7, scope="global"), w)
    assert kept_of(tree) == best(w.float().abs().flatten().tolist(), 256 - round(0.7 * 256))
    assert tree.to_dense().dtype == dtype
