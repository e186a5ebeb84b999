"""Sensitivity curves: what masking by hand measures, and the network as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from gossamer.drive import run
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.errors import DataError, PlanError
from gossamer.methods.prune import LatencyTable, Magnitude, Sensitivity, Taylor
from gossamer.sensitivity import sensitivity


def test_curves_are_the_loss_with_one_tensor_pruned_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(3, (10,))) for _ in range(3)]
    before = copy.deepcopy(net.state_dict())
    found = sensitivity(net, data, F.cross_entropy, (0.5, 0.9), batches=2)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert [name for name, _ in found.curves] == ["0.weight", "2.weight"]

    def loss(model: nn.Module) -> float:
        return sum(F.cross_entropy(model(x), y).item() for x, y in data[:2]) / 2

    for name, points in found.curves:
        for sparsity, rise in points:
            other = copy.deepcopy(net)
            w = other.get_parameter(name).data
            w.flatten()[w.abs().flatten().argsort(stable=True)[: round(sparsity * w.numel())]] = 0
            assert rise == pytest.approx(loss(other) - loss(net), abs=1e-6)
    again = json.loads(json.dumps(found.curves))
    assert parse_recipe(
        [{"prune.Magnitude": {"sparsity": 0.5, "scope": {"prune.Sensitivity": {"curves": again}}}}]
    ) == [Magnitude(sparsity=0.5, scope=found)]
    assert int(run(net, [Magnitude(sparsity=0.5, scope=found)]).trees["0.weight"].to_dense().count_nonzero()) > 0


def test_transposed_weights_are_pruned_in_their_own_orientation() -> None:
    torch.manual_seed(0)
    net = nn.ConvTranspose2d(3, 2, 2)
    data = [(torch.randn(2, 3, 4, 4), torch.randn(2, 2, 5, 5))]
    before = net.weight.detach().clone()
    found = sensitivity(net, data, F.mse_loss, (0.5, 1.0))
    assert torch.equal(net.weight, before)
    bias_only = F.mse_loss(net.bias.view(1, 2, 1, 1).expand(2, 2, 5, 5), data[0][1]).item()
    rise = bias_only - F.mse_loss(net(data[0][0]), data[0][1]).item()
    assert found.curves[0][1][1][1] == pytest.approx(rise, abs=1e-6)


def test_nothing_to_measure_on_is_refused() -> None:
    with pytest.raises(DataError, match="no batches"):
        sensitivity(nn.Linear(2, 2), [], F.mse_loss)
    with pytest.raises(PlanError, match="Taylor"):
        sensitivity(
            nn.Linear(2, 2), [(torch.ones(1, 2), torch.ones(1, 2))], F.mse_loss, method=lambda s: Taylor(sparsity=s)
        )


def test_tables_survive_a_recipe_file() -> None:
    table = LatencyTable((("a", ((0.1, 0.5), (1.0, 2.0))), ("b", ((0.5, 1.0), (1.0, 1.5)))))
    curves = Sensitivity((("a", ((0.5, 0.25), (1.0, 1.0))),))
    recipe = [Magnitude(ms=1.5, latency=table, scope="erk"), Magnitude(sparsity=0.5, scope=curves)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
