"""Scores at initialisation against references of a few lines, and the layers that SynFlow does not lose."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.drive import Gradual, run
from gossamer.drive.evidence import gather
from gossamer.drive.progress import NoProgress
from gossamer.drive.source import ModelSource
from gossamer.encoding import Masked
from gossamer.errors import DataError, PlanError
from gossamer.methods.prune import SNIP, GraSP, Magnitude, SynFlow
from gossamer.network.inspect import specs

Batch = tuple[Tensor, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))


def batches() -> list[Batch]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 5, generator=random), torch.arange(8) % 3) for _ in range(3)]


def evidence(model: nn.Module, need: str, data: list[Batch], loss: Any = F.cross_entropy) -> Any:
    source = ModelSource(model)
    trees = {s.name: source.read(s.name) for s in source.specs()}
    found = gather(model, specs(model), trees, frozenset({need}), data, loss=loss, progress=NoProgress())
    return {name: f[need] for name, f in found.items() if need in f}


def masks(model: nn.Module, method: Any, data: Any) -> dict[str, Tensor]:
    trees = run(model, [method], data=data).trees
    return {n: t.where.mask() for n, t in trees.items() if isinstance(t, Masked)}


def test_sensitivity_is_the_derivative_by_a_gate_on_each_connection() -> None:
    model, data = net(), batches()
    gates = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters() if p.dim() == 2}
    reference = copy.deepcopy(model).train()
    held = dict(reference.named_parameters())
    total = sum(
        F.cross_entropy(torch.func.functional_call(reference, {n: held[n] * g for n, g in gates.items()}, (x,)), y)
        for x, y in data
    )
    expected = torch.autograd.grad(total, list(gates.values()))
    found = evidence(model, "initial_grad", data)
    for (name, _), want in zip(gates.items(), expected, strict=True):
        torch.testing.assert_close(found[name] * model.get_parameter(name).detach(), want)
    # The network that was looked at is as before, its running statistics too.
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), net().state_dict().values(), strict=True))
    kept = torch.cat([m.flatten() for m in masks(model, SNIP(sparsity=0.6), data).values()])
    scores = torch.cat([e.abs().flatten() for e in expected])
    assert set(kept.nonzero().squeeze(1).tolist()) == set(scores.topk(int(kept.sum())).indices.tolist())


def test_grasp_is_what_removing_a_weight_does_to_the_norm_of_the_gradient() -> None:
    model, data = net().double(), [(x.double(), y) for x, y in batches()]
    found = evidence(model, "hessian_grad", data)

    def half_norm(name: str, at: tuple[int, int], step: float) -> float:
        moved = copy.deepcopy(model).train()
        with torch.no_grad():
            moved.get_parameter(name)[at] += step
        total = sum(F.cross_entropy(moved(x) / 200, y) for x, y in data)
        gradients = torch.autograd.grad(total, list(moved.parameters()))
        return 0.5 * float(sum(g.square().sum() for g in gradients))

    for name, at in (("0.weight", (2, 3)), ("3.weight", (1, 4))):
        slope = (half_norm(name, at, 1e-4) - half_norm(name, at, -1e-4)) / 2e-4
        assert float(found[name][at]) == pytest.approx(slope, rel=1e-3)
    scores = {n: model.get_parameter(n).detach().float() * found[n] for n in ("0.weight", "3.weight")}
    kept = masks(model, GraSP(sparsity=0.5), data)
    least_kept = min(float(scores[n][m].min()) for n, m in kept.items())
    best_gone = max(float(scores[n][~m].max()) for n, m in kept.items())
    assert least_kept >= best_gone


def deep(widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_the_flow_through_every_layer_is_the_same() -> None:
    model = deep((6, 20, 4, 30, 5))
    found = evidence(model, "flow", [(torch.randn(1, 6), torch.zeros(1))])
    through = [float((found[n] * p.detach().abs()).sum()) for n, p in model.named_parameters()]
    assert through == pytest.approx([1.0] * 4, rel=1e-5)
    r = torch.ones(1, 6)
    for parameter in model.parameters():
        r = r @ parameter.detach().abs().T
    step = copy.deepcopy(model)
    with torch.no_grad():
        step[0].weight[3, 2] *= 1 + 1e-3
    moved = torch.ones(1, 6)
    for parameter in step.parameters():
        moved = moved @ parameter.detach().abs().T
    change = float((moved.sum() - r.sum()) / r.sum()) / 1e-3
    assert float(found["0.weight"][3, 2] * model[0].weight.detach()[3, 2].abs()) == pytest.approx(change, rel=1e-2)


def test_synflow_keeps_a_path_where_magnitude_and_one_round_lose_layers() -> None:
    model = deep((64, 100, 8, 100, 8, 100, 10))
    total = sum(p.numel() for p in model.parameters())
    data = [(torch.randn(4, 64), torch.zeros(4, dtype=torch.int64))]
    sparsity = 1 - 30 / total
    kept = masks(model, SynFlow(sparsity=sparsity), data)
    assert sum(int(m.sum()) for m in kept.values()) == 30
    path = torch.ones(1, 64)
    for mask in kept.values():
        path = path @ mask.float().T
    assert float(path.sum()) > 0  # ones reach the outputs
    for other in (Magnitude(sparsity=sparsity, scope="global"), SynFlow(sparsity=sparsity, steps=1)):
        with pytest.raises(PlanError, match="at least one live weight per layer"):
            masks(model, other, data)


def test_rounds_follow_an_exponential_schedule() -> None:
    method = SynFlow(sparsity=0.99, steps=4)
    left = [1 - method.at(k / 4).sparsity for k in range(5)]  # type: ignore[attr-defined]
    assert left == pytest.approx([1, 0.01**0.25, 0.1, 0.01**0.75, 0.01])


def test_flow_needs_no_labels_but_inputs_that_are_numbers() -> None:
    model = deep((6, 20, 5))
    assert set(evidence(model, "flow", [torch.randn(3, 6)])) == {"0.weight", "2.weight"}  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"flow: found inputs of torch.int64"):
        evidence(model, "flow", [torch.zeros(3, 6, dtype=torch.int64)])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"expected \(inputs, targets\)"):
        evidence(model, "hessian_grad", [torch.randn(3, 6)])  # type: ignore[list-item]


@pytest.mark.parametrize("method", [SNIP(sparsity=0.5), GraSP(sparsity=0.5), SynFlow(sparsity=0.5)])
def test_gradual_pruning_refuses_what_training_steps_do_not_show(method: Any) -> None:
    with pytest.raises(PlanError, match=f"Gradual: found {type(method).__name__}, which needs"):
        Gradual(methods=(method,))


def test_a_method_of_several_rounds_is_one_entry_of_the_plan() -> None:
    model = deep((6, 20, 5))
    small = gs.compress(model, [SynFlow(sparsity=0.8, steps=5)], data=[(torch.randn(2, 6), torch.zeros(2).long())])
    kept = sum(int((p != 0).sum()) for p in small.dense().parameters())
    assert kept == 220 - round(0.8 * 220)
    with pytest.raises(PlanError, match="SynFlow: found sparsity None"):
        SynFlow(budget_bytes=100.0)
