"""The page of value compression runs as it stands."""

from __future__ import annotations

import doctest
from pathlib import Path


def test_the_examples_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "coding.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 10
    assert not found.failed
