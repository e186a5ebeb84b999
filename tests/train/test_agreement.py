"""What does not belong together is refused, or remarked upon, with names: methods, states, networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train.nets import batch, mlp, started, train_step

from gossamer.errors import DataError, PlanError
from gossamer.train import (
    GradualMagnitude,
    NofM,
    RigL,
    Sparsifier,
    Static,
    TopKAST,
    harvest,
    sparsify,
)
from gossamer.train.allocation import Uniform


def test_a_method_that_contradicts_the_one_of_sparsify_is_refused_and_both_are_named() -> None:
    model = sparsify(mlp(), RigL(sparsity=0.9, steps=1000))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(PlanError, match=r"0: found RigL\(.*sparsity=0.5.*expected what sparsify\(\) was given, .*0.9"):
        Sparsifier(model, optimizer, RigL(sparsity=0.5, steps=1000))
    with pytest.raises(PlanError, match=r"found NofM.*given, RigL"):
        Sparsifier(model, optimizer, NofM(n=1, m=10, steps=1000))
    Sparsifier(model, optimizer, Static(sparsity=0.9))  # another course to the same end
    Sparsifier(model, optimizer, GradualMagnitude(sparsity=0.95, steps=1000))


@pytest.mark.parametrize(
    "method",
    [
        GradualMagnitude(sparsity=0.8, steps=20, every=5),
        TopKAST(sparsity=0.8, backward_sparsity=0.6, steps=20, every=5),
    ],
)
def test_a_harvest_before_the_end_of_the_schedule_is_remarked_upon(method: GradualMagnitude | TopKAST) -> None:
    model, optimizer, sparsifier = started(method)
    for step in range(20):
        if step == 6:
            with pytest.warns(
                UserWarning, match=rf"harvest: found sparsity 0.*expected the 0\.800 of {type(method).__name__}"
            ):
                harvest(model)
        train_step(model, optimizer, step)
        sparsifier.step()
    sparsifier.finish()
    harvest(model)


def test_the_state_of_a_sparsifier_is_refused_before_the_networks() -> None:
    method = RigL(sparsity=0.8, steps=100, every=2)
    first, second = started(method), started(method)
    for step in range(2):
        train_step(first[0], first[1], step)
        first[2].step()
    with pytest.raises(DataError, match=r"0: found live weights at other places.*load the network's state first"):
        second[2].load_state_dict(first[2].state_dict())
    second[0].load_state_dict(first[0].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    assert second[2].steps == 2


def test_a_checkpoint_of_another_network_is_refused_and_the_tensor_is_named(tmp_path: Path) -> None:
    path, method = tmp_path / "state.safetensors", Static(sparsity=0.5, allocation=Uniform())
    started(method)[2].save(path)

    def resumed(model: nn.Module, *, groups: int = 1) -> None:
        sparsify(model, method)
        parameters = list(model.parameters())
        optimizer = torch.optim.Adam([{"params": parameters[i::groups]} for i in range(groups)])
        before = {n: t.clone() for n, t in model.state_dict().items()}
        try:
            Sparsifier(model, optimizer, method).resume(path)
        finally:
            assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    for model, said in (
        (nn.Sequential(nn.Linear(20, 64)), "found 2.values, which the network lacks"),
        (nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(8, 8)), "found no 6.values"),
        (nn.Sequential(nn.Linear(20, 65), nn.ReLU(), nn.Linear(65, 40), nn.ReLU(), nn.Linear(40, 8)),
         r"0.bias: found \(64,\), expected \(65,\)"),
        (nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 8)),
         r"0.positions: found 1\d+, expected at most 255 in a weight of \(64, 4\)"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"state.safetensors: {said}"):
            resumed(model)
    with pytest.raises(DataError, match=r"optimizer: found groups of \[6\] parameters, expected \[3, 3\]"):
        resumed(mlp(), groups=2)


def test_networks_without_layers_to_make_sparse_are_told_which_there_could_be() -> None:
    with pytest.raises(PlanError, match="no Linear, LSTM or GRU layer, and no Conv2d layer without groups"):
        sparsify(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), Static(sparsity=0.5))


def test_layers_whose_parameters_are_bf16_compute_in_bf16_under_autocast() -> None:
    model = sparsify(mlp(), Static(sparsity=0.5)).bfloat16()
    x, y = batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(x)
        F.cross_entropy(scores, y).backward()
    assert scores.dtype is torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype is torch.bfloat16 for p in model.parameters())
