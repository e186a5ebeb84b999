"""Pretrained networks, compressed with a few samples: ``python -m benchmarks.pretrained --zoo DIR --json FILE``.

Every row is a process of its own: compress with calibration data, write, read back, measure on other data. Finished
rows are kept by a hash of the code that made them, so that a benchmark goes on where another ended; none is started
after ``--minutes``. The last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretrained_settings import SETTINGS, Setting, quick_settings
from benchmarks.rows import ROOT, Rows, code_hash, cpu_name
from gossamer.errors import DataError

_CODE = (
    *(
        f"gossamer/{part}/**/*.py"
        for part in ("coding", "drive", "encoding", "jit", "methods", "network", "runtime", "store")
    ),
    *("gossamer/api.py", "gossamer/measure/ledger.py"),
    *("benchmarks/zoo/*.py", "benchmarks/pretrained_worker.py"),
)


def asked(arguments: list[str], zoo: Path, *, quick: bool) -> dict[str, Any]:
    """The worker's answer.

    Raises:
        DataError: it failed; the last lines say why.
    """
    command = [sys.executable, "-m", "benchmarks.pretrained_worker", "--zoo", str(zoo), *arguments]
    if quick:
        command.append("--quick")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if done.returncode != 0:
        raise DataError(f"{' '.join(arguments)}: found exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise DataError(f"{' '.join(arguments)}: {found['error']}")
    return found


def measure(settings: tuple[Setting, ...], zoo: Path, *, quick: bool, minutes: float) -> dict[str, Any]:
    """All rows that can be started in time, one after the other."""
    end = time.monotonic() + 60 * minutes
    kept = Rows("pretrained_quick" if quick else "pretrained", code_hash(*_CODE))
    rows: list[dict[str, Any]] = []
    late: list[str] = []
    failed: dict[str, str] = {}
    for setting in settings:
        key, row = setting.key, f"{setting.key}-{setting.stamp}"
        if time.monotonic() > end and not kept.has(row):
            late.append(key)
            continue
        network = setting.network
        try:
            dense = kept.get(f"{network}-dense", lambda n=network: asked([n, "dense"], zoo, quick=quick))
            arguments = [setting.network, setting.method, setting.setting]
            found = kept.get(row, lambda a=arguments: asked(a, zoo, quick=quick))
        except DataError as error:
            failed[key] = str(error)
            print(f"{key}: {error}", flush=True)
            continue
        for metric, value in found["values"].items():
            same = {k: v for k, v in found.items() if k != "values"}
            rows.append(
                {
                    "network": setting.network,
                    "method": setting.method,
                    "setting": setting.setting,
                    "metric": metric,
                    "value": value,
                    "dense_value": dense["values"][metric],
                    **same,
                }
            )
            smaller = found["dense_bytes"] / found["file_bytes"]
            print(
                f"{setting.network} {setting.method} {setting.setting}: {metric} {value:.4g}, dense "
                f"{dense['values'][metric]:.4g}; {smaller:.1f}x smaller; {found['seconds']:.0f} s",
                flush=True,
            )
    for key in late:
        print(f"{key}: not started, {minutes:g} minutes were over", flush=True)
    return {"cpu": cpu_name(), "torch": torch.__version__, "rows": rows, "not_started": late, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder that fetch.sh has filled")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="the smallest networks, a few samples")
    parser.add_argument("--minutes", type=float, default=50.0, help="after which nothing is started")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose key contains it")
    given = parser.parse_args()
    if not given.zoo.is_dir():
        parser.error(f"--zoo: found no folder {given.zoo}, expected one")
    settings = quick_settings() if given.quick else SETTINGS
    settings = tuple(s for s in settings if given.only in s.key)
    found = measure(settings, given.zoo.absolute(), quick=given.quick, minutes=given.minutes)
    text = json.dumps(found)
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
