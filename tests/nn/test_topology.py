"""Where live weights are, and what survives when that changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.layers import conv_of, linear_of

import gossamer as gs
from gossamer.nn import SparseLayer, Topology

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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(0, 1000), st.floats(0.02, 0.6), st.floats(0.0, 1.0))
def test_growth_from_zero_changes_no_bit_of_a_linear_layer(tokens: int, seed: int, density: float, more: float) -> None:
    _grow_and_compare(linear_of((23, 150), density, seed), torch.randn(tokens, 150), more)


@settings(deadline=None, max_examples=30)
@given(st.integers(16, 40), st.integers(1, 9), st.integers(1, 2), st.floats(0.02, 0.1), st.floats(0.0, 0.1))
def test_growth_from_zero_changes_no_bit_of_a_convolution_while_sparse_kernels_compute_it(
    images: int, size: int, stride: int, density: float, more: float
) -> None:
    layer = conv_of((9, 40, 3, 3), density, stride=stride, padding=1)
    _grow_and_compare(layer, torch.randn(images, 40, size, size), more)


def _grow_and_compare(layer: SparseLayer, x: torch.Tensor, more: float) -> None:
    before, old = layer(x), layer.topology
    new = Topology.of_mask(old.mask() | (torch.rand(old.shape) < more))
    values = torch.zeros(new.live)
    kept, to = old.moved(new)
    values[to] = layer.values.detach()[kept]
    layer.set_topology(new, values)
    assert torch.equal(before, layer(x))
