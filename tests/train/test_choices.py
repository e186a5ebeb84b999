"""Choosing: exact numbers, exact sums, equal chances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.train import chance, choose
from gossamer.train.allocation import ErdosRenyi, Uniform
from gossamer.train.choose import best_besides, best_magnitudes, best_of_rows, highest, rejoined, sources
from gossamer.train.share import shared_out


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000)), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_add_up_exactly_and_none_is_above_its_capacity(parts: list[tuple[float, int]], share: float) -> None:
    weights, capacities = [w for w, _ in parts], [c for _, c in parts]
    total = round(share * sum(capacities))
    shares = shared_out(total, weights, capacities)
    assert sum(shares) == total
    assert all(0 <= s <= c for s, c in zip(shares, capacities, strict=True))


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 3"):
        shared_out(4, [1.0, 1.0], [1, 2])


@given(st.floats(0.01, 1.0), st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5))
def test_allocations_meet_the_total_and_keep_their_ratios(density: float, shapes: list[tuple[int, int]]) -> None:
    sizes = [a * b for a, b in shapes]
    live = round(density * sum(sizes))
    for allocation in (Uniform(), ErdosRenyi()):
        counts = allocation.counts(shapes, live)
        assert sum(counts) == live
        free = [i for i, n in enumerate(sizes) if counts[i] < n]
        per_ratio = [counts[i] / sizes[i] / allocation.ratio(shapes[i]) for i in free]
        slack = [2 / sizes[i] / allocation.ratio(shapes[i]) for i in free]
        assert not free or max(per_ratio) - min(per_ratio) <= sum(slack) + 1e-9


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, float("-inf")]), max_size=40), st.integers(0, 45))
def test_the_highest_are_those_of_a_stable_sort(values: list[float], count: int) -> None:
    scores = torch.tensor(values)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    expected = [i for i in sorted(order) if values[i] > float("-inf")]
    assert highest(scores, count).nonzero().squeeze(1).tolist() == expected


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(choose, "choice", lambda: None)
    return bool(request.param)


@given(st.integers(1, 9), st.integers(1, 20), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_best_of_rows_are_those_of_a_stable_sort(
    kernels: bool, rows: int, columns: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, columns))
    flat = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), min_size=rows * columns, max_size=rows * columns)
    )
    scores = torch.tensor(flat).view(rows, columns)
    expected = scores.argsort(dim=1, descending=True, stable=True)[:, :count] + torch.arange(rows)[:, None] * columns
    assert best_of_rows(scores, count).tolist() == sorted(expected.flatten().tolist())
    assert best_of_rows(scores, count, torch.arange(0, rows, 2)).tolist() == sorted(expected[::2].flatten().tolist())
    order = scores.flatten().argsort(descending=True, stable=True)
    assert best_magnitudes(-scores.flatten(), count).tolist() == sorted(order[:count].tolist())
    settled = torch.arange(0, rows * columns, columns)  # the first of each row
    first = scores.clone()
    first[:, 0] = torch.inf
    expected = first.argsort(dim=1, descending=True, stable=True)[:, :count] + torch.arange(rows)[:, None] * columns
    always = settled, torch.arange(rows + 1)
    found = best_of_rows(-scores, count, magnitude=True, always=always)
    assert found.tolist() == sorted(expected.flatten().tolist())
    left = order[order % columns != 0][: rows * columns - rows]
    places, sizes = best_besides(-scores.flatten(), min(count, len(left)), settled)
    assert places.tolist() == sorted(left[:count].tolist())
    assert torch.equal(sizes, scores.flatten()[places])


def test_a_single_row_among_several_is_chosen_from_like_others(kernels: bool) -> None:
    scores = -torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    always = torch.tensor([100, 101]), torch.tensor([0, 0, 0, 2, 2])
    expected = scores[2].abs()
    expected[:2] = torch.inf
    found = best_of_rows(scores, 10, torch.tensor([2]), magnitude=True, always=always)
    assert found.tolist() == sorted((expected.topk(10).indices + 100).tolist())


def test_what_is_left_out_is_left_out_beside_what_is_not_a_number(kernels: bool) -> None:
    values = torch.zeros(20)
    values[3], values[4] = torch.nan, 1.0
    places, _ = best_besides(values, 8, torch.tensor([0, 1, 2, 5]))
    assert places.tolist() == [3, 4, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("alike", [True, False], ids=["sample is like the rest", "sample misleads"])
def test_a_sample_does_not_change_what_is_best(kernels: bool, monkeypatch: pytest.MonkeyPatch, alike: bool) -> None:
    monkeypatch.setattr(choose, "_MANY", 1000)
    monkeypatch.setattr(choose, "_SAMPLE", 512)
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    if not alike:
        values[:: (len(values) // 512) | 1] *= 100
    scores = values.abs()
    order = scores.argsort(descending=True, stable=True)
    assert torch.equal(best_magnitudes(values, 900), order[:900].sort().values)
    besides = order[:500:2].sort().values
    left = order[~torch.isin(order, besides)]
    places, sizes = best_besides(values.clone(), 900, besides)
    assert torch.equal(places, left[:900].sort().values)
    assert torch.equal(sizes, values[places].abs())


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_positions_are_found_again(kernels: bool, old: set[int], new: set[int]) -> None:
    a, b = (torch.tensor(sorted(s), dtype=torch.int64) for s in (old, new))
    assert sources(a, b, 99).tolist() == [sorted(old).index(p) if p in old else 99 for p in sorted(new)]


@given(st.sets(st.integers(0, 1000)), st.sets(st.integers(1001, 2000)))
def test_sets_of_positions_are_joined_in_order(first: set[int], second: set[int]) -> None:
    ascending = torch.tensor(sorted(first), dtype=torch.int64)
    others = torch.tensor(list(second), dtype=torch.int64)
    kept = ascending % 3 != 0
    positions, places = rejoined(ascending, kept, torch.cat([others, ascending[~kept][::2]]))
    stays = set(ascending[kept].tolist()) | set(ascending[~kept][::2].tolist())
    assert positions.tolist() == sorted(stays | second)
    where = {p: i for i, p in enumerate(ascending.tolist())}
    assert places.tolist() == [where.get(p, len(first)) for p in positions.tolist()]


@pytest.mark.parametrize("runs", [1, 2, 5])
@pytest.mark.parametrize("first", [0, (1 << 31) - 500, 1 << 33])
def test_positions_beyond_31_bits_are_joined_in_order(kernels: bool, first: int, runs: int) -> None:
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(runs)) + first
    ascending, others = shuffled[:300].sort().values, shuffled[300:]
    added = torch.cat([run.sort().values for run in others.chunk(runs)])
    everything = torch.ones(300, dtype=torch.bool)
    assert torch.equal(rejoined(ascending, everything, added)[0], torch.arange(first, first + 1000))
    assert torch.equal(rejoined(ascending, everything, others)[0], torch.arange(first, first + 1000))


@given(st.integers(0, 2**63), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_dead_positions_are_distinct_dead_and_as_many_as_asked(
    key: int, size: int, density: float, share: float
) -> None:
    live = chance.chosen(key ^ 5, round(density * size), size)
    assert len(live) == len(live.unique()) == round(density * size)
    count = round(share * (size - len(live)))
    found = chance.dead(key, count, live, size)
    assert len(found) == count
    assert bool((found[1:] > found[:-1]).all())
    assert not bool(torch.isin(found, live).any())
    assert not count or 0 <= int(found.min()) <= int(found.max()) < size


@pytest.mark.parametrize(("count", "size"), [(3, 60), (40, 60)])
def test_every_dead_position_is_equally_likely(count: int, size: int) -> None:
    live = torch.arange(0, size, 7)
    seen = torch.zeros(size)
    for key in range(4000):
        seen[chance.dead(key * 7919, count, live, size)] += 1
    assert bool((seen[live] == 0).all())
    dead = seen[torch.isin(torch.arange(size), live, invert=True)]
    p = count / len(dead)
    sigma = (4000 * p * (1 - p)) ** 0.5
    assert float((dead - 4000 * p).abs().max()) < 4.5 * sigma


def test_noise_is_standard_normal() -> None:
    noise = chance.normal(7, 100_001)
    assert len(noise) == 100_001
    assert abs(float(noise.mean())) < 0.015
    assert abs(float(noise.std()) - 1) < 0.01
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.01
