"""Finished rows are kept beside a hash of the code that made them, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gossamer.jit.cpu import processor_name

__all__ = ["Rows", "code_hash", "cpu_name"]

ROOT = Path(__file__).parent.parent


def code_hash(*patterns: str) -> str:
    """Hash of all files that match, with their names, and of torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    files = sorted({f for p in patterns for f in ROOT.glob(p) if f.is_file()})
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cpu_name() -> str:
    """Model name of the processor, with the number of cores."""
    return f"{processor_name()}, {os.cpu_count()} cores"


class Rows:
    """Rows of one benchmark, each a JSON file of its own, written when it is finished."""

    def __init__(self, name: str, code: str) -> None:
        self.folder = ROOT / "benchmarks" / "out" / name / code
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        """Whether a row is finished."""
        return (self.folder / f"{key}.json").is_file()

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of that key: read, or made and kept."""
        file = self.folder / f"{key}.json"
        if not file.is_file():
            row = make()
            part = file.with_suffix(".part")
            part.write_text(json.dumps(row), encoding="utf-8")
            part.replace(file)
        loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return loaded
