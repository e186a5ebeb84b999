"""The k best by histogram against sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.methods.prune.ranking import BINS, PIECE, Pieces, best, narrow, taken, wide


def by_sorting(scores: torch.Tensor, keep: int) -> torch.Tensor:
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.argsort(descending=True, stable=True)[:keep]] = True
    return chosen & (scores > -torch.inf)


@given(
    st.lists(
        st.sampled_from([-math.inf, -3e38, -1.0, -0.0, 0.0, 1e-40, 0.5, 0.5000001, 1.0, 3e38])
        | st.floats(-1, 1, width=32),
        max_size=30,
    ),
    st.integers(0, 32),
)
def test_the_same_are_kept_as_by_sorting_ties_to_the_earlier(scores: list[float], keep: int) -> None:
    x = torch.tensor(scores)
    assert torch.equal(best(Pieces.of(x), keep), by_sorting(x, keep))


@pytest.mark.parametrize("keep", [0, 1, PIECE - 1, PIECE + 3, 2 * PIECE + 10])
def test_ties_across_pieces_go_to_the_earlier(keep: int) -> None:
    x = torch.ones(2 * PIECE + 5)
    x[PIECE + 1] = 2.0
    assert torch.equal(best(Pieces.of(x), keep), by_sorting(x, keep))


@pytest.mark.parametrize("counts", [{}, {0: 1}, {BINS - 1: 300}, {5: 70_000, 900: 1}, {7: 1 << 40}])
def test_kept_histograms_come_back_exactly_and_are_small(counts: dict[int, int]) -> None:
    full = torch.zeros(BINS, dtype=torch.int64)
    for at, count in counts.items():
        full[at] = count
    kept = narrow(full)
    assert torch.equal(wide(kept), full)
    assert kept[1].numel() * kept[1].element_size() <= 8 * (max(counts, default=0) - min(counts, default=0) + 1)


def test_values_are_taken_as_indexing_does() -> None:
    x = torch.arange(PIECE + 7, dtype=torch.float32)
    positions = torch.arange(0, PIECE + 7, 3, dtype=torch.int32)
    assert torch.equal(taken(x, positions), x[positions.long()])
    assert taken(x, positions[:0]).shape == (0,)
