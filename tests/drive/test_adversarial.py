"""Adversarial training sees worse inputs, leaves networks as they were, makes them more robust, and is YAML too."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import gossamer as gs
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.errors import DataError, PlanError
from gossamer.measure import APGD, accuracy


def _data(count: int = 600) -> tuple[Tensor, Tensor]:
    """One strong and robust number, and many that are as right together but weak."""
    torch.manual_seed(0)
    y = torch.randint(2, (count,))
    sign = (2 * y - 1).float()[:, None]
    strong = 0.5 + 0.25 * sign * (torch.rand(count, 1) < 0.9).float()
    weak = 0.5 + 0.02 * sign + 0.03 * torch.randn(count, 40)
    return torch.cat([strong, weak], 1).clamp(0, 1), y


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(41, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))


def _batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 50], y[i : i + 50]) for i in range(0, len(x), 50)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("trades", [None, 3.0])
def test_inputs_lie_in_the_ball_and_are_worse_and_the_network_is_left_alone(norm: str, trades: float | None) -> None:
    (x, y), model = _data(100), _net().train()
    model[0].weight.requires_grad_(False)
    epsilon = 0.05 if norm == "linf" else 0.2
    objective = gs.Adversarial(epsilon=epsilon, steps=5, norm=norm, trades=trades)  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    points = objective.inputs(model, x, y)
    away = (points - x).double()
    size = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
    assert float(size.max()) <= epsilon * (1 + 1e-6)
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    model.eval()
    with torch.no_grad():
        clean, other = model(x), model(points)
        if trades is None:
            assert float(F.cross_entropy(other, y)) > float(F.cross_entropy(clean, y))
        assert float((other - clean).abs().mean()) > 0


def test_the_trades_loss_is_its_definition() -> None:
    (x, y), model = _data(50), _net().eval()
    objective = gs.Adversarial(epsilon=0.05, steps=2, trades=2.0)
    torch.manual_seed(5)
    points = objective.inputs(model, x, y)
    p, q = model(x).softmax(1), model(points).softmax(1)
    expected = F.cross_entropy(model(x), y) + 2 * (p * (p / q).log()).sum(1).mean()
    torch.manual_seed(5)
    torch.testing.assert_close(objective.loss(model, x, y), expected)


def test_a_cache_of_parametrizations_around_it_keeps_its_gradients() -> None:
    x, y = _data(50)
    small = gs.compress(nn.Sequential(nn.Linear(41, 2)), [gs.prune.Magnitude(sparsity=0.5)])
    model = small.trainable()
    objective = gs.Adversarial(epsilon=0.05, steps=2)
    with parametrize.cached():
        objective.loss(model, x, y).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("trades", [None, 6.0])
def test_tune_with_it_makes_networks_more_robust_than_tune_without(trades: float | None) -> None:
    x, y = _data()
    data, robust = _batches(x, y), {}
    objective = gs.Adversarial(epsilon=0.08, steps=3, trades=trades)
    for name, adversarial in (("plain", None), ("adversarial", objective)):
        torch.manual_seed(2)
        recipe = [gs.prune.Magnitude(sparsity=0.5), gs.Tune(epochs=8, lr=1e-2, adversarial=adversarial, held_out=0.2)]
        small = gs.compress(_net(), recipe, data=data)
        dense = small.dense()
        made = APGD(steps=10).run(dense, x, y, 0.08)
        robust[name] = accuracy(dense, made, y).value
        assert accuracy(dense, x, y).value > 0.8
    assert robust["adversarial"] > robust["plain"] + 0.2


def test_recipes_in_yaml_may_say_it() -> None:
    tune = gs.Tune(epochs=2, adversarial=gs.Adversarial(epsilon=0.03, steps=3, trades=6.0, bounds=(-1.0, 1.0)))
    said = {"epsilon": 0.03, "steps": 3, "trades": 6.0, "bounds": [-1.0, 1.0]}
    assert parse_recipe([{"Tune": {"epochs": 2, "adversarial": {"Adversarial": said}}}]) == [tune]
    assert parse_recipe(yaml.safe_load(dump_recipe([tune]))) == [tune]
    with pytest.raises(PlanError, match="on its own"):
        parse_recipe([{"Adversarial": {"epsilon": 0.1}}])


def test_what_makes_no_sense_is_refused() -> None:
    (x, y), model = _data(10), _net()
    for settings in (
        {"epsilon": 0.0},
        {"epsilon": 0.1, "steps": 0},
        {"epsilon": 0.1, "step": 0.0},
        {"epsilon": 0.1, "norm": "l1"},
        {"epsilon": 0.1, "bounds": (1.0, 0.0)},
        {"epsilon": 0.1, "trades": -1.0},
    ):
        with pytest.raises(PlanError, match="Adversarial"):
            gs.Adversarial(**settings)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="distil below 1"):
        gs.Tune(distil=1.0, adversarial=gs.Adversarial(epsilon=0.1))
    with pytest.raises(DataError, match="say bounds="):
        gs.Adversarial(epsilon=0.1).loss(model, x * 3, y)
    with pytest.raises(DataError, match="found inputs of"):
        gs.Adversarial(epsilon=0.1).loss(model, x.long(), y)
