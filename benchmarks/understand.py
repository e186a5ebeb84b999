"""See what compression did: ``python -m benchmarks.understand --data DIR --json FILE``, DIR with Fashion-MNIST.

Description length, robustness, exemplars and variance of gradients of two networks, dense and compressed in seven ways,
over five seeds. Two processes of one core each take one task after the other. Finished rows are kept by a hash of the
code that made them, so that a run goes on where another ended; none is started after ``--minutes``. A missing peer is
reported, not fatal. The last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import understand_race, understand_report, understand_worker
from benchmarks.rows import Rows, code_hash, cpu_name
from benchmarks.understand_networks import NETWORKS, VARIANTS
from benchmarks.understand_worker import CODE_OF_DENSE, CODE_OF_FILES, POPULATION, SEEDS, RowOf, answer
from gossamer.errors import GossamerError

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
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "2147483648",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
"""Of the processes. glibc keeps freed memory; else every activation is mapped, touched and given back, page by page."""


@dataclass(frozen=True)
class Task:
    """What makes one row.

    Args:
        key: KIND/NETWORK/….
        code: files that decide the row.
        after: keys of tasks that must be finished.
        row_of: knows the kind.
    """

    key: str
    code: tuple[str, ...] = field(repr=False)
    after: tuple[str, ...] = ()
    row_of: RowOf = field(default=understand_worker.row_of, repr=False)


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
    made.append(Task("prequential/LeNet-5/0", _OF_DENSE))
    for seed in range(seeds):
        before = tuple(f"file/LeNet-5/{seed}/{variant}" for variant in VARIANTS[1:])
        made.append(Task(f"search/LeNet-5/{seed}", (*_OF_BYTES, "gossamer/search/*.py"), before))
    for name in names:
        before = f"dense/{name}/0"
        made.append(Task(f"race/{name}/0/dense", (*_OF_DENSE, *_RACED), (before,), understand_race.row_of))
    again = () if quick else tuple(f"file/LeNet-5/1/{v}" for v in VARIANTS if v.endswith("sparse"))
    before = (*(f"file/LeNet-5/0/{variant}" for variant in VARIANTS[1:]), *again)
    made.append(Task("report/LeNet-5/0", (*_OF_BYTES, *_REPORTED), before, understand_report.row_of))
    networks = tuple(t.key for t in made if t.key.startswith(("dense", "file")))
    made.append(Task("pie/LeNet-5", _OF_FILES, networks))
    for seed in range(seeds):  # last: many short ones, and what is not finished in time lacks seeds, not variants
        for name in names:
            files = tuple(f"file/{name}/{seed}/{variant}" for variant in VARIANTS[1:])
            made.append(Task(f"accounted/{name}/{seed}", _OF_BYTES, files))
            made.append(Task(f"damaged/{name}/{seed}", _OF_FILES, (f"dense/{name}/{seed}", *files)))
            for variant, before in zip(VARIANTS, (f"dense/{name}/{seed}", *files), strict=True):
                made.append(Task(f"attacked/{name}/{seed}/{variant}", _OF_FILES, (before,)))
    return made


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
        with ThreadPoolExecutor(2) as pool, ProcessPoolExecutor(2, get_context("spawn")) as processes:
            done = {}
            for task in wanted:
                waits = [done[key] for key in task.after if key in done]
                done[task.key] = pool.submit(self._one, task, waits, processes)
            for task in wanted:
                done[task.key].result()
        self.rows = {task.key: self.rows[task.key] for task in wanted if task.key in self.rows}  # not as they finished

    def _one(self, task: Task, waits: Sequence[Any], processes: ProcessPoolExecutor) -> None:
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
            self.rows[task.key] = kept.get(key, lambda: self._made(task, processes))
        except GossamerError as error:
            self.failed[task.key] = str(error)
            print(f"{task.key}: {error}", file=sys.stderr, flush=True)

    def _made(self, task: Task, processes: ProcessPoolExecutor) -> dict[str, Any]:
        begin = time.monotonic()
        row = processes.submit(answer, task.row_of, self._data, task.key, self._quick).result()
        print(f"{time.monotonic() - begin:6.1f} s  {task.key}", file=sys.stderr, flush=True)
        return row


def document(run: Run) -> dict[str, Any]:
    """Rows by kind."""
    kinds = ("description_length", "robustness", "corruptions", "pie", "vog", "prequential", "search", "race", "report")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for key, row in run.rows.items():
        kind, network, *rest = key.split("/")
        where = {"network": network} | dict(zip(("seed", "variant"), rest, strict=False))
        named = {"accounted": "description_length", "attacked": "robustness", "damaged": "corruptions"}.get(kind, kind)
        if named in found:
            found[named] += [where | r for r in row["row"].get("variants", [row["row"]])]
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
    parser.add_argument("--minutes", type=float, default=59, help="after which nothing is started")
    parser.add_argument("--only", default="", metavar="TEXT", help="tasks whose key starts with it")
    given = parser.parse_args(arguments)
    if not given.data.is_dir():
        parser.error(f"--data: found no folder {given.data}")
    os.environ.update(_ENVIRONMENT)
    run = Run(given.data, quick=given.quick, minutes=given.minutes)
    run.all([t for t in tasks(quick=given.quick) if t.key.startswith(given.only)])
    text = json.dumps(document(run))
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
