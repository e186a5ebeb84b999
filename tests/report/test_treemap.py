"""A treemap covers its rectangle exactly, with areas as the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import PlanError
from gossamer.report.front import front_of
from gossamer.report.scales import Scale
from gossamer.report.treemap import Tile, squarified

SIZES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40)


def apart(a: Tile, b: Tile) -> bool:
    """Whether two tiles share no area worth speaking of."""
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across < 1e-6 or down < 1e-6


@settings(max_examples=80, deadline=None)
@given(SIZES, st.floats(1, 1000), st.floats(1, 1000))
def test_areas_are_as_sizes_within_the_rectangle_and_apart(sizes: list[float], width: float, height: float) -> None:
    tiles = squarified(sorted(sizes, reverse=True), width, height)
    total = sum(sizes)
    for size, tile in zip(sorted(sizes, reverse=True), tiles, strict=True):
        assert tile.width * tile.height == pytest.approx(size / total * width * height, rel=1e-6)
        assert tile.x >= -1e-6 and tile.x + tile.width <= width * (1 + 1e-6)
        assert tile.y >= -1e-6 and tile.y + tile.height <= height * (1 + 1e-6)
    for i, a in enumerate(tiles):
        assert all(apart(a, b) for b in tiles[:i])


def test_tiles_of_the_paper() -> None:
    """Sizes 6, 6, 4, 3, 2, 2, 1 in 6 × 4: the example of Bruls et al., section 3."""
    tiles = squarified([6, 6, 4, 3, 2, 2, 1], 6, 4)
    assert [(t.x, t.y, t.width, t.height) for t in tiles[:2]] == [(0, 0, 3, 2), (0, 2, 3, 2)]
    assert max(t.slimness for t in tiles) < 3


def test_no_size_may_be_zero() -> None:
    with pytest.raises(PlanError, match="positive"):
        squarified([1, 0], 2, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)

    assert sorted(front_of(points)) == [i for i, p in enumerate(points) if not beaten(p)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9), st.booleans())
def test_scales_hold_their_numbers_and_have_a_few_ticks(numbers: list[float], log: bool) -> None:
    scale = Scale.of(numbers, 10.0, 90.0, log=log)
    assert all(10 <= scale(x) <= 90 for x in numbers)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 6
    assert list(ticks) == sorted(set(ticks))
