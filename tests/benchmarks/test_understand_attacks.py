"""The race runs on a saved network, without the peer too, and reads what a peer says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.understand_attacks import peer_python, raced, saved
from gossamer.measure import FGSM, robustness


def _example(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Path]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()
    x = torch.rand(12, 1, 10, 10)
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, saved(model, x[:2], tmp_path / "network.ts")


def test_the_saved_network_is_attacked_like_the_module(tmp_path: Path) -> None:
    model, x, y, file = _example(tmp_path)
    race = raced(file, x, y, epsilons=[0.05], steps=2, queries=4, peer=tmp_path / "missing")
    assert race["peer"] is None
    assert [r["attack"] for r in race["rows"]] == ["FGSM", "PGD", "APGD-CE", "APGD-DLR", "APGD-T", "Square", "worst"]
    alone = robustness(model, x, y, epsilons=[0.05], attacks=[FGSM()]).accuracy("FGSM", 0.05)
    assert race["rows"][0]["ours"] == alone
    assert race["within"]


def test_what_the_peer_says_is_put_beside_ours(tmp_path: Path) -> None:
    _, x, y, file = _example(tmp_path)
    peer = tmp_path / "peer"
    row = '{"attack": "FGSM", "epsilon": 0.05, "accuracy": -0.1, "seconds": 1.5}'
    peer.write_text(
        f"#!{sys.executable}\nprint('a line of chatter')\nprint('{row}')\nprint('{{\"version\": \"9\"}}')\n"
    )
    peer.chmod(0o755)
    race = raced(file, x, y, epsilons=[0.05], steps=2, queries=4, peer=peer)
    assert race["peer"] == "9"
    assert race["rows"][0]["theirs"] == -0.1
    assert race["rows"][0]["their_seconds"] == 1.5
    assert not race["within"]


@pytest.mark.skipif(peer_python() is None, reason="no torchattacks here")
def test_the_real_peer_answers(tmp_path: Path) -> None:
    _, x, y, file = _example(tmp_path)
    race = raced(file, x, y, epsilons=[0.05], steps=2, queries=4)
    assert all(r["theirs"] is not None for r in race["rows"])
