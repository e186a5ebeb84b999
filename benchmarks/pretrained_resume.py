"""How long a killed run takes to go on: ``python -m benchmarks.pretrained_resume --zoo DIR --json FILE``.

A run over SmolLM2 block by block is ended by SIGKILL in the middle of a block, a third of the way through, and started
again with ``resume=True``: what is timed is from the call of `compress` to the first samples in the interrupted block.
The last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.pretrained_settings import SETTINGS
from benchmarks.rows import ROOT, cpu_name
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.pretrained import PRETRAINED
from gossamer.api import compress

__all__ = ["killed_and_resumed"]

_TITLE = "block by block"
_KILLED_AT = 1 / 3


class Told:
    """Progress as lines of JSON: seconds since the start, text, done, total."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def update(self, text: str, done: int, total: int) -> None:
        """A line."""
        print(json.dumps([time.perf_counter() - self._start, text, done, total]), flush=True)


def run(zoo: Path, key: str, checkpoint: Path) -> None:
    """In a process of its own: one setting's recipe with a checkpoint, going on with what is there."""
    setting = next(s for s in SETTINGS if s.key == key)
    subject = PRETRAINED[setting.network](Zoo(zoo, ROOT / "benchmarks" / "out" / "zoo", quick=False))
    network, data = subject.dense(), subject.calibration(setting.samples)
    compress(network, setting.recipe, data=data, loss=subject.loss, progress=Told(), checkpoint=checkpoint, resume=True)


def killed_and_resumed(zoo: Path, key: str) -> dict[str, Any]:
    """Start, kill at a third, start again, kill when it goes on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.pretrained_resume", "--zoo", str(zoo), "--run", key]
        command += ["--checkpoint", folder]
        before = _until(command, lambda done, total: done >= _KILLED_AT * total)
        after = _until(command, lambda done, total: True)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {
        "setting": key,
        "killed_after_seconds": round(before[0], 2),
        "killed_at": round(before[1] / before[2], 3),
        "resumed_at": round(after[1] / after[2], 3),
        "resume_seconds": round(after[0], 2),
        "checkpoint_bytes": size,
    }


def _until(command: list[str], reached: Any) -> tuple[float, int, int]:
    """Run until progress is as wanted, then SIGKILL.

    Returns:
        seconds since the call of `compress`, done, total.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                seconds, text, done, total = json.loads(line)
                if text == _TITLE and reached(done, total):
                    return seconds, done, total
        finally:
            os.kill(process.pid, signal.SIGKILL)
    raise RuntimeError(f"{' '.join(command)}: ended before it was to be killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder that fetch.sh has filled")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.zoo, given.run, given.checkpoint)
        return
    found = {"cpu": cpu_name(), "resumed": killed_and_resumed(given.zoo.absolute(), "smollm2-rotated-gptq-4-bit_g128")}
    text = json.dumps(found)
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
