"""What a grouped convolution's inputs are stays right on the way down to the children of its encoding."""

from __future__ import annotations

import torch

from gossamer.encoding.patterns import Mask
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Concat, Kept, Permuted


def evidence(groups: int, inputs: int) -> dict[str, torch.Tensor]:
    x = torch.randn(groups, 40, inputs, generator=torch.Generator().manual_seed(0))
    return {"count": torch.tensor([40.0]), "sq": x.square().sum(1), "gram": x.mT @ x}


def test_channels_that_stayed_have_the_statistics_of_their_own_groups() -> None:
    kept = torch.tensor([1, 4, 5])
    stayed = torch.zeros(8, dtype=torch.bool).index_fill(0, kept, True)
    weight = Kept(Dense(torch.randn(3, 1, 3, 3)), (Mask.of(stayed), None, None, None), (1, 1, 1, 1))
    seen = evidence(8, 9)
    below = weight.hand_down("inner", seen)
    assert torch.equal(below["gram"], seen["gram"][kept])
    assert torch.equal(below["sq"], seen["sq"][kept])


def test_parts_have_the_statistics_of_their_rows_and_none_that_no_longer_fit() -> None:
    weight = Concat((Dense(torch.randn(2, 4)), Dense(torch.randn(6, 4))))
    seen = evidence(4, 4)
    assert torch.equal(weight.hand_down("members.0", seen)["gram"], seen["gram"][:1])
    assert torch.equal(weight.hand_down("members.1", seen)["sq"], seen["sq"][1:])
    uneven = Concat((Dense(torch.randn(3, 4)), Dense(torch.randn(5, 4))))
    assert set(uneven.hand_down("members.0", seen)) == {"count"}


def test_columns_change_their_order_within_each_group() -> None:
    order = torch.tensor([2, 0, 3, 1], dtype=torch.int16)
    seen = evidence(2, 4)
    below = Permuted(Dense(torch.randn(6, 4)), order).hand_down("inner", seen)
    assert torch.equal(below["gram"], seen["gram"][:, order.long()][:, :, order.long()])
    assert torch.equal(below["sq"], seen["sq"][:, order.long()])
