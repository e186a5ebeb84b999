"""k-means on a line against brute force and against the textbook iteration."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on, source_of
from torch import Tensor

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.encoding import Codebook, Mask, Masked
from gossamer.encoding import Dense as DenseValue
from gossamer.errors import DataError
from gossamer.methods.prune import Magnitude
from gossamer.methods.share import KMeans
from gossamer.methods.share.kmeans import lloyd, nearest

Array = np.ndarray[Any, Any]
numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9)


def error(values: Array, centroids: Array) -> float:
    return float(np.square(values[:, None] - centroids).min(1).sum())


def optimal(values: Array, k: int) -> float:
    """Smallest error of any split of the sorted values into k runs."""
    x, n = np.sort(values), len(values)
    runs = itertools.combinations(range(1, n), min(k, n) - 1)
    return min(sum(float(np.square(r - r.mean()).sum()) for r in np.split(x, list(cut))) for cut in runs)


def textbook(values: Array, k: int) -> float:
    """Lloyd from evenly spread centroids, until nothing moves."""
    c = np.linspace(values.min(), values.max(), k)
    for _ in range(100):
        near = np.abs(values[:, None] - c).argmin(1)
        c = np.array([values[near == i].mean() if (near == i).any() else c[i] for i in range(k)])
    return error(values, c)


@given(numbers, st.integers(1, 4))
def test_no_clustering_is_better_than_the_optimum_and_lloyd_is_at_a_fixed_point(values: list[float], k: int) -> None:
    x = np.array(values)
    c = lloyd(x, np.ones(len(x)), k, 100)
    assert 1 <= len(c) <= k
    assert (np.diff(c) > 0).all()
    best = optimal(x, k)
    assert error(x, c) >= best - 1e-9 * (1 + best)
    if len(set(values)) > k:
        near = np.abs(x[:, None] - c).argmin(1)
        again = np.array([x[near == i].mean() for i in range(len(c)) if (near == i).any()])
        assert error(x, again) == pytest.approx(error(x, c), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("k", [2, 4, 16])
def test_never_worse_than_the_textbook_from_evenly_spread_centroids(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=300) * random.choice([1.0, 5.0], size=300)
    assert error(x, lloyd(x, np.ones(300), k, 100)) <= textbook(x, k) * (1 + 1e-9)


def test_two_clear_clusters_are_found_exactly() -> None:
    x = np.array([-1.1, -1.0, -0.9, 4.0, 4.5])
    np.testing.assert_allclose(lloyd(x, np.ones(5), 2, 50), [-1.0, 4.25])


def test_weights_count_as_copies() -> None:
    x, copies = np.array([0.0, 1.0, 5.0, 6.0]), np.array([1.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(lloyd(x, copies, 2, 50), lloyd(np.repeat(x, copies.astype(int)), np.ones(8), 2, 50))


@given(st.sets(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=16), st.integers(0, 99))
def test_few_different_values_are_reproduced_exactly(values: set[float], seed: int) -> None:
    distinct = torch.tensor(sorted(v + 0.0 for v in values))
    index = torch.randint(len(distinct), (8, 8), generator=torch.Generator().manual_seed(seed))
    w = distinct[index]
    assert torch.equal(one(KMeans(bits=4), w).to_dense(), w)


def test_neighbouring_floats_are_told_apart() -> None:
    start = torch.tensor([1.0])
    neighbours = [start]
    for _ in range(15):
        neighbours.append(torch.nextafter(neighbours[-1], torch.tensor([2.0])))
    w = torch.cat(neighbours * 4).view(8, 8)
    assert torch.equal(one(KMeans(bits=4), w).to_dense(), w)


@given(numbers, st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6, unique=True))
def test_nearest_is_nearest_and_ties_go_to_the_smaller(values: list[float], centroids: list[float]) -> None:
    table = torch.tensor(sorted(c + 0.0 for c in centroids))
    x = torch.tensor(values)
    exact = [[abs(Fraction(v) - Fraction(c)) for c in table.tolist()] for v in x.tolist()]
    expected = [min(range(len(table)), key=lambda i: (row[i], i)) for row in exact]
    for tables, groups in (
        (table[None], torch.zeros(len(x), dtype=torch.int64)),
        (table.expand(3, -1), torch.arange(len(x)) % 3),
    ):
        index = nearest(x, tables, groups)
        assert index.tolist() == expected


def test_groups_have_codebooks_of_their_own_in_dense_coordinates_also_when_masked() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 20)
    method = KMeans(bits=2, group_size=8)
    for weight, mask in ((w, torch.ones(4, 20, dtype=torch.bool)), _pruned(w)):
        tree = one(method, weight)
        dense = tree.to_dense()
        for row in range(4):
            for start in range(0, 20, 8):
                live = mask[row, start : start + 8]
                mine, found = w[row, start : start + 8][live], dense[row, start : start + 8][live]
                expected = lloyd(mine.double().numpy(), np.ones(len(mine)), 4, 60)
                assert set(found.tolist()) <= {float(np.float32(c)) for c in expected}
        assert not bool(dense[~mask].any())


def _pruned(w: Tensor) -> tuple[Masked, Tensor]:
    tree = one(Magnitude(sparsity=0.4), w)
    assert isinstance(tree, Masked)
    return tree, tree.where.mask()


def test_only_survivors_are_clustered() -> None:
    w = torch.tensor([[0.01, 3.0, -0.02, 5.0, 0.0, 7.0, 0.03, 9.0] * 4])
    tree = one(KMeans(bits=2), one(Magnitude(sparsity=0.5), w))
    assert isinstance(tree, Masked)
    assert isinstance(tree.where, Mask)
    assert isinstance(tree.value, Codebook)
    assert tree.value.table.to_dense().tolist() == [[3.0, 5.0, 7.0, 9.0]]
    assert torch.equal(tree.to_dense(), torch.where(w.abs() > 1, w, 0))


def test_one_codebook_for_the_network_is_one_object_and_close_to_clustering_everything_at_once() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(40, 30), "b": torch.randn(30, 20) * 0.5, "c": torch.randn(10, 10)}
    result = result_on(KMeans(bits=4, network_wide=True), weights)
    tables = {id(t.table) for t in result.values()}  # type: ignore[attr-defined]
    assert len(tables) == 1
    together = np.concatenate([w.double().flatten().numpy() for w in weights.values()])
    table = next(iter(result.values())).table.to_dense().double().numpy()[0]  # type: ignore[attr-defined]
    direct = lloyd(together, np.ones(len(together)), 16, 60)
    assert error(together, table) <= error(together, direct) * 1.02


@pytest.mark.parametrize("bits", range(1, 9))
def test_indices_use_the_bits_and_the_error_is_that_of_the_best_table(bits: int) -> None:
    torch.manual_seed(bits)
    w = torch.randn(40, 40)
    tree = one(KMeans(bits=bits), w)
    assert isinstance(tree, Codebook)
    assert tree.entries() <= 1 << bits
    assert int(tree.index.max()) < tree.entries()
    expected = error(w.double().flatten().numpy(), lloyd(w.double().flatten().numpy(), np.ones(1600), 1 << bits, 60))
    assert float((tree.to_dense() - w).double().square().sum()) == pytest.approx(expected, rel=1e-4)


def test_a_table_as_large_as_the_weight_is_refused() -> None:
    planned = planned_on(KMeans(bits=4), {"tiny": torch.randn(4, 4), "large": torch.randn(5, 4)})
    assert "expected more than the 16 entries" in planned.skipped["tiny"]
    assert set(planned.sites) == {"large"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centroids_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    tree = one(KMeans(bits=3), torch.randn(10, 10).to(dtype))
    assert isinstance(tree, Codebook)
    assert isinstance(tree.table, DenseValue)
    assert tree.table.array.dtype == dtype


def test_many_values_are_clustered_nearly_as_well_by_their_histogram() -> None:
    w = torch.randn(600, 500, generator=torch.Generator().manual_seed(0)) * 0.02
    tree = one(KMeans(bits=4), w)
    x = w.double().flatten().numpy()
    found = float((tree.to_dense() - w).double().square().sum())
    assert found <= 1.001 * error(x, lloyd(x, np.ones(len(x)), 16, 60))


def test_many_values_of_few_kinds_are_reproduced_exactly() -> None:
    close = torch.tensor([1.0, 1.0001, -2.0, 0.5])  # the first two share the upper 16 bits
    w = close[torch.randint(4, (600, 500), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(one(KMeans(bits=2), w).to_dense(), w)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["inputs", "fisher"])
def test_centroids_go_where_weights_matter(kind: str, masked: bool) -> None:
    random = torch.Generator().manual_seed(0)
    w, sq, grad = (torch.randn(*s, generator=random) for s in ((12, 30), (30,), (12, 30)))
    tree: Tensor | Masked = w
    if masked:
        found = one(Magnitude(sparsity=0.5), w)
        assert isinstance(found, Masked)
        tree = found
    evidence = {"sq": sq.square() ** 2, "grad_sq": grad.square() ** 2}
    mass = (evidence["sq"].expand(12, 30) if kind == "inputs" else evidence["grad_sq"]).double()
    source = source_of({"w": tree})
    made = {
        weighted: apply_plan(
            plan_method(KMeans(bits=2, weighted=weighted), source, {"w": evidence}),  # type: ignore[arg-type]
            source,
        )["w"].to_dense()
        for weighted in ("none", kind)
    }
    live = w if isinstance(tree, Tensor) else tree.to_dense()
    lost = {name: float((mass * (m - live).double().square()).sum()) for name, m in made.items()}
    plain = {name: float((m - live).double().square().sum()) for name, m in made.items()}
    assert lost[kind] < lost["none"]
    assert plain[kind] > plain["none"]


def test_many_weighted_values_are_clustered_by_bins_like_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    w, sq = torch.randn(40, 50, generator=random), torch.rand(50, generator=random)
    source = source_of({"w": w})
    tables = []
    for many in (1 << 18, 100):
        monkeypatch.setattr("gossamer.methods.share.kmeans._MANY", many)
        made = apply_plan(plan_method(KMeans(bits=3, weighted="inputs"), source, {"w": {"sq": sq}}), source)["w"]
        assert isinstance(made, Codebook)
        tables.append(made.table.to_dense())
    torch.testing.assert_close(tables[0], tables[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kind", "wanted"), [("inputs", "squares of its inputs"), ("fisher", "squared gradients")])
def test_weighting_without_evidence_is_refused(kind: str, wanted: str) -> None:
    source = source_of({"w": torch.randn(12, 30)})
    planned = plan_method(KMeans(bits=2, weighted=kind), source, {})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=wanted):
        apply_plan(planned, source)
