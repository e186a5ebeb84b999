"""``python -m gossamer``, the same as ``gossamer``."""

from gossamer.cli.main import run

if __name__ == "__main__":
    run()
