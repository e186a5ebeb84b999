"""`gossamer pack` and `gossamer unpack`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.test_commands import call, refused
from store.dense import weights, write_dense


@pytest.fixture
def files(tmp_path: Path) -> Path:
    x = weights(0, 200, 300)
    write_dense(tmp_path / "base.safetensors", {"w": ("F32", [200, 300], x.tobytes())})
    y = x.copy()
    y[3] += 1
    write_dense(tmp_path / "a.safetensors", {"w": ("F32", [200, 300], y.tobytes()), "n": ("I64", [1], bytes(8))})
    return tmp_path


def test_pack_and_unpack_give_back_the_file_and_say_in_json_what_they_did(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, packed, back = files / "a.safetensors", files / "a.packed", files / "b.safetensors"
    assert call("pack", dense, packed, "--json", files / "made.json") == 0
    assert "smaller than" in capsys.readouterr().out
    assert call("unpack", packed, back, "--json", files / "read.json") == 0
    assert back.read_bytes() == dense.read_bytes()
    made, read = (json.loads((files / n).read_text(encoding="utf-8")) for n in ("made.json", "read.json"))
    assert made["dense_bytes"] == read["dense_bytes"] == dense.stat().st_size
    assert made["packed_bytes"] == read["packed_bytes"] == packed.stat().st_size
    assert made["ratio"] == read["ratio"] == pytest.approx(dense.stat().st_size / packed.stat().st_size)
    assert made["seconds"] > 0
    units = {tuple(u["tensors"]): u for u in made["files"]["a.safetensors"]}
    assert set(units) == {("w",), ("n",)}
    assert units[("w",)]["dtype"] == "F32"
    assert units[("w",)]["differences"] == ["none"]
    assert units[("n",)]["coders"] == ["CONSTANT"]


def test_a_reference_is_taken_and_asked_for_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, packed, back = files / "a.safetensors", files / "a.packed", files / "b.safetensors"
    arguments = ("--reference", files / "base.safetensors", "--threads", 1, "-q")
    assert call("pack", dense, packed, *arguments) == 0
    assert packed.stat().st_size < 5000
    assert "base.safetensors" in refused(capsys, "unpack", packed, back)
    assert "expected the reference of" in refused(capsys, "unpack", packed, back, "--reference", dense)
    assert call("unpack", packed, back, *arguments) == 0
    assert back.read_bytes() == dense.read_bytes()


def test_bad_input_is_one_line_and_exit_code_2(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, packed = files / "a.safetensors", files / "a.packed"
    assert call("pack", dense, packed) == 0
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in files.iterdir()}
    out = files / "out"
    (files / "empty").mkdir()
    for command, source, to, match in (
        ("pack", files / "missing", out, "cannot be read"),
        ("pack", packed.parent / "empty", out, "a folder with weights"),
        ("pack", dense, packed, "nothing is overwritten"),
        ("pack", dense, dense, "nothing is overwritten"),
        ("pack", dense, files / "no" / "where", "found no folder"),
        ("unpack", files / "missing", out, "cannot be read"),
        ("unpack", dense, out, "no seal of a packed file"),
        ("unpack", files / "empty", out, "gossamer pack wrote"),
        ("unpack", packed, dense, "nothing is overwritten"),
    ):
        assert match in refused(capsys, command, source, to)
    assert "own name" in refused(capsys, "pack", dense, out, "--json", dense)
    assert "cannot be read" in refused(capsys, "pack", dense, out, "--reference", files / "missing")
    assert "a.packed" in refused(capsys, "unpack", cut(packed, 700), out)
    packed.write_bytes(before["a.packed"])
    assert "expected at most" in refused(capsys, "pack", cut(dense, 60), out)
    dense.write_bytes(before["a.safetensors"])
    (files / "empty").rmdir()
    assert {p.name: p.read_bytes() for p in files.iterdir()} == before


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_json_may_lie_in_the_folder_that_the_command_makes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files / "folder"
    folder.mkdir()
    (files / "a.safetensors").rename(folder / "a.safetensors")
    assert call("pack", folder, files / "packed", "--json", files / "packed" / "made.json") == 0
    assert call("pack", folder, files / "plain") == 0
    assert call("unpack", files / "plain", files / "back", "--json", files / "back" / "read.json") == 0
    assert (files / "packed" / "made.json").is_file()
    assert (files / "back" / "read.json").is_file()
    capsys.readouterr()
    assert "found a folder" in refused(capsys, "pack", folder, files / "again", "--json", files)
    assert not (files / "again").exists()
