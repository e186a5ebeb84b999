"""The main job on full Fashion-MNIST: every family alone, and one composed pipeline, three seeds.

``python -m benchmarks.pipeline --data DIR --json FILE [--quick]``, DIR with the four idx files at any depth. Recipes
were chosen on 5,000 of the training images (LOG.md); the test images are only measured on. Rows that are finished are
kept by a hash of the code that made them, so a stopped run goes on where it was. Latencies are measured at the end in
one pass over the files, so that they are of one stretch of time on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.rows import Rows, code_hash, cpu_name
from gossamer.api import load
from gossamer.demo.data import Fashion, load_fashion
from gossamer.demo.job import latencies, run_job
from gossamer.demo.networks import train_dense
from gossamer.demo.recipes import CLASSICS, Classic, Job
from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.store import write_safetensors

THREADS = 2
CODE = (
    *(f"gossamer/{part}/**/*.py" for part in ("coding", "drive", "encoding", "measure", "methods", "network")),
    *(
        "gossamer/jit/*.py",
        "gossamer/runtime/**/*.py",
        "gossamer/store/**/*.py",
        "gossamer/demo/data.py",
        "gossamer/demo/job.py",
    ),
    *("gossamer/demo/networks.py", "gossamer/api.py", "benchmarks/pipeline.py"),
)


def _stamp(*settings: object) -> str:
    """Hash of settings: a row is kept as long as neither the code nor its own recipe changes."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="full Fashion-MNIST")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--quick", action="store_true", help="packaged subset, one seed, under 3 minutes")
    given = parser.parse_args()
    if given.data is None and not given.quick:
        parser.error("--data is needed unless --quick")
    torch.set_num_threads(THREADS)
    data = load_fashion(None if given.quick else given.data)
    seeds = (0,) if given.quick else (0, 1, 2)
    kept = Rows("pipeline-quick" if given.quick else "pipeline", code_hash(*CODE))
    begin = time.perf_counter()
    made: list[_Made] = []
    for classic in CLASSICS:
        for seed in seeds:
            made += _rows(classic, seed, data, kept, begin)
    print(f"{time.perf_counter() - begin:6.0f} s  latencies", file=sys.stderr)
    rows = [{**m.row, **kept.get(f"{m.key}-latency", partial(_latency, m, data))} for m in made]
    document = {"cpu": cpu_name(), "threads": THREADS, "full": data.full, "rows": rows, "summary": _summary(rows)}
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


@dataclass(frozen=True)
class _Made:
    """A finished row with what its latency is measured on."""

    classic: Classic
    dense: nn.Module
    key: str
    path: Path
    row: dict[str, Any]


def _rows(classic: Classic, seed: int, data: Fashion, kept: Rows, begin: float) -> list[_Made]:
    training = (classic.dense, classic.batch, classic.flip)
    stem = f"{classic.name}-{seed}-{_stamp(training)}"
    weights = kept.folder / f"{stem}.safetensors"
    dense = classic.factory()
    if weights.is_file():
        dense.load_state_dict(load_file(weights))
    else:
        train_dense(dense, data, classic.dense, batch=classic.batch, seed=seed)
        write_safetensors(weights, dense.state_dict())
    dense.eval()
    before = accuracy(dense, data.test, data.test_labels)
    print(f"{time.perf_counter() - begin:6.0f} s  {classic.name} {seed}: dense {before.value:.4f}", file=sys.stderr)
    made = []
    for job in classic.jobs:
        key = f"{stem}-{_stamp(job.family, job.name, job.recipe)}"
        path = kept.folder / f"{key}.gsm"
        row = kept.get(key, partial(_row, classic, job, dense, before, data, seed, path))
        lost = 100 * (row["dense_accuracy"] - row["accuracy"])
        text = f"{row['family']}: {row['name']}: {row['ratio']:.1f}x, {lost:+.2f} points lost, {row['seconds']:.0f} s"
        print(f"{time.perf_counter() - begin:6.0f} s  {classic.name} {seed} {text}", file=sys.stderr)
        made.append(_Made(classic, dense, key, path, row))
    return made


def _row(
    classic: Classic, job: Job, dense: nn.Module, before: Accuracy, data: Fashion, seed: int, path: Path
) -> dict[str, Any]:
    result = run_job(classic, job, dense, before, data, seed=seed, path=path, batches=())
    return {
        "network": classic.name,
        "name": job.name,
        "family": job.family,
        "breaking": job.breaking,
        "seed": seed,
        "file_bytes": result.ledger.file_bytes,
        "dense_bytes": result.ledger.dense_bytes,
        "ratio": result.ledger.ratio,
        "bits_per_param": result.ledger.bits_per_parameter,
        "accuracy": result.after.value,
        "dense_accuracy": result.before.value,
        "categories": dict(result.ledger.categories),
        "seconds": result.seconds,
    }


def _latency(made: _Made, data: Fashion) -> dict[str, Any]:
    times, _ = latencies(made.dense, load(made.path, into=made.classic.factory), data, (1, 64), seconds=1.0)
    one, many = times[1], times[64]
    return {
        "latency_ms": one[1].median_ms,
        "dense_latency_ms": one[0].median_ms,
        "latency_ms_64": many[1].median_ms,
        "dense_latency_ms_64": many[0].median_ms,
        "latency_spread_ms_64": [many[1].low_ms, many[1].high_ms],
    }


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["family"], row["name"]), []).append(row)
    summary = []
    for (network, family, name), group in groups.items():
        lost = [100 * (r["dense_accuracy"] - r["accuracy"]) for r in group]
        summary.append(
            {
                "network": network,
                "family": family,
                "name": name,
                "breaking": group[0]["breaking"],
                "ratio": statistics.mean(r["ratio"] for r in group),
                "file_bytes": statistics.mean(r["file_bytes"] for r in group),
                "dense_accuracy": statistics.mean(r["dense_accuracy"] for r in group),
                "accuracy": statistics.mean(r["accuracy"] for r in group),
                "points_lost": statistics.mean(lost),
                "points_lost_each": lost,
                "faster_1": statistics.mean(r["dense_latency_ms"] / r["latency_ms"] for r in group),
                "faster_64": statistics.mean(r["dense_latency_ms_64"] / r["latency_ms_64"] for r in group),
                "seconds": statistics.mean(r["seconds"] for r in group),
            }
        )
    return summary


if __name__ == "__main__":
    main()
