"""``python -m gossamer``, the same as ``gossamer``."""

from gossamer.cli.main import run

run()
