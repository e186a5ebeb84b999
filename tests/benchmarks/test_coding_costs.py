"""What layers were measured to cost."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from benchmarks.coding_costs import measured_costs, priced
from gossamer.methods.quantize import RateDistortion


class Sum(nn.Module):
    """Answers of two layers, of which one hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(30, 8, bias=False), nn.Linear(30, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 0.1 * self.quiet(x)


def test_a_layer_costs_what_its_errors_do_to_the_answers() -> None:
    torch.manual_seed(0)
    network = Sum().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    costs = measured_costs(network, torch.randn(400, 30), RateDistortion(rate=1e-5))
    assert 70 < costs["loud.weight"] / costs["quiet.weight"] < 100  # no cost is below 2% of the mean
    assert sum(log(cost) for cost in costs.values()) == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_bit_has_one_price_in_errors_of_the_answers() -> None:
    cheap, dear = priced(RateDistortion(rate=1e-5, group="channel"), 1e-6, {"a": 0.5, "b": 4.0})
    assert isinstance(cheap, RateDistortion)
    assert isinstance(dear, RateDistortion)
    assert (cheap.rate, dear.rate, cheap.only, dear.only) == (2e-6, 2.5e-7, ("a",), ("b",))
    assert cheap.group == dear.group == "channel"
