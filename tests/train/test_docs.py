"""The page for users runs as it stands, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train.nets import batch, mlp

import gossamer as gs

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_all_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    loader = [batch(i) for i in range(140)]
    names: dict[str, Any] = {"torch": torch, "F": F, "Path": Path, "model": mlp(), "epochs": 5, "loader": loader}
    for block in blocks:
        if "scheduler" in block:
            names["scheduler"] = torch.optim.lr_scheduler.ConstantLR(names["optimizer"])
        exec(block, names)
    assert float(names["loss"].detach()) < 1.6  # ln 8 = 2.08 by chance
    assert (tmp_path / "model.gsm").stat().st_size < 4_000
    assert isinstance(names["small"].dense(), nn.Module)


def test_the_table_lists_every_method() -> None:
    methods = {name for name, found in vars(gs.train).items() if isinstance(found, type)}
    methods = {n for n in methods if issubclass(getattr(gs.train, n), gs.train.SparseTraining)}
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert listed == methods - {"SparseTraining", "PruneAndGrow"}
