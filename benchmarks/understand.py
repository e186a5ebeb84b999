"""See what compression did: ``python -m benchmarks.understand --data DIR --json FILE``, DIR with Fashion-MNIST.

Description length, robustness, exemplars and variance of gradients of two networks, dense and compressed in seven ways,
over five seeds. Every task is a process of its own on one core, two at a time. Finished rows are kept by a hash of the
code that made them, so that a run goes on where another ended; none is started after ``--minutes``. A missing peer is
reported, not fatal. The last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import ROOT, Rows, code_hash, cpu_name
from benchmarks.understand_networks import NETWORKS, VARIANTS
from benchmarks.understand_worker import CODE_OF_DENSE, CODE_OF_FILES, POPULATION, SEEDS
from gossamer.errors import DataError

__all__ = ["main", "tasks"]

_MEASURES = ("gossamer/measure/**/*.py", "benchmarks/understand_worker.py")
_CODERS = ("gossamer/coding/*.py", "gossamer/encoding/*.py", "gossamer/store/*.py")
_RACED = (
    "benchmarks/understand_attacks.py",
    "benchmarks/understand_attacks_worker.py",
    "benchmarks/understand_race.py",
)
_REPORTED = ("gossamer/report/*", "benchmarks/understand_page.py", "benchmarks/understand_report.py")
# What is compressed is read back from a file that the coders at hand wrote.
_OF_DENSE, _OF_FILES = (*CODE_OF_DENSE, *_MEASURES), (*CODE_OF_FILES, *_MEASURES)
_OF_BYTES = (*_OF_FILES, *_CODERS)
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2147483648", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""glibc keeps freed memory; else every activation is mapped, touched and given back, page by page."""


@dataclass(frozen=True)
class Task:
    """What one process does.

    Args:
        key: as the worker knows it.
        code: files that decide the row.
        after: keys of tasks that must be finished.
        module: of the worker.
    """

    key: str
    code: tuple[str, ...] = field(repr=False)
    after: tuple[str, ...] = ()
    module: str = "understand_worker"


def tasks(*, quick: bool) -> list[Task]:
    """All tasks, those first that others wait for."""
    seeds, population = (1, 2) if quick else (SEEDS, POPULATION)
    names = [n.name for n in (NETWORKS[:1] if quick else NETWORKS)]
    made: list[Task] = []
    for name in names:
        dense = 2 * population if name == "LeNet-5" else seeds
        made += [Task(f"dense/{name}/{seed}", CODE_OF_DENSE) for seed in range(dense)]
        for variant in VARIANTS[1:]:
            count = population if name == "LeNet-5" and variant.endswith("sparse") else seeds
            made += [
                Task(f"file/{name}/{seed}/{variant}", CODE_OF_FILES, (f"dense/{name}/{seed}",)) for seed in range(count)
            ]
    made += [Task(f"vog/{name}/{s}", _OF_DENSE, (f"dense/{name}/{s}",)) for name in names for s in range(seeds)]
    for seed in range(seeds):  # so that what is not finished in time lacks seeds, not variants
        for kind, code in (("accounted", _OF_BYTES), ("attacked", _OF_FILES)):
            for name in names:
                for variant in VARIANTS:
                    before = "dense/{}/{}" if variant == "dense" else "file/{}/{}/" + variant
                    made.append(Task(f"{kind}/{name}/{seed}/{variant}", code, (before.format(name, seed),)))
    for seed in range(1 if quick else 3):
        made.append(Task(f"prequential/LeNet-5/{seed}", _OF_DENSE))
    for seed in range(seeds):
        before = tuple(f"file/LeNet-5/{seed}/{variant}" for variant in VARIANTS[1:])
        made.append(Task(f"search/LeNet-5/{seed}", (*_OF_BYTES, "gossamer/search/*.py"), before))
    for name in names:
        before = f"dense/{name}/0"
        made.append(Task(f"race/{name}/0/dense", (*_OF_DENSE, *_RACED), (before,), "understand_race"))
    again = () if quick else tuple(f"file/LeNet-5/1/{v}" for v in VARIANTS if v.endswith("sparse"))
    before = (*(f"file/LeNet-5/0/{variant}" for variant in VARIANTS[1:]), *again)
    made.append(Task("report/LeNet-5/0", (*_OF_BYTES, *_REPORTED), before, "understand_report"))
    networks = tuple(t.key for t in made if t.key.startswith(("dense", "file")))
    made.append(Task("pie/LeNet-5", _OF_FILES, networks))
    return made


def _asked(task: Task, data: Path, *, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{task.module}", str(data), task.key]
    environment = {**os.environ, **_MEMORY, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode != 0:
        raise DataError(f"{task.key}: found exit code {done.returncode}: {done.stderr.strip()[-600:]}")
    print(f"{time.monotonic() - begin:6.1f} s  {task.key}", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Run:
    """Tasks under way.

    Args:
        data: folder of Fashion-MNIST.
        quick: whether few images are used.
        minutes: after which nothing is started.
    """

    def __init__(self, data: Path, *, quick: bool, minutes: float) -> None:
        self._data, self._quick = data, quick
        self._end = time.monotonic() + 60 * minutes
        self.rows: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.late: list[str] = []

    def all(self, wanted: Sequence[Task]) -> None:
        """Two at a time, in order, each after those it waits for."""
        with ThreadPoolExecutor(2) as pool:
            done = {}
            for task in wanted:
                waits = [done[key] for key in task.after if key in done]
                done[task.key] = pool.submit(self._one, task, waits)
            for task in wanted:
                done[task.key].result()

    def _one(self, task: Task, waits: Sequence[Any]) -> None:
        for other in waits:  # submitted before, so it is finished or under way in the other thread
            other.result()
        kept = Rows("understand-quick" if self._quick else "understand", code_hash(*task.code))
        key = task.key.replace("/", "-").replace(" ", "_")
        missing = [k for k in task.after if k in self.failed or k in self.late]
        if missing:
            self.late.append(task.key)
            return
        if time.monotonic() > self._end and not kept.has(key):
            self.late.append(task.key)
            return
        try:
            self.rows[task.key] = kept.get(key, lambda: _asked(task, self._data, quick=self._quick))
        except DataError as error:
            self.failed[task.key] = str(error)
            print(error, file=sys.stderr, flush=True)


def document(run: Run) -> dict[str, Any]:
    """Rows by kind."""
    kinds = ("description_length", "robustness", "pie", "vog", "prequential", "search", "race", "report")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for key, row in run.rows.items():
        kind, network, *rest = key.split("/")
        where = {"network": network} | dict(zip(("seed", "variant"), rest, strict=False))
        named = {"accounted": "description_length", "attacked": "robustness"}.get(kind, kind)
        if kind == "pie":
            found["pie"] += row["row"]["rows"]
        elif named in found:
            found[named].append(where | row["row"])
    seconds = sum(row["cpu_seconds"] for row in run.rows.values())
    return {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        **found,
        "cpu_seconds": seconds,
        "not_started": run.late,
        "failed": run.failed,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """All tasks, then the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the full Fashion-MNIST")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="one network, one seed, few images")
    parser.add_argument("--minutes", type=float, default=55, help="after which nothing is started")
    parser.add_argument("--only", default="", metavar="TEXT", help="tasks whose key starts with it")
    given = parser.parse_args(arguments)
    run = Run(given.data, quick=given.quick, minutes=given.minutes)
    run.all([t for t in tasks(quick=given.quick) if t.key.startswith(given.only)])
    text = json.dumps(document(run))
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
