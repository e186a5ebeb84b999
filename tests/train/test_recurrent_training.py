"""Networks with LSTM and GRU layers in sparse training: from dense ones, through updates, back to encodings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train.every_method import NAMES, every_method

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.nn import SparseGRU, SparseLSTM
from gossamer.train import Checkpoint, Developmental, RigL, Sparsifier, Static, harvest, sparse_layers, sparsify
from gossamer.train.allocation import Uniform


class Reader(nn.Module):
    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(12, 16, 1, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.rnn(x)[0][:, -1])
        return made


def reader(kind: Any = nn.LSTM, seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    return Reader(kind)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    x = torch.randn(16, 5, 12, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), x.sum(1)[:, :8].argmax(1))
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("name", NAMES)
def test_every_method_moves_live_weights_and_keeps_their_number(name: str) -> None:
    method = every_method(40, 3)[name]
    model = sparsify(reader(), method)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sparsifier = Sparsifier(model, optimizer, method)
    start = {n: layer.topology.positions.clone() for n, layer in sparse_layers(model).items()}
    assert "rnn.weight_hh_l0_reverse" in start and isinstance(model.rnn, SparseLSTM)
    losses = [float(train_step(model, optimizer, 0))]
    for step in range(1, 13):
        sparsifier.step(train_step(model, optimizer, step))
    assert torch.isfinite(train_step(model, optimizer, 13)) and losses
    layers = sparse_layers(model)
    if method.parts().keeps_counts and method.parts().exploration is None:
        assert all(layers[n].topology.live == len(p) for n, p in start.items())
    moved = [n for n, p in start.items() if not torch.equal(layers[n].topology.positions, p)]
    assert bool(moved) == (method.parts().schedule.every < 12 and name != "static")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_harvest_is_exact_is_saved_loaded_inspected_and_run(kind: Any, tmp_path: Path) -> None:
    method = RigL(sparsity=0.8, steps=40, every=3)
    model = sparsify(reader(kind), method)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sparsifier = Sparsifier(model, optimizer, method)
    for step in range(8):
        train_step(model, optimizer, step)
        sparsifier.step()
    small = harvest(model, method)
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=lambda: Reader(kind))
    x = torch.randn(3, 5, 12)
    for dense in (small.dense(), again.dense()):
        for name, layer in sparse_layers(model).items():
            key = name if name.startswith("rnn") else f"{name}.weight"
            assert torch.equal(dense.get_parameter(key), layer.dense_weight())
        torch.testing.assert_close(dense(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.lower(x)(x), model(x), rtol=1e-4, atol=1e-5)
    assert again.ledger().ratio > 1


def test_a_killed_and_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    method = RigL(sparsity=0.8, steps=40, every=3)
    path = tmp_path / "state.safetensors"

    def begun(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
        model = sparsify(reader(seed=seed), method)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        return model, optimizer, Sparsifier(model, optimizer, method, checkpoint=Checkpoint(path, every=5))

    model, optimizer, sparsifier = begun(0)
    for step in range(9):
        sparsifier.step(train_step(model, optimizer, step))
    other, its_optimizer, its_sparsifier = begun(7)
    for step in range(its_sparsifier.resume(path), 9):
        train_step(other, its_optimizer, step)
        its_sparsifier.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_growth_alone_changes_no_output_bit() -> None:
    method = Developmental(sparsity=0.9, steps=100, every=1, start=1.0)
    model = sparsify(reader(), method)
    x = torch.randn(37, 5, 12)
    before, live = model(x), sum(layer.topology.live for layer in sparse_layers(model).values())
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparsifier = Sparsifier(model, optimizer, method)
    train_step(model, optimizer, 0)
    sparsifier.step()
    assert sum(layer.topology.live for layer in sparse_layers(model).values()) > live
    assert torch.equal(model(x), before)


def test_names_and_patterns_reach_single_weights_of_a_recurrent_layer() -> None:
    model = sparsify(reader(nn.GRU), Static(sparsity=0.8, only="rnn.weight_hh_l0*", allocation=Uniform()))
    assert isinstance(model.rnn, SparseGRU) and type(model.head) is nn.Linear
    live = {n: layer.topology.sparsity for n, layer in sparse_layers(model).items()}
    assert live["rnn.weight_ih_l0"] == 0 and live["rnn.weight_hh_l0"] == pytest.approx(0.8, abs=0.01)
    whole = sparsify(reader(), Static(sparsity=0.8, only="rnn"))
    assert all(layer.topology.sparsity > 0.5 for layer in sparse_layers(whole).values())
    left = sparsify(reader(), Static(sparsity=0.8, skip="rnn"))
    assert type(left.rnn) is nn.LSTM
    with pytest.raises(PlanError, match=r"only: found 'rnn.weight_hh_l1', .*expected one of rnn.weight_ih_l0"):
        sparsify(reader(), Static(sparsity=0.8, only="rnn.weight_hh_l1"))
    alone = sparsify(nn.LSTM(12, 16), Static(sparsity=0.5))
    assert isinstance(alone, SparseLSTM) and list(sparse_layers(alone)) == ["weight_ih_l0", "weight_hh_l0"]
    assert harvest(alone).dense()(torch.randn(2, 3, 12))[0].shape == (2, 3, 16)


def test_training_starts_from_a_pruning_method_gate_by_gate() -> None:
    dense = reader()
    model = sparsify(copy.deepcopy(dense), gs.prune.Magnitude(sparsity=0.75))
    assert isinstance(model.rnn, SparseLSTM)
    layer = sparse_layers(model)["rnn.weight_hh_l0"]
    assert layer.topology.sparsity == pytest.approx(0.75, abs=0.01)
    weight = dense.rnn.weight_hh_l0
    assert torch.equal(layer.dense_weight(), weight * layer.topology.mask())


def test_frozen_and_projected_recurrent_layers_stay_dense() -> None:
    with pytest.raises(PlanError, match=r"rnn\.weight_ih_l0: it is frozen"):
        model = reader()
        model.rnn.requires_grad_(False)
        sparsify(model, Static(sparsity=0.8, only="rnn"))
    with pytest.raises(PlanError, match="no Linear, LSTM or GRU layer"):
        sparsify(nn.Sequential(nn.LSTM(12, 16, proj_size=4)), Static(sparsity=0.8))
