"""The page for users runs as it stands, and its commands have the options that it names."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import typer

from gossamer.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "sensitivity.md"


def test_all_examples_of_the_page_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert failed == 0
    assert tried >= 10


def test_options_of_the_page_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {name for p in commands["sensitivity"].params for name in p.opts} | {"--recipe"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8"))) <= known
