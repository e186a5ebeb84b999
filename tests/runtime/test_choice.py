"""Choices on kernels: those of a stable sort, at every instruction set, on any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.jit.cpu import Level, host, levels
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.choice import MOST_OF_GROUP, Choice, choice, kth_largest
from gossamer.runtime.kernels import ChoiceKernels, load
from gossamer.runtime.threads import openmp


@pytest.fixture(params=levels())
def kernels(request: pytest.FixtureRequest) -> Choice:
    level: Level = request.param
    return Choice(load(ChoiceKernels, host(level), cache_directory()), openmp())


def drawn(count: int, values: int, seed: int) -> Tensor:
    """Numbers without signs, of which many are equal, some infinite."""
    draw = torch.Generator().manual_seed(seed)
    made = torch.randint(values, (count,), generator=draw).float()
    made[torch.rand(count, generator=draw) < 0.05] = torch.inf
    return made


def best(scores: Tensor, count: int) -> list[int]:
    """Positions of the highest of each row, by sorting."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    found: list[int] = (order + torch.arange(len(scores))[:, None] * scores.shape[1]).flatten().tolist()
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 100, 200_003])
def test_what_is_above_a_threshold_is_found_in_order(kernels: Choice, threads: int, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values[3:6] = torch.tensor([torch.nan, -torch.inf, torch.inf])[: max(0, count - 3)]
    for threshold in (-torch.inf, -1.0, 0.0, 0.5, torch.inf):
        for magnitude, seen in ((True, values.abs()), (False, values)):
            expected = (~(seen <= threshold)).nonzero().squeeze(1)
            positions, found = kernels.above(values, threshold, magnitude=magnitude, first=10)
            assert torch.equal(positions, expected + 10)
            assert torch.equal(found.nan_to_num(7), values[expected].nan_to_num(7))


@pytest.mark.parametrize("values", [3, 1 << 20], ids=["many equal", "few equal"])
@pytest.mark.parametrize("shape", [(3, 5), (40, 515), (1, 1000), (300, 301), (0, 4)])
def test_the_best_of_rows_are_those_of_a_sort(
    kernels: Choice, threads: int, shape: tuple[int, int], values: int
) -> None:
    rows, columns = shape
    scores = drawn(rows * columns, values, 1).view(shape)
    for count in (0, 1, columns // 3, columns):
        assert kernels.best_of_rows(scores, count).tolist() == best(scores, count)
        some = torch.arange(0, rows, 2)
        expected = torch.tensor(best(scores, count), dtype=torch.int64).view(rows, count)[some]
        assert torch.equal(kernels.best_of_rows(scores, count, some), expected.flatten())


def test_a_row_of_smaller_scores_than_the_one_before_is_looked_at_again(kernels: Choice) -> None:
    scores = torch.rand(50, 400, generator=torch.Generator().manual_seed(0)) * 0.01 ** torch.arange(50)[:, None]
    assert kernels.best_of_rows(scores, 40).tolist() == best(scores, 40)


@pytest.mark.parametrize("groups", [0, 1, 33, 20_001])
@pytest.mark.parametrize(("size", "count"), [(4, 2), (8, 1), (MOST_OF_GROUP, 3), (5, 5), (1, 1), (3, 0)])
def test_the_best_of_groups_are_those_of_a_sort(
    kernels: Choice, threads: int, size: int, count: int, groups: int
) -> None:
    scores = drawn(groups * size, 4, 2)
    assert kernels.best_of_groups(scores, size, count).tolist() == best(scores.view(groups, size), count)


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 300)))
@settings(deadline=None)
def test_positions_are_merged_and_found_again(old: set[int], new: set[int]) -> None:
    kernels = choice()
    assert kernels is not None
    others = new - old
    a, b, c = (torch.tensor(sorted(s), dtype=torch.int64) for s in (old, others, new))
    assert kernels.merged(a, b).tolist() == sorted(old | others)
    places = {position: i for i, position in enumerate(sorted(old))}
    assert kernels.sources(a, c, -1).tolist() == [places.get(position, -1) for position in sorted(new)]


