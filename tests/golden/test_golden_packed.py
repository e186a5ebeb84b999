"""Files packed long ago are unpacked for ever, and the same tensors are packed to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.make_packed import HERE, NAMES, VERSION, dense, fine_tuned, made, main

import gossamer as gs
from gossamer.coding import Coder
from gossamer.coding.difference import Difference
from gossamer.store.packed_file import PackedFile


def test_golden_packed_files_are_unpacked_to_the_bytes_of_their_day(tmp_path: Path) -> None:
    for name, make in (("packed", dense), ("difference", fine_tuned)):
        gs.unpack(HERE / f"{name}.v1.packed", tmp_path / "back", reference=dense(tmp_path))
        assert (tmp_path / "back").read_bytes() == make(tmp_path).read_bytes()
        (tmp_path / "back").unlink()


def test_golden_tensors_are_packed_to_the_golden_bytes(tmp_path: Path) -> None:
    for name, path in made(tmp_path).items():
        assert path.read_bytes() == (HERE / f"{name}.v{VERSION}.packed").read_bytes(), name


def test_golden_packed_files_are_small_and_hold_every_way_of_coding(tmp_path: Path) -> None:
    base = dense(tmp_path)
    entries = []
    for name in NAMES:
        path = HERE / f"{name}.v1.packed"
        assert path.stat().st_size <= 8192
        entries += [piece.entry for piece in PackedFile(path, base).pieces]
    assert {entry.difference for entry in entries} == set(Difference)
    assert {entry.symbols for entry in entries} == {False, True}
    assert {Coder.RAW, Coder.CONSTANT, Coder.FLOAT_PLANES} < {entry.coder for entry in entries}
    assert {Coder.BLOCKS, Coder.FLOAT_BLOCKS, Coder.FLOAT_SPARSE} & {entry.coder for entry in entries}


def test_the_script_of_packed_files_refuses_to_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in HERE.glob("*.packed")}
    assert main() == 1
    assert "never overwritten" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in HERE.glob("*.packed")} == before
