"""Round to nearest against loops: the error bound, groups in dense coordinates, survivors only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one
from torch import Tensor

from gossamer.encoding import Affine, Masked
from gossamer.errors import PlanError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest


def quantized(values: list[float], bits: int, symmetric: bool) -> tuple[list[float], float]:
    """One group by hand, in float64."""
    high, low = max([0.0, *values]), min([0.0, *values])
    levels = (1 << bits) - 1
    if symmetric:
        middle = 1 << (bits - 1)
        scale = max(high, -low) / (middle - 1)
        return [round(v / scale) * scale if scale else 0.0 for v in values], scale
    scale = (high - low) / levels
    zero = round(-low / scale) if scale else 0
    return [(min(levels, max(0, round(v / scale) + zero)) - zero) * scale if scale else 0.0 for v in values], scale


def runs(columns: int, group: str | int) -> int:
    return columns if group in ("tensor", "channel") else int(group)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", ["tensor", "channel", 5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("pruned", [False, True])
def test_every_group_is_quantized_by_itself(bits: int, group: str | int, symmetric: bool, pruned: bool) -> None:
    torch.manual_seed(bits)
    w = torch.randn(6, 12) + 0.3
    mask = torch.ones(6, 12, dtype=torch.bool)
    given_tree: Tensor | Masked = w
    if pruned:
        tree = one(Magnitude(sparsity=0.5), w)
        assert isinstance(tree, Masked)
        given_tree, mask = tree, tree.where.mask()
    result = one(RoundToNearest(bits=bits, group=group, symmetric=symmetric), given_tree)  # type: ignore[arg-type]
    dense = result.to_dense()
    assert not bool(dense[~mask].any())
    rows = [slice(None)] if group == "tensor" else [slice(r, r + 1) for r in range(6)]
    for row in rows:
        for start in range(0, 12, runs(12, group)):
            part = (row, slice(start, start + runs(12, group)))
            live = mask[part]
            expected, scale = quantized(w[part][live].tolist(), bits, symmetric)
            found = dense[part][live]
            assert bool(((found - w[part][live]).abs() <= scale / 2 * (1 + 1e-5)).all())
            # at the exact middle between two grid points either is right, so compare errors
            torch.testing.assert_close(
                (found - w[part][live]).abs(), (torch.tensor(expected) - w[part][live]).abs(), rtol=1e-3, atol=1e-5
            )


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), st.integers(2, 8), st.booleans())
def test_the_error_is_at_most_half_a_step(values: list[float], bits: int, symmetric: bool) -> None:
    w = torch.tensor([values])
    tree = one(RoundToNearest(bits=bits, group="tensor", symmetric=symmetric), w)
    assert isinstance(tree, Affine)
    scale = float(tree.scale.to_dense())
    error = (tree.to_dense().double() - w.double()).abs().max()
    assert float(error) <= scale / 2 * (1 + 1e-4) + 1e-30
    assert int(tree.q.max()) < 1 << bits


@given(st.floats(-100, 100, width=32).filter(lambda v: abs(v) > 1e-6), st.integers(2, 8))
def test_zero_and_constants_are_exact_to_float_rounding(value: float, bits: int) -> None:
    constant = torch.full((3, 4), value)
    torch.testing.assert_close(one(RoundToNearest(bits=bits), constant).to_dense(), constant)
    torch.testing.assert_close(one(RoundToNearest(bits=bits, symmetric=False), constant).to_dense(), constant)
    assert not bool(one(RoundToNearest(bits=bits), torch.zeros(3, 4)).to_dense().any())
    mixed = torch.tensor([[value, 0.0, -value / 3, 0.0]])
    for symmetric in (True, False):
        assert not bool(one(RoundToNearest(bits=bits, symmetric=symmetric), mixed).to_dense()[mixed == 0].any())


def test_symmetric_grids_store_no_zero_points() -> None:
    w = torch.randn(4, 8)
    symmetric, other = one(RoundToNearest(bits=4), w), one(RoundToNearest(bits=4, symmetric=False), w)
    assert [f.field for f in symmetric.leaves()] == ["q", "array"]
    assert [f.field for f in other.leaves()] == ["q", "array", "zero_point"]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_scales_are_rounded_before_weights_so_the_bound_holds_for_what_is_stored(name: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(8, 33)
    tree = one(RoundToNearest(bits=4, scale_dtype=name), w)  # type: ignore[arg-type]
    assert isinstance(tree, Affine)
    scale = tree.scale.to_dense().float()[:, None]
    assert tree.scale.to_dense().dtype == getattr(torch, name)
    inside = w.abs() <= scale * 7.5  # a scale rounded down clips the very largest weight
    error = (tree.to_dense() - w).abs()
    assert bool((error <= scale / 2 * 1.0001)[inside].all())
    assert float(inside.float().mean()) > 0.95


def test_vectors_are_one_group() -> None:
    tree = one(RoundToNearest(bits=8, group="channel"), torch.randn(10))
    assert isinstance(tree, Affine)
    assert tree.scale.dense_shape() == (1,)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_a_channel_too_small_for_its_scale_becomes_zero_and_one_too_large_is_refused(kind: str) -> None:
    w = torch.randn(3, 8)
    w[1] *= 1e-9
    found = one(RoundToNearest(bits=4, group="channel", scale_dtype=kind), w).to_dense()  # type: ignore[arg-type]
    assert found.isfinite().all()
    assert float((found[1] - w[1]).abs().max()) <= (4e-9 if kind == "float16" else 1e-9)
    assert torch.equal(found[::2], one(RoundToNearest(bits=4, group="channel", scale_dtype=kind), w[::2]).to_dense())  # type: ignore[arg-type]
    if kind == "float16":
        with pytest.raises(PlanError, match="which float16 cannot hold"):
            one(RoundToNearest(bits=4, scale_dtype=kind), 1e9 * w)  # type: ignore[arg-type]