@pytest.mark.parametrize("others", [0, 1, 90_000])
@pytest.mark.parametrize("count", [0, 1, 3, 150_000])
def test_many_positions_are_merged_and_found_again_by_any_team(
    kernels: Choice, threads: int, count: int, others: int
) -> None:
    shuffled = torch.randperm(400_000, generator=torch.Generator().manual_seed(count + others)) + (1 << 33)
    a, b = shuffled[:count].sort().values, shuffled[count : count + others].sort().values
    both = torch.cat([a, b]).sort().values
    assert torch.equal(kernels.merged(a, b), both)
    source = kernels.sources(a, both, count)
    expected = torch.searchsorted(a, both)
    assert torch.equal(source, torch.where(torch.isin(both, a), expected, count))
    numbers = torch.rand(count) + 1
    carried = kernels.carried(numbers, source)
    assert torch.equal(carried, torch.cat([numbers, torch.zeros(1)])[source])


@pytest.mark.parametrize("added", [0, 1, 50_000])
@pytest.mark.parametrize("count", [0, 1, 4096, 200_003])
def test_what_is_kept_and_what_is_new_join_in_order_with_their_places(
    kernels: Choice, threads: int, count: int, added: int
) -> None:
    draw = torch.Generator().manual_seed(count + added)
    everything = torch.randperm(3 * count + 2 * added + 9, generator=draw)
    old = everything[:count].sort().values
    kept = torch.rand(count, generator=draw) < 0.6
    back = old[~kept][::3]
    new = torch.cat([everything[count : count + added], back]).sort().values
    made, places = kernels.rejoined(old, kept, new)
    expected = torch.cat([old[kept], new]).sort().values
    assert torch.equal(made, expected)
    where = torch.searchsorted(old, expected)
    assert torch.equal(places, torch.where(torch.isin(expected, old), where, count))


_SMALL_TEAM = """
import torch
from gossamer.runtime.choice import choice
torch.set_num_threads(4)
old = torch.arange(0, 300_000, 3)
kept = torch.arange(100_000) % 5 > 0
new = torch.arange(1, 90_000, 9)
made, places = choice().rejoined(old, kept, new)
expected = torch.cat([old[kept], new]).sort().values
assert torch.equal(made, expected)
assert torch.equal(places, torch.where(expected % 3 == 0, expected // 3, 100_000))
"""


def test_positions_join_in_a_team_that_is_smaller_than_asked_for() -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    command = [sys.executable, "-c", _SMALL_TEAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (5, 1), (40, 515)])
def test_edges_say_where_the_positions_of_rows_begin(kernels: Choice, rows: int, columns: int) -> None:
    for share in (0.0, 0.1, 1.0):
        mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) < share
        edges = kernels.edges(mask.flatten().nonzero()[:, 0], rows, columns)
        assert edges.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]


def test_what_is_settled_comes_first_in_rows_of_magnitudes(kernels: Choice, threads: int) -> None:
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(60, 301, generator=draw)
    scores[7] = 0.0
    settled = torch.rand(60, 301, generator=draw) < 0.1
    places = settled.flatten().nonzero()[:, 0]
    expected = best(scores.abs().masked_fill(settled, torch.inf), 70)
    always = places, kernels.edges(places, 60, 301)
    assert kernels.best_of_rows(scores, 70, magnitude=True, always=always).tolist() == expected


def test_results_outlive_the_memory_that_they_were_found_in(kernels: Choice) -> None:
    values = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))
    positions, found = kernels.above(values, 1.0, magnitude=False)
    kept = positions.clone(), found.clone()
    kernels.above(-values, 0.0, magnitude=False)
    assert torch.equal(positions, kept[0])
    assert torch.equal(found, kept[1])


@pytest.mark.parametrize("kind", ["normal", "equal", "sample misleads", "infinite"])
@pytest.mark.parametrize("count", [1, 300, 40_000, 131_073])
def test_the_kth_largest_is_that_of_a_sort(kind: str, count: int) -> None:
    numbers = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    if kind == "equal":
        numbers = np.round(numbers)
    elif kind == "sample misleads":
        numbers[:: (count // (1 << 12)) | 1] *= 1e3
    elif kind == "infinite":
        numbers[: count // 2] = -np.inf
        numbers[-count // 8 :] = np.inf
    expected = np.sort(numbers)
    for k in {1, 2, count // 3, count // 2, count - 1, count} - {0}:
        if k <= count:
            assert kth_largest(numbers, k) == expected[count - k]
