"""Evidence from training steps, and the schedule that waits for it, against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive import Gradual, Tune, run
from gossamer.drive.steps import StepEvidence
from gossamer.encoding import Dense, Mask, Masked
from gossamer.errors import PlanError
from gossamer.methods.prune import Magnitude, Movement, Taylor
from gossamer.network import attach, specs
from gossamer.network.evolve import evolve


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(6, 8, 6, generator=random)
    return [(b, b[:, :3].argmax(1)) for b in x]


def reference(kind: str, updates: int, tune: Tune, ramp: float, sparsity: float) -> dict[str, Tensor]:
    """Masked dense weights under plain SGD; masks from gradients since the last update, or movement from the start."""
    model, data = net(), batches()
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in weights.items()}
    sums = {n: torch.zeros_like(p) for n, p in weights.items()}
    optimizer = torch.optim.SGD(model.parameters(), tune.lr, momentum=0.9, nesterov=True)
    steps = tune.epochs * len(data)
    when = {round(u * max(1, round(ramp * steps)) / updates): u for u in range(1, updates + 1)}
    for step in range(steps):
        if step in when:
            share = sparsity * (1 - (1 - when[step] / updates) ** 3)
            for n, p in weights.items():
                score = sums[n] if kind == "movement" else (p.detach() * sums[n]).abs() if kind == "grad" else None
                score = p.detach() ** 2 * sums[n] if score is None else score
                order = torch.where(masks[n], score, -torch.inf).flatten().argsort(descending=True, stable=True)
                masks[n] = torch.zeros(p.numel(), dtype=torch.bool)
                masks[n][order[: p.numel() - round(share * p.numel())]] = True
                masks[n] = masks[n].view_as(p)
                p.data *= masks[n]
                if kind != "movement":
                    sums[n].zero_()
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for n, p in weights.items():
            assert p.grad is not None
            p.grad *= masks[n]
            g = p.grad.detach()
            sums[n] += -p.detach() * g if kind == "movement" else g if kind == "grad" else g * g
        optimizer.step()
        for n, p in weights.items():
            p.data *= masks[n]
    return {n: p.detach() for n, p in weights.items()}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("movement", Movement(sparsity=0.7)),
        ("grad", Taylor(sparsity=0.7)),
        ("grad_sq", Taylor(sparsity=0.7, form="fisher")),
    ],
    ids=["movement", "grad", "grad_sq"],
)
def test_updates_use_all_movement_and_the_gradients_since_the_one_before(kind: str, method: Any) -> None:
    tune = Tune(epochs=4, lr=0.05, optimizer="sgd", schedule="constant")
    expected = reference(kind, 4, tune, 0.6, 0.7)
    state = run(net(), [Gradual(methods=(method,), tune=tune, updates=4, ramp=0.6)], data=batches())
    for name, weight in expected.items():
        found = state.trees[name].to_dense()
        assert torch.equal(found != 0, weight != 0)
        torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)


def test_sums_follow_their_weights_when_the_topology_changes() -> None:
    """A weight that comes back starts from zero, one that stays keeps its movement and forgets its gradients."""
    before, after = torch.tensor([[1, 1, 0], [1, 0, 1]]).bool(), torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
    model = nn.Linear(3, 2, bias=False)
    trees = [Masked(Mask.of(m), Dense(torch.arange(1.0, 5.0))) for m in (before, after)]
    network = attach(model, specs(model), {"weight": trees[0]})
    say = StepEvidence(network, ["weight"], frozenset({"movement", "grad"}))
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    network(torch.ones(1, 3)).sum().backward()  # every gradient is 1
    say.gather()
    evolve(network, {"weight": trees[1]}, optimizer)
    say.update()
    assert torch.equal(say.evidence()["weight"]["movement"], torch.tensor([[0.0, -2, 0], [-3, 0, -4]]))
    assert "grad" not in say.evidence()["weight"]
    optimizer.zero_grad()
    network(torch.ones(1, 3)).sum().backward()
    say.gather()
    found = say.evidence()["weight"]
    assert torch.equal(found["movement"], torch.tensor([[0.0, -3, -2], [-6, 0, -8]]))
    assert torch.equal(found["grad"], after.float())


def test_the_final_sparsity_is_exact_and_methods_without_needs_wait_too() -> None:
    methods = (Movement(sparsity=0.5, only="0.weight"), Magnitude(sparsity=0.75, only="2.weight"))
    state = run(net(), [Gradual(methods=methods, tune=Tune(epochs=2), updates=3, ramp=0.5)], data=batches())
    live = {n: t.where.positions().numel() for n, t in state.trees.items() if isinstance(t, Masked)}
    assert live == {"0.weight": 24, "2.weight": 6}
    assert [p["method"] for p in state.plans] == ["Movement", "Magnitude"]


def test_a_schedule_without_steps_between_updates_is_refused() -> None:
    for ramp in (0.01, 1.0):
        stage = Gradual(methods=(Movement(sparsity=0.5),), tune=Tune(epochs=1), updates=4, ramp=ramp)
        with pytest.raises(PlanError, match="expected fewer"):
            run(net(), [stage], data=batches())


def test_a_budget_of_multiplications_is_reached_during_training() -> None:
    stage = Gradual(methods=(Magnitude(macs=0.25, scope="global"),), tune=Tune(epochs=1), updates=3)
    state = run(net(), [stage], data=batches())
    live = sum(int((state.trees[n].to_dense() != 0).sum()) for n in ("0.weight", "2.weight"))
    assert live == (48 + 24) // 4


def test_a_dry_run_plans_movement_without_training() -> None:
    state = run(net(), [Gradual(methods=(Movement(sparsity=0.5),))], training=False)
    assert int(state.trees["0.weight"].to_dense().count_nonzero()) == 24
