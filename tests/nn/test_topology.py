"""Where live weights are, and what survives when that changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.nn import Topology

masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6).map(torch.tensor)


@given(masks)
def test_a_topology_is_its_mask(mask: torch.Tensor) -> None:
    topology = Topology.of_mask(mask)
    assert torch.equal(topology.mask(), mask)
    assert topology.live == int(mask.sum())
    assert topology.density == pytest.approx(float(mask.float().mean()))
    values = torch.randn(topology.live)
    assert torch.equal(topology.dense(values)[mask], values)


@given(masks, st.integers(0, 99))
def test_what_two_topologies_share_is_carried_over(mask: torch.Tensor, seed: int) -> None:
    other = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    old, new = Topology.of_mask(mask), Topology.of_mask(other)
    from_old, to_new = old.moved(new)
    assert from_old.dtype is to_new.dtype is torch.int64
    assert torch.equal(old.positions[from_old], new.positions[to_new])
    assert len(from_old) == int((mask & other).sum())
    assert bool((from_old[1:] > from_old[:-1]).all())


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ([1, 1], "repeated"),
        ([2, 1], "out of order"),
        ([-1, 1], r"-1–1, expected them in \[0, 6\)"),
        ([0, 6], r"0–6, expected them in \[0, 6\)"),
    ],
)
def test_positions_that_are_none_are_refused(positions: list[int], said: str) -> None:
    with pytest.raises(gs.PlanError, match=said):
        Topology((2, 3), torch.tensor(positions, dtype=torch.int32))


def test_positions_of_another_type_are_refused() -> None:
    with pytest.raises(gs.PlanError, match=r"int64, expected \[live\] torch.int32"):
        Topology((2, 3), torch.tensor([1]))
    with pytest.raises(gs.PlanError, match=r"found a mask of torch\.float32"):
        Topology.of_mask(torch.ones(2, 2))
