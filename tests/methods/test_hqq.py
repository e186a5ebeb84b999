"""HQQ: never a larger sum of |error|^p than rounding, and outliers no longer rule a group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one
from torch import Tensor

from gossamer.methods.quantize import HQQ, RoundToNearest


def robust(w: Tensor, found: Tensor, p: float, group: int) -> Tensor:
    off = (w - found).abs().double() ** p
    return torch.stack([part.sum(1) for part in off.split(group, 1)], 1)


@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    group=st.integers(1, 20),
    symmetric=st.booleans(),
    p=st.sampled_from([0.3, 0.7, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_no_group_has_a_larger_sum_than_rounding(seed: int, bits: int, group: int, symmetric: bool, p: float) -> None:
    w = torch.randn(4, 17, generator=torch.Generator().manual_seed(seed)) ** 3
    mine = robust(w, one(HQQ(bits=bits, group=group, symmetric=symmetric, p=p), w).to_dense(), p, group)
    plain = one(RoundToNearest(bits=bits, group=group, symmetric=symmetric), w).to_dense()
    assert bool((mine <= robust(w, plain, p, group) * (1 + 1e-3) + 1e-3).all())


@pytest.mark.parametrize(("bits", "share"), [(3, 0.9), (4, 0.96)])
def test_weights_with_heavy_tails_lose_less(bits: int, share: float) -> None:
    random = torch.Generator().manual_seed(0)
    w = torch.randn(32, 64, generator=random) / torch.rand(32, 64, generator=random).clamp_min(0.05)
    mine = one(HQQ(bits=bits, group=64), w).to_dense()
    plain = one(RoundToNearest(bits=bits, group=64, symmetric=False), w).to_dense()
    assert float(robust(w, mine, 0.7, 64).sum()) < share * float(robust(w, plain, 0.7, 64).sum())


def test_constants_and_zeros_stay() -> None:
    assert not bool(one(HQQ(bits=4), torch.zeros(3, 8)).to_dense().any())
    torch.testing.assert_close(one(HQQ(bits=4), torch.full((3, 8), 0.7)).to_dense(), torch.full((3, 8), 0.7))
