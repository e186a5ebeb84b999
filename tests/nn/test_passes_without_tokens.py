"""A layer that no token reached in a watched step says so: its dead gradients are zero."""

from __future__ import annotations

import torch

from gossamer.nn import SparseLinear, Topology


def layer() -> SparseLinear:
    torch.manual_seed(0)
    return SparseLinear(40, 24, topology=Topology.of_mask(torch.rand(24, 40) < 0.2))


def dead(net: SparseLinear, batches: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    net.watch(10)
    for x in batches:
        net(x).square().sum().backward()
    found = net.dead_gradient()
    assert found is not None
    return found[0], found[1]


def test_gradients_of_dead_weights_are_zero_without_tokens() -> None:
    for _ in range(3):
        torch.full((1 << 20,), float("nan"))  # memory that is handed out again is not zero
        assert torch.equal(dead(layer(), [torch.empty(0, 40)])[1], torch.zeros(10))


def test_a_pass_without_tokens_adds_nothing() -> None:
    x = torch.randn(16, 40)
    places, gradients = dead(layer(), [torch.empty(0, 40), x])
    alone = dead(layer(), [x])
    assert torch.equal(places, alone[0])
    assert torch.equal(gradients, alone[1])
