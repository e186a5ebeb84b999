"""Outputs on disk are taken up again from where the shelf itself put them, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

import gossamer as gs
from gossamer.drive.shelf import Shelf


def test_a_journal_does_not_choose_the_file(tmp_path: Path) -> None:
    outside = tmp_path / "mine"
    outside.write_bytes(b"")
    shelf = Shelf(0, tmp_path / "run")
    with pytest.raises(gs.FormatError, match=r"found outputs in '\.\./mine', expected 'outputs-0001\.bin'"):
        shelf.restore(1, {"file": "../mine", "size": 0, "crc": 0, "samples": []})
    assert outside.exists()
