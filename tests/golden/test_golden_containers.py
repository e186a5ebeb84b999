"""Containers written long ago are read for ever, and the same trees are written to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contract.test_every_encoding import same_bits, same_trees
from golden.make import GOLDEN, HERE, VERSIONS, golden, main, specs_of

from gossamer.encoding.serial import KINDS
from gossamer.store import read_container, write_container

_SUMMED = ("predicted",)
"""Products of factors that are no short binary fractions: processors add them up in orders of their own."""

every = pytest.mark.parametrize("name", GOLDEN)


@every
def test_golden_files_are_read_to_the_tensors_of_their_day(name: str) -> None:
    found = read_container(golden(name))
    expected = safetensors.torch.load_file(golden(name, "safetensors"))
    assert found.trees.keys() == expected.keys()
    for tensor, dense in expected.items():
        now = found.trees[tensor].to_dense()
        if tensor in _SUMMED:
            torch.testing.assert_close(now, dense, rtol=1e-6, atol=1e-6)
        else:
            assert same_bits(now, dense), tensor
    assert found.notes == {"made by": "tests/golden/make.py"}


@every
def test_golden_trees_are_written_to_the_golden_bytes(name: str, tmp_path: Path) -> None:
    trees = GOLDEN[name]()
    notes = {"made by": "tests/golden/make.py"}
    write_container(tmp_path / "now.gsm", specs_of(trees), trees, notes)
    assert (tmp_path / "now.gsm").read_bytes() == golden(name).read_bytes()
    assert same_trees(dict(read_container(golden(name)).trees), trees)


@every
def test_golden_files_have_the_version_that_their_names_say(name: str) -> None:
    metadata = json.loads(golden(name).read_bytes()[8:].split(b"}", 1)[0].split(b":", 1)[1] + b"}")
    assert metadata["gossamer"].split()[0] == str(VERSIONS.get(name, 1))


@every
def test_golden_files_are_small(name: str) -> None:
    assert golden(name).stat().st_size <= 3072


def test_golden_files_hold_every_kind_but_references() -> None:
    seen = {
        type(node).__name__
        for name in GOLDEN
        for tree in read_container(golden(name)).trees.values()
        for _, node in tree.nodes()
    }
    # Differences to another checkpoint stand for nothing without it: tests/methods/test_delta.py.
    assert seen == set(KINDS) - {"Ref", "Delta", "External"}


def test_the_script_refuses_to_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in HERE.glob("*.gsm")}
    assert main() == 1
    assert "never overwritten" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in HERE.glob("*.gsm")} == before
