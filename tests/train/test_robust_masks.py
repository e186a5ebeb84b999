"""Hydra seeks a mask by the objective while weights stand still, settles it, and fits any loop with any loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.train.from_dense import FromDense, Hydra, harvest, live_masks, prepare, relaxed


def _data(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.rand(count, 12)
    return x, (x[:, 0] + x[:, 1] > x[:, 2] + x[:, 3]).long()


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))


def test_weights_stand_still_while_the_mask_is_sought_and_train_afterwards() -> None:
    x, y = _data()
    method = Hydra(sparsity=0.75, search=6)
    model = prepare(_net(), method)
    optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    run = FromDense(model, optimizer, method)
    before = {n: w.detach().clone() for n, (_, w) in relaxed(model).items()}
    first = live_masks(model)
    for name, weight in before.items():  # magnitudes choose the first mask
        assert torch.equal(first[name].flatten().sort().values, torch.arange(weight.numel()) >= weight.numel() * 0.75)
        assert float(weight[first[name]].abs().min()) >= float(weight[~first[name]].abs().max())
    for step in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        run.step()
        if step == 5:
            sought = live_masks(model)
            assert all(torch.equal(w, before[n]) for n, (_, w) in relaxed(model).items())
            assert any(not torch.equal(sought[n], first[n]) for n in first)
    assert all(torch.equal(m, sought[n]) for n, m in live_masks(model).items())
    assert all(not torch.equal(w, before[n]) for n, (_, w) in relaxed(model).items())
    small = harvest(model)
    dense = small.dense()
    assert int((dense[0].weight != 0).sum()) == 72
    torch.testing.assert_close(dense(x), model.eval()(x))


def test_scores_get_the_straight_through_gradient() -> None:
    method = Hydra(sparsity=0.5, search=5)
    model = prepare(nn.Sequential(nn.Linear(4, 2, bias=False)), method)
    relaxation, weight = relaxed(model)["0.weight"]
    x = torch.rand(3, 4)
    model(x).sum().backward()
    upstream = x.sum(0)[None].expand(2, 4)
    assert weight.grad is None
    scores = relaxation.scores
    assert isinstance(scores, nn.Parameter)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, upstream * weight.detach() * scores.detach().sign())


def test_masks_survive_saving() -> None:
    method = Hydra(sparsity=0.5, search=1)
    model = prepare(_net(), method)
    run = FromDense(model, torch.optim.SGD(model.parameters(), 0.1), method)
    run.step()
    other = prepare(_net(), method)
    with torch.no_grad():
        for relaxation, _ in relaxed(other).values():
            assert isinstance(relaxation.scores, nn.Parameter)
            relaxation.scores.normal_()
    other.load_state_dict(model.state_dict())
    x, _ = _data(8)
    torch.testing.assert_close(other(x), model(x))
    assert all(torch.equal(m, live_masks(model)[n]) for n, m in live_masks(other).items())


def test_an_adversarial_objective_drives_the_search_and_sparse_training() -> None:
    x, y = _data()
    objective = gs.Adversarial(epsilon=0.05, steps=2, step=1.0)
    method = Hydra(sparsity=0.5, search=10)
    model = prepare(_net(), method)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    run = FromDense(model, optimizer, method)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective.loss(model, x, y)
        loss.backward()
        optimizer.step()
        run.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]

    sparse = gs.train.RigL(sparsity=0.5, steps=20, every=5)
    net = gs.train.sparsify(_net(), sparse)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    sparsifier = gs.train.Sparsifier(net, optimizer, sparse)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective.loss(net, x, y)
        loss.backward()
        optimizer.step()
        sparsifier.step(loss)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"sparsity": 0.0, "search": 1}, {"sparsity": 1.0, "search": 1}, {"search": 0}):
        with pytest.raises(PlanError, match="Hydra: found"):
            Hydra(**settings)  # type: ignore[arg-type]
