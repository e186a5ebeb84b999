"""The page about robustness runs as it stands, and names every attack and corruption."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gossamer.measure import Corruption

PAGE = (Path(__file__).parents[3] / "docs" / "robustness.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/robustness.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert int((names["masked"].dense()[0].weight != 0).sum()) == 20
    assert int((names["pruned"].dense()[3].weight != 0).sum()) <= 512


def test_every_corruption_is_on_the_page() -> None:
    text = PAGE.lower()
    for kind in Corruption:
        stem = kind.value.split()[0][:7]
        assert stem in text, kind
