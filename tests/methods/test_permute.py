"""Column orders for N:M: never worse than none, the optimum where that can be enumerated, undone by to_dense."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one
from torch import Tensor

from gossamer.encoding import Masked, Permuted
from gossamer.methods.prune import Magnitude, NofM
from gossamer.methods.prune.permute import kept_score, permutation


@st.composite
def matrices(draw: st.DrawFn, m: int, groups: int) -> Tensor:
    rows = draw(st.integers(1, 4))
    numbers = st.sampled_from([0.0, 1.0, 2.0, 5.0]) | st.floats(0, 9, width=16)
    return torch.tensor(draw(st.lists(numbers, min_size=rows * m * groups, max_size=rows * m * groups))).view(rows, -1)


@given(st.data(), st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5), (4, 8)]), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_an_order_is_a_permutation_and_keeps_no_less(data: st.DataObject, nm: tuple[int, int], groups: int) -> None:
    n, m = nm
    scores = data.draw(matrices(m, groups))
    order = permutation(scores, n, m)
    assert sorted(order.tolist()) == list(range(m * groups))
    assert kept_score(scores[:, order], n, m) >= kept_score(scores, n, m)
    assert torch.equal(order, permutation(scores, n, m))


@given(matrices(4, 2))
@settings(max_examples=15, deadline=None)
def test_eight_columns_reach_the_best_of_all_orders(scores: Tensor) -> None:
    every = (
        p for p in permutations(range(8)) if p[0] == 0 and list(p[:4]) == sorted(p[:4]) and list(p[4:]) == sorted(p[4:])
    )
    optimum = max(kept_score(scores[:, list(p)], 2, 4) for p in every)
    assert kept_score(scores[:, permutation(scores, 2, 4)], 2, 4) == pytest.approx(optimum, rel=1e-6)


def test_columns_that_crowd_each_other_are_parted() -> None:
    w = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4]])
    plain = one(Magnitude(structure=NofM(2, 4)), w)
    tree = one(Magnitude(structure=NofM(2, 4, permute=True)), w)
    assert isinstance(tree, Permuted)
    assert isinstance(tree.inner, Masked)
    assert tree.to_dense().tolist() == [[9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 0.0, 0.0]]
    assert plain.to_dense().sum() == pytest.approx(9 + 8 + 0.3 + 0.4)


def test_live_values_are_those_of_the_weight_also_in_a_convolution() -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 4, 2, 2)
    tree = one(Magnitude(structure=NofM(2, 4, permute=True)), w)
    dense = tree.to_dense()
    assert torch.equal(dense, torch.where(dense != 0, w, 0))
    assert int((dense != 0).sum()) == w.numel() // 2
    plain = one(Magnitude(structure=NofM(2, 4)), w).to_dense()
    assert float(dense.abs().sum()) > float(plain.abs().sum())


def test_evidence_follows_the_columns() -> None:
    w = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4]])
    tree = one(Magnitude(structure=NofM(2, 4, permute=True)), w)
    assert isinstance(tree, Permuted)
    order = tree.order.long()
    x = torch.randn(8, 5)
    down = tree.hand_down("inner", {"sq": x.square().sum(1), "gram": x @ x.T, "grad": w, "count": torch.tensor([5.0])})
    turned = x[order]
    torch.testing.assert_close(down["gram"], turned @ turned.T)
    torch.testing.assert_close(down["sq"], turned.square().sum(1))
    assert torch.equal(down["grad"], w[:, order])
    assert down["count"].tolist() == [5.0]
    torch.testing.assert_close(tree.inner.to_dense() @ turned, tree.to_dense() @ x)
