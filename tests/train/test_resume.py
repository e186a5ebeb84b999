"""A killed and resumed run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train.every_method import NAMES, every_method
from train.nets import batch, mlp, started, train_step

from gossamer.errors import DataError, FormatError, PlanError
from gossamer.store.state_file import read_state, write_state
from gossamer.train import SET, Checkpoint, RigL, SparseTraining, Sparsifier, Static, sparsify


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_at_any_step_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    def states(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> list[Any]:
        return [dict(model.state_dict()), optimizer.state_dict(), sparsifier.state_dict()]

    method = every_method(40, 3)[name]
    run = started(method)
    for step in range(16):
        if step in (5, 8, 9, 10):
            run[2].save(tmp_path / f"{step}.safetensors")
        train_step(run[0], run[1], step)
        run[2].step()
    for at in (5, 8, 9, 10):
        # Another seed: nothing of the start may matter.
        model = sparsify(mlp(seed=7), method)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        sparsifier = Sparsifier(model, optimizer, method)
        assert sparsifier.resume(tmp_path / f"{at}.safetensors") == at
        for step in range(at, 16):
            train_step(model, optimizer, step)
            sparsifier.step()
        assert same(states(model, optimizer, sparsifier), states(*run))


class Dropped(nn.Module):
    """With dropout, whose random numbers are PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def run_until(path: Path, steps: int, kill_at: int | None = None) -> dict[str, Any]:
    """Train, from the checkpoint if there is one; die at a step without a word."""
    torch.manual_seed(3)
    method = RigL(sparsity=0.8, steps=60, every=4)
    model = sparsify(Dropped(), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    checkpoint = Checkpoint(path, every=5, also={"scheduler": scheduler})
    sparsifier = Sparsifier(model, optimizer, method, checkpoint=checkpoint)
    done = sparsifier.resume(path) if path.exists() else 0
    for step in range(done, steps):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        sparsifier.step()
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "mine": sparsifier.state_dict()}


def test_a_run_killed_with_sigkill_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from train.test_resume import run_until; run_until(Path(sys.argv[1]), 40, kill_at=27)"
    )
    tests = str(Path(__file__).parents[1])
    died = subprocess.run([sys.executable, "-c", code, str(path), tests], check=False, env={**os.environ})
    assert died.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    resumed = run_until(path, 40)
    whole = run_until(tmp_path / "whole.safetensors", 40)
    assert resumed["mine"]["step"] == 40
    assert same(resumed, whole)


def test_states_of_all_sorts_come_back_as_they_were(tmp_path: Path) -> None:
    state = {
        "none": None,
        "numbers": [1, -2.5, True, float("inf"), 0.1],
        "betas": (0.9, 0.999),
        "by number": {0: {"x": torch.arange(3)}, 1: {}},
        "tensors": [torch.tensor(5.0), torch.zeros(0), torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([True])],
    }
    path = tmp_path / "state.safetensors"
    size = write_state(path, state)
    assert path.stat().st_size == size
    assert same(read_state(path), state)


def test_states_that_are_not_plain_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(DataError, match=r"state\.a\.b: found object"):
        write_state(path, {"a": {"b": object()}})
    with pytest.raises(DataError, match="key"):
        write_state(path, {"a": {(1, 2): 3}})
    assert not path.exists()
    write_state(path, {"a": torch.arange(100.0)})
    good = path.read_bytes()
    for at in range(0, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(FormatError):
            read_state(path)
    path.write_bytes(good[:-7])
    with pytest.raises(FormatError):
        read_state(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_state(tmp_path / "none.safetensors")


def test_a_state_of_another_network_is_refused() -> None:
    method: SparseTraining = RigL(sparsity=0.8, steps=100, every=5)
    _, _, first = started(method)
    model = sparsify(nn.Sequential(nn.Linear(20, 30)), method)
    other = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), method)
    with pytest.raises(DataError, match="expected"):
        other.load_state_dict(first.state_dict())
    _, _, moved = started(every_method(100, 1)["movement"])
    state = moved.state_dict()
    state["layers"]["0"]["memory"]["summed"] = torch.zeros(3)
    with pytest.raises(DataError, match="load the network's state first"):
        moved.load_state_dict(state)


@pytest.mark.parametrize("changed", ["method", "sparsity", "optimiser"])
def test_a_run_of_another_kind_does_not_go_on_and_nothing_is_loaded(changed: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    method = RigL(sparsity=0.8, steps=100, every=5)
    started(method)[2].save(path)
    other: SparseTraining = SET(sparsity=0.8, steps=100, every=5) if changed == "method" else method
    if changed == "sparsity":
        other = RigL(sparsity=0.7, steps=100, every=5)
    model = sparsify(mlp(), other)
    optimizer = torch.optim.RMSprop(model.parameters(), 0.1) if changed == "optimiser" else started(method)[1]
    if changed != "optimiser":
        optimizer = type(optimizer)(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="optimizer: found settings" if changed == "optimiser" else "RigL at 0.8"):
        sparsifier.resume(path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_checkpoint_needs_a_folder_and_steps(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="folder"):
        Checkpoint(tmp_path / "none" / "x.safetensors")
    with pytest.raises(PlanError, match="every"):
        Checkpoint(tmp_path / "x.safetensors", every=0)
    model = sparsify(mlp(), Static(sparsity=0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plain = Sparsifier(model, optimizer, Static(sparsity=0.5))
    plain.save(tmp_path / "x.safetensors")
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    kept = Checkpoint(tmp_path / "y.safetensors", also={"scheduler": scheduler})
    with pytest.raises(DataError, match="scheduler"):
        Sparsifier(model, optimizer, Static(sparsity=0.5), checkpoint=kept).resume(tmp_path / "x.safetensors")
