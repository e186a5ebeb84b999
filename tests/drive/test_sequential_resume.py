"""A run that is killed goes on where it was, and ends with the very same file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import PlanError
from tests.drive.sequential_parts import Chain, Coded, Damp, Tied, Whole

NETWORKS: dict[str, tuple[type[nn.Module], type[Damp]]] = {
    "chain": (Chain, Whole),
    "tied": (Tied, Damp),
    "coded": (Coded, Damp),
}


def made(name: str) -> tuple[nn.Module, list[Any], list[Any]]:
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    if name == "coded":
        data: list[Any] = [((torch.randn(2, 5, 4), torch.randn(2, n, 4)), None) for n in (3, 4)]
    else:
        data = [torch.randint(0, 11, (2, n)) for n in (5, 7)]
    entry = gs.BlockByBlock(methods=(NETWORKS[name][1](), gs.quantize.RoundToNearest(bits=8)))
    return network, data, [entry]


class Killer:
    """Ends the process, as nothing else can, at the n-th report of progress."""

    def __init__(self, at: int) -> None:
        self.left = at

    def update(self, text: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(name: str, folder: str, out: str, at: str) -> None:
    torch.set_num_threads(1)
    network, data, recipe = made(name)
    small = gs.compress(
        network, recipe, data=data, progress=Killer(int(at)), checkpoint=folder, resume=Path(folder).exists()
    )
    small.save(out)


@pytest.mark.parametrize("name", ["chain", "coded"])
def test_a_killed_run_ends_with_the_same_file(name: str, tmp_path: Path) -> None:
    network, data, recipe = made(name)
    gs.compress(network, recipe, data=data, checkpoint=tmp_path / "whole").save(tmp_path / "whole.gsm")
    code = f"from tests.drive.test_sequential_resume import main; main({name!r}, *__import__('sys').argv[1:])"
    kills = 0
    for at in (10, 4, 10_000):
        arguments = [
            sys.executable,
            "-W",
            "error",
            "-c",
            code,
            str(tmp_path / "part"),
            str(tmp_path / "part.gsm"),
            str(at),
        ]
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        if done.returncode == 0:
            break
    assert kills >= 2
    assert (tmp_path / "part.gsm").read_bytes() == (tmp_path / "whole.gsm").read_bytes()


class Stop(Exception):
    pass


class Stopper(Killer):
    def update(self, text: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


def interrupted(name: str, folder: Path, at: int) -> None:
    network, data, recipe = made(name)
    with pytest.raises(Stop):
        gs.compress(network, recipe, data=data, progress=Stopper(at), checkpoint=folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_wherever_a_run_is_stopped_it_ends_the_same(name: str, tmp_path: Path) -> None:
    network, data, recipe = made(name)
    whole = gs.compress(network, recipe, data=data, checkpoint=tmp_path / "whole")
    whole.save(tmp_path / "whole.gsm")
    for at in range(1, 16, 3):
        folder = tmp_path / f"part{at}"
        interrupted(name, folder, at)
        again = gs.compress(network, recipe, data=data, checkpoint=folder, resume=True)
        again.save(tmp_path / "again.gsm")
        assert (again.notes["plan"], again.skipped) == (whole.notes["plan"], whole.skipped)
        assert (tmp_path / "again.gsm").read_bytes() == (tmp_path / "whole.gsm").read_bytes(), at
        assert not list(folder.rglob("outputs-*.bin"))


def test_what_was_finished_is_not_done_again(tmp_path: Path) -> None:
    network, data, recipe = made("tied")
    gs.compress(network, recipe, data=data, checkpoint=tmp_path / "run")
    Damp.given.clear()
    gs.compress(network, recipe, data=data, checkpoint=tmp_path / "run", resume=True)
    assert not Damp.given


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    interrupted("tied", tmp_path / "run", 8)
    network, data, recipe = made("tied")
    folder = tmp_path / "run"
    with pytest.raises(PlanError, match="found a run, expected none"):
        gs.compress(network, recipe, data=data, checkpoint=folder)
    with pytest.raises(PlanError, match="another recipe"):
        gs.compress(network, [gs.BlockByBlock(methods=(Damp(),))], data=data, checkpoint=folder, resume=True)
    with pytest.raises(PlanError, match="another data"):
        gs.compress(network, recipe, data=data[:1], checkpoint=folder, resume=True)
    with pytest.raises(PlanError, match="another loss"):
        gs.compress(network, recipe, data=data, checkpoint=folder, resume=True, loss=nn.functional.mse_loss)
    with torch.no_grad():
        network.get_parameter("layers.0.up.weight")[0, 0] += 1
    with pytest.raises(PlanError, match="another network"):
        gs.compress(network, recipe, data=data, checkpoint=folder, resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    interrupted("coded", tmp_path / "run", 9)
    outputs = next((tmp_path / "run").rglob("outputs-*.bin"))
    raw = bytearray(outputs.read_bytes())
    raw[5] ^= 1
    outputs.write_bytes(raw)
    network, data, recipe = made("coded")
    with pytest.raises(gs.FormatError, match=r"outputs-.*found checksum"):
        gs.compress(network, recipe, data=data, checkpoint=tmp_path / "run", resume=True)


def test_what_a_run_without_journal_left_is_not_used(tmp_path: Path) -> None:
    interrupted("coded", tmp_path / "run", 9)
    (tmp_path / "run" / "entry-1" / "journal").unlink()
    network, data, recipe = made("coded")
    again = gs.compress(network, recipe, data=data, checkpoint=tmp_path / "run", resume=True)
    once = gs.compress(network, recipe, data=data)
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.filterwarnings("ignore:.*rows for the Gram matrix")
def test_layers_that_saw_too_few_rows_are_named_by_the_run_that_goes_on_too(tmp_path: Path) -> None:
    network, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), [torch.randn(2, 8)]
    recipe = [gs.BlockByBlock(methods=(Damp(),))]
    short = gs.compress(network, recipe, data=data).notes["plan"][0]["rows_below_inputs"]
    assert set(short) == {"0.weight", "2.weight"}
    found = []
    for at in (2, 3):
        with pytest.raises(Stop):
            gs.compress(network, recipe, data=data, progress=Stopper(at), checkpoint=tmp_path / str(at))
        again = gs.compress(network, recipe, data=data, checkpoint=tmp_path / str(at), resume=True)
        found.append(again.notes["plan"][0]["rows_below_inputs"])
    assert found == [short] * 2
