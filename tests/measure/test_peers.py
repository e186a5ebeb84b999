"""Peers as processes: they answer, or say why they cannot."""

from __future__ import annotations

import importlib.util
import operator
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.errors import DataError
from gossamer.measure.onnx_file import Made, exported, found_onnx
from gossamer.measure.peers import PeerKind, peer_of, python_of, running

_FAKE = """#!{python}
import sys
assert sys.argv[1].endswith("peer_worker.py") and sys.argv[2] in {kinds!r} and sys.argv[4] == "1"
if sys.argv[2] == "deepsparse":
    sys.exit("no licence in this test")
print("Welcome to a peer that talks")
memory = '{{"network": 10, "runtime": 20, "process": 40}}'
print('{{"version": "1.2", "weight_bytes": 7, "resident_bytes": ' + memory + '}}', flush=True)
for line in sys.stdin:
    if line == "13\\n":
        sys.exit("it has died")
    print([0.5] * int(line), flush=True)
"""


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """Environments whose Python is a script that plays the worker."""
    for name in {kind.package for kind in PeerKind}:
        python = tmp_path / "peers" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(_FAKE.format(python=sys.executable, kinds=[kind.value for kind in PeerKind]))
        python.chmod(0o755)
    return tmp_path / "peers"


def test_a_peer_answers_as_many_times_as_it_is_asked(peers: Path, tmp_path: Path) -> None:
    with peer_of(PeerKind.OPENVINO, peers, tmp_path / "network.onnx", 1) as peer:
        assert (peer.version, peer.weight_bytes, peer.resident_bytes["network"]) == ("1.2", 7, 10)
        assert peer.run(3) == [0.5, 0.5, 0.5]
        assert peer.run(1) == [0.5]


def test_a_peer_that_dies_says_why(peers: Path, tmp_path: Path) -> None:
    with (
        peer_of(PeerKind.OPENVINO, peers, tmp_path / "network.onnx", 1) as peer,
        pytest.raises(DataError, match="it has died"),
    ):
        peer.run(13)


def test_a_peer_that_does_not_start_is_reported_and_the_others_run(peers: Path, tmp_path: Path) -> None:
    with running(PeerKind, peers, tmp_path / "network.onnx", 1) as (started, missing):
        assert set(started) == set(PeerKind) - {PeerKind.DEEPSPARSE}
        assert missing == {PeerKind.DEEPSPARSE: "no licence in this test"}


def test_without_a_file_or_an_environment_every_peer_is_reported(tmp_path: Path) -> None:
    with running(PeerKind, tmp_path, "no file", 1) as (started, missing):
        assert not started and set(missing.values()) == {"no file"}
    with running(PeerKind, tmp_path, tmp_path / "network.onnx", 1) as (started, missing):
        assert not started and set(missing.values()) == {"not installed"}


@pytest.mark.skipif(importlib.util.find_spec("deepsparse") is not None, reason="it is installed here")
def test_in_the_current_environment_a_missing_package_is_named() -> None:
    with pytest.raises(DataError, match="not installed here"):
        python_of(PeerKind.DEEPSPARSE, None)


def _tiny() -> Made:
    return nn.Linear(3, 2).eval(), (torch.randn(1, 3),)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="it is installed here")
def test_without_the_package_onnx_the_export_says_what_to_install(tmp_path: Path) -> None:
    assert "gossamer[peers]" in str(found_onnx(None))
    assert "gossamer[peers]" in str(exported(_tiny, tmp_path, tmp_path))


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime/lib/python3.12/site-packages/onnx").mkdir(parents=True)
    made = exported(partial(operator.truediv, 1, 0), tmp_path, tmp_path)  # type: ignore[arg-type]
    assert made == "export failed: ZeroDivisionError: division by zero"
    assert "export failed" in str(exported(lambda: _tiny(), tmp_path, tmp_path))  # noqa: PLW0108 - cannot be pickled
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnxruntime"]
