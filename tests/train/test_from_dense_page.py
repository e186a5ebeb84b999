"""The page of the methods with a dense phase runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import gossamer.train.from_dense as methods
from gossamer.nn import SparseLinear

PAGE = (Path(__file__).parents[2] / "docs" / "from-dense.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/from-dense.md", "exec"), names)
    assert sum(int((p != 0).sum()) for p in names["small"].dense().parameters() if p.dim() == 2) == 947
    assert any(isinstance(m, SparseLinear) for m in names["sparse"].modules())


def test_every_method_is_on_the_page() -> None:
    kinds = [n for n in methods.__all__ if isinstance(getattr(methods, n), type)]
    kinds = [n for n in kinds if issubclass(getattr(methods, n), methods.DenseMethod)]
    assert len(kinds) > 6
    for name in [*kinds, "ACDC", "DSD", "LotteryTicket"]:
        assert name in ("DenseMethod", "Phases") or f"`{name}" in PAGE
