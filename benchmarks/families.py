"""Every method on real networks: LeNets, a ResNet and an LSTM on Fashion-MNIST, MiniLM on mails, g2p on words.

``python -m benchmarks.families --zoo DIR --json FILE [--quick] [--only GLOB]``, DIR as ../shared/zoo/fetch.sh fills it.
The rows are listed in benchmarks/families_rows.py. A finished row is kept by a hash of the code that made it: the
encodings, coders and drivers, its methods' family, its network and its own recipe. So a change to one family measures
only that family anew, and a stopped run goes on where it was. Latencies are measured at the end, in one pass over the
files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.families_rows import NETWORKS, Network, Row
from benchmarks.rows import ROOT, Rows, code_hash, cpu_name
from benchmarks.zoo import Subject, Zoo
from benchmarks.zoo.run import (
    DENSE_CODE,
    LATENCY_CODE,
    ROW_CODE,
    epochs,
    latency,
    measure_row,
    methods_code,
    once,
    recipe_for,
    stamp,
)
from gossamer.drive.recipe import Recipe
from gossamer.errors import GossamerError
from gossamer.store import write_safetensors

THREADS = 2
_LATENCY_SECONDS = 0.5


def main() -> int:
    """Measure, write, print; 1 when a row failed or time ran out."""
    given = _arguments()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    zoo = Zoo(given.zoo, ROOT / "benchmarks" / "out" / "cache", given.quick, given.validate)
    chosen = _chosen(given, zoo)
    run = Run(zoo, time.perf_counter(), 60 * given.minutes)
    run.make([run.todo(network, rows) for network, rows in chosen])
    rows = run.with_latencies()
    data = {"full": not given.quick, "held_out": "training data" if given.validate else "test data"}
    document = {"cpu": cpu_name(), "threads": torch.get_num_threads(), **data, "rows": rows, "missing": run.missing}
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 1 if run.missing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="folder with the networks and data")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--quick", action="store_true", help="few rows on small parts of the data, under 3 minutes")
    parser.add_argument("--only", default="*", metavar="GLOB", help="rows to run, as network/method/setting")
    parser.add_argument("--validate", action="store_true", help="measure on held-out training data, to choose settings")
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit; rows left are listed as missing")
    given = parser.parse_args()
    if given.zoo is None and not given.quick:
        parser.error("--zoo is needed unless --quick")
    return given


def _chosen(given: argparse.Namespace, zoo: Zoo) -> list[tuple[Network, list[Row]]]:
    chosen = []
    for network in NETWORKS:
        rows = [r for r in network.rows if fnmatchcase(f"{network.name}/{r.method}/{r.setting}", given.only)]
        if given.quick:
            rows = [r for r in rows if r.quick]
        if rows and zoo.folder is None and not network.packaged:
            _say(f"{network.name}: left out, it needs --zoo")
        elif rows:
            chosen.append((network, rows))
    return chosen


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Keyed:
    """A row with its recipe for this network, where it is kept, and under which key."""

    row: Row
    recipe: Recipe
    kept: Rows
    key: str

    @property
    def is_kept(self) -> bool:
        return (self.kept.folder / f"{self.key}.json").is_file()


@dataclass(frozen=True)
class _Todo:
    """A network with its rows."""

    subject: Subject
    dense_kept: Rows
    rows: tuple[_Keyed, ...]

    @property
    def weights(self) -> Path:
        return self.dense_kept.folder / f"{self.subject.name}.safetensors"

    def seconds(self) -> float:
        """Estimate of what is not kept yet."""
        new = [keyed for keyed in self.rows if not keyed.is_kept]
        s = self.subject
        each = s.measure_seconds + s.file_seconds + s.latency_seconds
        rows = sum(each + epochs(keyed.recipe) * s.epoch_seconds for keyed in new)
        return rows + (0 if self.weights.is_file() else s.dense_seconds + s.measure_seconds)


@dataclass(frozen=True)
class _Made:
    """A finished row with what its latency is measured on."""

    subject: Subject
    dense: nn.Module
    kept: Rows
    key: str
    row: dict[str, Any]


class Run:
    """One run over the table.

    Args:
        zoo: the data.
        begin: when it began.
        seconds: for all of it; no row is started when the time left is needed for latencies.
    """

    def __init__(self, zoo: Zoo, begin: float, seconds: float) -> None:
        self.missing: list[dict[str, str]] = []
        self._zoo, self._begin, self._seconds = zoo, begin, seconds
        self._made: list[_Made] = []
        part = "-quick" if zoo.quick else "-validate" if zoo.validate else ""
        self._place = f"families{part}{'-validate' if zoo.quick and zoo.validate else ''}"

    def todo(self, network: Network, rows: list[Row]) -> _Todo:
        """A network opened, with the recipe, the place and the key of each of its rows."""
        subject = network.open(self._zoo)
        keyed = []
        for row in rows:
            recipe = recipe_for(row.recipe, subject.factory)
            recipe = once(recipe) if self._zoo.quick else recipe
            kept = Rows(self._place, code_hash(*ROW_CODE, *network.code, *methods_code(recipe)))
            keyed.append(_Keyed(row, recipe, kept, f"{network.name}-{stamp(row.method, row.setting, recipe)}"))
        return _Todo(subject, Rows(self._place, code_hash(*DENSE_CODE, *network.code)), tuple(keyed))

    def make(self, todos: list[_Todo]) -> None:
        """All rows that are not kept yet, and how long that may take."""
        seconds = sum(todo.seconds() for todo in todos)
        count = sum(len(todo.rows) for todo in todos)
        self._log(f"{count} rows, about {seconds / 60:.0f} minutes on two cores that do nothing else")
        for todo in todos:
            dense = _dense(todo.subject, todo.weights)
            measured = todo.dense_kept.get(todo.subject.name, partial(_dense_value, todo.subject, dense))
            before = measured["value"]
            self._log(f"{todo.subject.name}: dense {todo.subject.metric} {before:.4f}")
            for keyed in todo.rows:
                self._row(todo.subject, dense, before, keyed)

    def _row(self, subject: Subject, dense: nn.Module, before: float, keyed: _Keyed) -> None:
        row, kept, key = keyed.row, keyed.kept, keyed.key
        label = {"network": subject.name, "family": row.family, "method": row.method, "setting": row.setting}
        latencies = sum(m.subject.latency_seconds for m in self._made)
        late = time.perf_counter() - self._begin + latencies > self._seconds
        if late and not keyed.is_kept:
            self.missing.append({**label, "why": "out of time"})
            return
        try:
            made = kept.get(key, partial(measure_row, subject, dense, keyed.recipe, kept.folder / f"{key}.gsm"))
        except GossamerError as error:
            self.missing.append({**label, "why": str(error)})
            self._log(f"{subject.name} {row.method} ({row.setting}): failed: {error}")
            return
        full = {**label, "breaking": row.breaking, "metric": subject.metric, "dense_value": before, **made}
        self._made.append(_Made(subject, dense, kept, key, full))
        ratio, lost = made["dense_bytes"] / made["file_bytes"], subject.lost(before, made["value"])
        text = f"{ratio:.1f}x, {lost:+.2f} points lost, {made['seconds']:.0f} s"
        self._log(f"{subject.name} {row.method} ({row.setting}{', breaking' if row.breaking else ''}): {text}")

    def with_latencies(self) -> list[dict[str, Any]]:
        """All finished rows with their latencies, which are measured now."""
        self._log(f"latencies of {len(self._made)} rows")
        rows = []
        code = code_hash(*LATENCY_CODE)
        seconds = _LATENCY_SECONDS / 5 if self._zoo.quick else _LATENCY_SECONDS
        for m in self._made:
            path = m.kept.folder / f"{m.key}.gsm"
            time_it = partial(latency, m.subject, m.dense, path, seconds=seconds)
            rows.append({**m.row, **m.kept.get(f"{m.key}-latency-{code}", time_it)})
        self._log("done")
        return rows

    def _log(self, text: str) -> None:
        _say(f"{time.perf_counter() - self._begin:6.0f} s  {text}")


def _dense(subject: Subject, weights: Path) -> nn.Module:
    """The dense network: read if it was made before, else made and kept."""
    if weights.is_file():
        model = subject.factory()
        model.load_state_dict(load_file(weights))
        return model.eval()
    _say(f"{subject.name}: making the dense network, about {subject.dense_seconds:.0f} s")
    model = subject.dense().eval()
    write_safetensors(weights, model.state_dict())
    return model


def _dense_value(subject: Subject, dense: nn.Module) -> dict[str, float]:
    return {"value": subject.measure(dense)}


if __name__ == "__main__":
    sys.exit(main())
