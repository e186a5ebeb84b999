"""The page for users runs as it stands, and its command has the options that it names."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import typer

from gossamer.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


def test_all_examples_of_the_page_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert failed == 0
    assert tried >= 10


def test_options_of_the_page_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    report = commands["report"]
    known = {name for p in report.params for name in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8"))) <= known


def test_without_jinja_there_is_one_line() -> None:
    code = "import sys; sys.modules['jinja2'] = None; from gossamer.cli.main import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, "report", "none.gsm", "-o", "none.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "gossamer: found no jinja2, expected pip install 'gossamer[report]' for reports"
    ]
