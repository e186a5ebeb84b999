"""Gradual pruning against a dense network with masks, step by step, optimiser state included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive import Gradual, Tune, run
from gossamer.encoding import Masked
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.prune import Magnitude, NofM, Rows
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans

Batch = tuple[Tensor, Tensor]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def batches(count: int = 10) -> list[Batch]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(count, 16, 10, generator=random)
    return [(b, b[:, :3].argmax(1)) for b in x]


def masked_reference(
    model: nn.Module, data: list[Batch], tune: Tune, sparsity: float, updates: int, ramp: float
) -> nn.Module:
    """Dense weights times masks; the state of what is pruned is of no consequence, what lives keeps its own."""
    model = copy.deepcopy(model)
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {n: torch.ones_like(p) for n, p in weights.items()}

    def prune(share: float) -> None:
        with torch.no_grad():
            for n, p in weights.items():
                scores = torch.where(masks[n] > 0, p.abs(), -1.0).flatten()
                order = scores.argsort(descending=True, stable=True)
                keep = p.numel() - round(share * p.numel())
                masks[n] = torch.zeros_like(scores).index_fill(0, order[:keep], 1.0).view_as(p)
                p.mul_(masks[n])

    def sparsity_at(update: int) -> float:
        return sparsity * (1 - (1 - update / updates) ** 3)

    prune(sparsity_at(1))
    steps = tune.epochs * len(data)
    ramp_steps = max(1, round(ramp * steps))
    when = {round(u * ramp_steps / updates): u + 1 for u in range(1, updates)}
    optimizer = tune.make_optimizer(model)
    step = 0
    for _ in range(tune.epochs):
        for x, y in data:
            if step in when:
                prune(sparsity_at(when[step]))
            optimizer.param_groups[0]["lr"] = tune.rate(step, steps)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for n, p in weights.items():
                    assert p.grad is not None
                    p.grad *= masks[n]
            optimizer.step()
            with torch.no_grad():
                for n, p in weights.items():
                    p.mul_(masks[n])
            step += 1
    return model


@pytest.mark.parametrize(
    "tune",
    [
        Tune(epochs=4, lr=0.05, optimizer="sgd"),
        Tune(epochs=4, lr=0.01, optimizer="adam"),
        Tune(epochs=4, lr=0.02, optimizer="adam", schedule="constant", weight_decay=0.1),
        Tune(epochs=4, lr=0.05, optimizer="sgd", warmup=0.2, weight_decay=0.01),
    ],
    ids=["sgd", "adam", "adamw", "sgd-warmup"],
)
def test_survivors_train_as_in_a_dense_network_with_masks(tune: Tune) -> None:
    model, data = net(), batches()
    expected = masked_reference(model, data, tune, 0.8, updates=6, ramp=0.6)
    stage = Gradual(methods=(Magnitude(sparsity=0.8),), tune=tune, updates=6, ramp=0.6)
    state = run(model, [stage], data=data)
    for name, parameter in expected.named_parameters():
        found = state.trees[name].to_dense()
        torch.testing.assert_close(found, parameter, rtol=1e-4, atol=1e-5)
        assert torch.equal(found != 0, parameter != 0)


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("updates", [1, 3, 7])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_final_sparsity_is_exact(sparsity: float, updates: int, scope: Any) -> None:
    method = Magnitude(sparsity=sparsity, scope=scope)
    state = run(net(), [Gradual(methods=(method,), tune=Tune(epochs=2), updates=updates)], data=batches(5))
    trees = [t for t in state.trees.values() if isinstance(t, Masked)]
    live, total = sum(t.where.positions().numel() for t in trees), sum(t.to_dense().numel() for t in trees)
    if scope == "global":
        assert live == total - round(sparsity * total)
    else:
        assert all(
            t.where.positions().numel() == t.to_dense().numel() - round(sparsity * t.to_dense().numel()) for t in trees
        )


def test_rows_are_pruned_gradually_too_and_several_methods_share_a_ramp() -> None:
    methods = (Magnitude(sparsity=0.5, structure=Rows(), only="0.weight"), Magnitude(sparsity=0.7, only="2.weight"))
    state = run(net(), [Gradual(methods=methods, tune=Tune(epochs=2), updates=3)], data=batches(5))
    assert int((state.trees["0.weight"].to_dense() != 0).any(1).sum()) == 8
    assert int((state.trees["2.weight"].to_dense() != 0).sum()) == 192 - round(0.7 * 192)


def test_pruned_weights_do_not_come_back_and_later_stages_follow() -> None:
    model, data = net(), batches(5)
    recipe = [Gradual(methods=(Magnitude(sparsity=0.6),), tune=Tune(epochs=2), updates=4), KMeans(bits=2)]
    state = run(model, recipe, data=data)
    assert [p["method"] for p in state.plans][-1] == "KMeans"
    assert int((state.trees["0.weight"].to_dense() != 0).sum()) <= 160 - round(0.6 * 160)


def test_the_loss_falls_and_the_network_given_stays_as_it_was() -> None:
    model, data = net(), batches(20)
    before = copy.deepcopy(model.state_dict())
    state = run(
        model, [Gradual(methods=(Magnitude(sparsity=0.5),), tune=Tune(epochs=6, lr=0.02), updates=5)], data=data
    )
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    with torch.no_grad():
        assert F.cross_entropy(state.network()(x), y) < 0.6 * F.cross_entropy(model(x), y)


def test_settings_data_and_methods_that_make_no_sense_are_refused() -> None:
    method = Magnitude(sparsity=0.5)
    for bad in ({"methods": ()}, {"updates": 0}, {"ramp": 1.5}):
        with pytest.raises(PlanError, match="Gradual"):
            Gradual(**{"methods": (method,), **bad})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Gradual.: found no data"):
        run(net(), [Gradual(methods=(method,))])
    for rigid in (Magnitude(structure=NofM(2, 4)), KMeans(bits=3), RoundToNearest()):
        with pytest.raises(PlanError, match="schedule"):
            run(net(), [Gradual(methods=(rigid,), updates=3)], data=batches(5))
    with pytest.raises(PlanError, match="found 8 updates in 1 steps"):
        run(net(), [Gradual(methods=(method,), updates=8)], data=batches(1))
    with pytest.raises(CompositionError, match="Prune before"):
        run(net(), [KMeans(bits=2), Gradual(methods=(method,), updates=2)], data=batches(5))


def test_a_layer_that_would_die_is_refused() -> None:
    with pytest.raises(PlanError, match=r"recipe entry 1 \(Gradual\).*keeps 0 of"):
        run(net(), [Gradual(methods=(Magnitude(sparsity=1.0),), updates=2)], data=batches(5))
