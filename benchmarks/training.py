"""Sparse training: ``python -m benchmarks.training --data DIR --peers .peers --json FILE [--quick]``.

``steps``: time and memory of a training step, ours beside dense torch and SparseLab; every contender is a process of
its own, all of one setting take turns. ``runs``: whole training runs on Fashion-MNIST. Finished ones are kept by a hash
of the code that made them, so that a benchmark goes on where another ended; none is started after ``--minutes``. The
last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Rows, code_hash, cpu_name
from benchmarks.training_methods import METHODS
from benchmarks.training_networks import NETWORKS
from benchmarks.training_runs import Run, finished, with_dense
from benchmarks.training_steps import StepSetting, relaxed_rows, step_rows

_MLP, _CONV = "mlp-784-2048-2048-10", "conv-16-32-128"
_SCHEDULES = (1.0, 0.6)  # shares of the dense network's epochs; the longer ends better, the shorter may be there sooner


@dataclass(frozen=True)
class Plan:
    """What one benchmark measures.

    Args:
        steps: settings, what matters most first.
        relaxed: networks on which steps of the methods with a dense phase are timed, one thread.
        timed: runs whose times matter, one after the other.
        side_by_side: runs whose accuracies matter, one thread each, as many at a time as there are cores.
    """

    steps: tuple[StepSetting, ...]
    relaxed: tuple[str, ...]
    timed: tuple[Run, ...]
    side_by_side: tuple[Run, ...]


def full(data: str | None) -> Plan:
    """Everything."""
    mlp, transformer, resnet = NETWORKS
    # Without instructions for bfloat16 a step in it takes fifty times as long as one in float32.
    plain = ("dense", "compiled", *(("dense_bf16",) if _has_bf16() else ()))
    steps = [StepSetting(mlp, threads, (0.8, 0.9, 0.95), plain, 40.0) for threads in (1, 2)]
    steps += [StepSetting(name, threads, (0.9,), plain, 40.0) for name in (transformer, resnet) for threads in (1, 2)]
    threads = min(2, os.cpu_count() or 1)
    timed = [
        Run(_MLP, method, sparsity, seed, threads, True, data, share)
        for seed in range(3)
        for method, sparsity, share in (("rigl", 0.9, 1.0), *(("dense", 0.0, share) for share in _SCHEDULES))
    ]
    # One seed; a fraction of the run, which tells how long a step takes. Slow without instructions for it.
    timed.append(Run(_MLP, "dense_bf16", 0.0, 0, threads, True, data, 1.0 if _has_bf16() else 0.005))
    few = [Run(_CONV, "dense", 0.0, seed, 1, False, data) for seed in range(5)]
    few += [Run(_CONV, m, s, seed, 1, False, data) for s in (0.95, 0.98) for seed in range(5) for m in METHODS]
    few += [Run(_CONV, m, s, 0, 1, False, data) for s in (0.5, 0.8, 0.9, 0.99) for m in METHODS]
    return Plan(tuple(steps), (mlp,), tuple(timed), tuple(few))


def quick() -> Plan:
    """One setting, and short runs on the packaged subset: under three minutes."""
    mlp = next(iter(NETWORKS))
    runs = [Run(_CONV, "dense", 0.0, 0, 1, False, None, 0.4)]
    runs += [Run(_CONV, m, 0.95, 0, 1, False, None, 0.4) for m in METHODS]
    timed = [Run(_MLP, m, s, 0, 1, True, None, 0.15) for m, s in (("rigl", 0.9), ("dense", 0.0))]
    return Plan((StepSetting(mlp, 1, (0.9,), ("dense",), 15.0),), (), tuple(timed), tuple(runs))


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "avx512_bf16" in _flags()


def _flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def measure(plan: Plan, peers: Path | None, name: str, minutes: float) -> dict[str, Any]:
    """All rows of a plan that can be started in time."""
    end = time.monotonic() + 60 * minutes
    kernels = ("gossamer/nn/*.py", "gossamer/jit/*.py", "gossamer/runtime/*.py", "benchmarks/training_networks.py")
    of_steps = Rows(
        f"{name}_steps", code_hash(*kernels, "benchmarks/training_steps.py", "benchmarks/training_worker.py")
    )
    of_relaxed = Rows(
        f"{name}_relaxed",
        code_hash("gossamer/train/from_dense/*.py", "benchmarks/training_networks.py", "benchmarks/training_worker.py"),
    )
    of_runs = Rows(
        f"{name}_runs",
        code_hash(*kernels, "gossamer/train/*.py", "benchmarks/training_runs.py", "benchmarks/training_methods.py"),
    )
    steps: list[dict[str, Any]] = []
    late: list[str] = []
    for setting in plan.steps:
        if time.monotonic() > end and not of_steps.has(setting.key):
            late.append(setting.key)
            continue

        def make(setting: StepSetting = setting) -> dict[str, Any]:
            return {"rows": step_rows(setting, peers)}

        found = of_steps.get(setting.key, make)["rows"]
        _say(found)
        steps += found
    relaxed: list[dict[str, Any]] = []
    for network in plan.relaxed:
        if time.monotonic() > end and not of_relaxed.has(network):
            late.append(f"relaxed-{network}")
            continue
        found = of_relaxed.get(network, lambda n=network: {"rows": relaxed_rows(n, 1, 30.0)})["rows"]
        for row in found:
            print(f"{row['network']} {row['method']}: {row['ms']} ms, {row['slow_down']}x dense", flush=True)
        relaxed += found
    results, failed = [], {}
    for runs, jobs in ((plan.timed, 1), (plan.side_by_side, os.cpu_count() or 1)):
        some, missing, reasons = finished(list(runs), of_runs, end, jobs)
        results += some
        late += missing
        failed |= reasons
    for key in late:
        print(f"{key}: not started, {minutes:g} minutes were over", flush=True)
    for key, why in failed.items():
        print(f"{key}: {why}", flush=True)
    document = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "steps": steps,
        "relaxed": relaxed,
        "runs": with_dense(results),
    }
    return {**document, "not_started": late, "failed": failed}


def _say(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        what = f"{row['network']} {row['sparsity']:.0%} threads {row['threads']}"
        times = ", ".join(f"{k} {row[k]}" for k in ("ms", "dense_ms", "sparselab_ms"))
        ratios = f"{row['speed_up']}x dense, {row['over_sparselab']}x SparseLab"
        print(f"{what}: {times}; {ratios}; state {row['state_ratio']} of dense", flush=True)
        for peer, reason in row["missing"].items():
            print(f"  {peer}: {reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the Fashion-MNIST files; none: the packaged subset")
    parser.add_argument("--peers", type=Path, help="folder that benchmarks/peers.sh has filled")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="one setting, and short runs on the packaged subset")
    parser.add_argument("--minutes", type=float, default=50.0, help="after which nothing is started")
    given = parser.parse_args()
    for option in ("data", "peers"):
        folder = getattr(given, option)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{option}: found no folder {folder}, expected one")
    peers = given.peers.absolute() if given.peers is not None else None
    data = None if given.data is None else str(given.data.absolute())
    plan, name = (quick(), "training_quick") if given.quick else (full(data), "training" if data else "training_subset")
    text = json.dumps(measure(plan, peers, name, given.minutes))
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
