"""Time and memory of a training step: ours, dense torch, SparseLab, each in a process of its own, taking turns."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT
from benchmarks.training_networks import NETWORKS
from benchmarks.training_worker import RELAXED
from gossamer.errors import DataError
from gossamer.measure.peers import Peer

__all__ = ["StepSetting", "relaxed_rows", "step_rows"]

_TURN = 3  # steps per turn, of which the first finds another process's caches and is not counted
_LEAST = 5  # turns


@dataclass(frozen=True)
class StepSetting:
    """What is measured side by side.

    Args:
        network: of `NETWORKS`.
        threads: of every contender.
        sparsities: of the sparse ones.
        dense: contenders that are dense; the fastest in float32 is what the others are compared with.
        seconds: of measuring, after everything was built.
    """

    network: str
    threads: int
    sparsities: tuple[float, ...]
    dense: tuple[str, ...] = ("dense", "compiled", "dense_bf16")
    seconds: float = 40.0

    @property
    def key(self) -> str:
        """Name of the kept row."""
        return "-".join([self.network, str(self.threads), *map(str, self.sparsities)])


def step_rows(setting: StepSetting, peers: Path | None) -> list[dict[str, Any]]:
    """A row per sparsity; all contenders of a setting take turns, so that a slow minute is everyone's.

    ``ms`` are medians, ``*_spread_ms`` lower and upper quartiles. ``peak_bytes`` is the whole process, torch included,
    at most during steps that follow the first ones; ``state_bytes`` are parameters, gradients, optimiser state and
    positions alone. ``sparselab_ms`` is null where it has no such layer or is not installed; ``missing`` says why.
    """
    contenders = [(kind, 0.0) for kind in setting.dense if kind != "compiled" or shutil.which("g++")]
    contenders += [(kind, sparsity) for sparsity in setting.sparsities for kind in ("ours", "sparselab")]
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_ones:
        running: dict[tuple[str, float], Peer] = {}
        for kind, sparsity in contenders:
            try:
                command = _command(kind, setting.network, sparsity, setting.threads, peers)
                peer = Peer(command, Path(folder) / f"{kind}-{sparsity}.log")
                running[kind, sparsity] = open_ones.enter_context(peer)
            except DataError as error:
                missing[f"{kind} {sparsity}" if sparsity else kind] = str(error)
        taken = _in_turn(running, setting.seconds)
        said = {key: peer.said for key, peer in running.items()}
    return [_row(setting, sparsity, taken, said, missing) for sparsity in setting.sparsities]


def relaxed_rows(network: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Step times and memory of the methods with a dense phase, beside the dense network that they all contain."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_ones:
        running: dict[tuple[str, float], Peer] = {}
        for kind in ("dense", *RELAXED):
            command = _command(kind, network, 0.9, threads, None)
            running[kind, 0.9] = open_ones.enter_context(Peer(command, Path(folder) / f"{kind}.log"))
        taken = _in_turn(running, seconds)
        said = {key: peer.said for key, peer in running.items()}
    dense, rows = ("dense", 0.9), []
    for kind in RELAXED:
        key = (kind, 0.9)
        row: dict[str, Any] = {"network": network, "method": kind, "threads": threads}
        for prefix, whose in (("", key), ("dense_", dense)):
            row[prefix + "ms"] = round(statistics.median(taken[whose]), 3)
            row[prefix + "spread_ms"] = _quartiles(taken[whose])
            row[prefix + "peak_bytes"] = said[whose]["peak_bytes"]
            row[prefix + "state_bytes"] = said[whose]["state_bytes"]
        row["slow_down"] = _ratio(row["ms"], row["dense_ms"])
        rows.append(row)
    return rows


def _in_turn(running: dict[tuple[str, float], Peer], seconds: float) -> dict[tuple[str, float], list[float]]:
    taken: dict[tuple[str, float], list[float]] = {key: [] for key in running}
    end, turns = time.monotonic() + seconds, 0
    while turns < _LEAST or time.monotonic() < end:
        for key, peer in running.items():
            taken[key] += peer.run(_TURN)[1:]
        turns += 1
    return taken


def _command(kind: str, network: str, sparsity: float, threads: int, peers: Path | None) -> Sequence[str]:
    python = Path(sys.executable)
    if kind == "sparselab":
        if peers is None:
            raise DataError("no folder of peers given")
        python = peers / "sparselab" / "bin" / "python"
        if not python.exists():
            raise DataError("not installed")
    settings = [f"PYTHONPATH={ROOT}", f"OMP_NUM_THREADS={threads}"]
    arguments = [kind, network, str(sparsity), str(threads)]
    return ["env", *settings, str(python.absolute()), "-m", "benchmarks.training_worker", *arguments]


def _row(
    setting: StepSetting,
    sparsity: float,
    taken: dict[tuple[str, float], list[float]],
    said: dict[tuple[str, float], dict[str, Any]],
    missing: dict[str, str],
) -> dict[str, Any]:
    in_float32 = [kind for kind in ("dense", "compiled") if (kind, 0.0) in taken]
    best = min(in_float32, key=lambda kind: statistics.median(taken[kind, 0.0]), default="dense")
    columns = {
        "": ("ours", sparsity),
        "dense_": (best, 0.0),
        "dense_bf16_": ("dense_bf16", 0.0),
        "sparselab_": ("sparselab", sparsity),
    }
    row: dict[str, Any] = {
        "network": setting.network,
        "sparsity": sparsity,
        "threads": setting.threads,
        "batch": NETWORKS[setting.network].batch,
    }
    for prefix, key in columns.items():
        times, told = taken.get(key), said.get(key, {})
        row[prefix + "ms"] = round(statistics.median(times), 3) if times else None
        row[prefix + "spread_ms"] = _quartiles(times) if times else None
        row[prefix + "peak_bytes"] = told.get("peak_bytes")
        row[prefix + "state_bytes"] = told.get("state_bytes")
    row["dense_kind"] = best
    row["sparselab_version"] = said.get(("sparselab", sparsity), {}).get("version")
    row["speed_up"] = _ratio(row["dense_ms"], row["ms"])
    row["over_sparselab"] = _ratio(row["sparselab_ms"], row["ms"])
    row["state_ratio"] = _ratio(row["state_bytes"], row["dense_state_bytes"])
    row["missing"] = {k: v for k, v in missing.items() if k.endswith(str(sparsity)) or " " not in k}
    return row


def _quartiles(times: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(times, n=4)
    return [round(low, 3), round(high, 3)]


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None
