"""`bench`: a file's lowered network and dense contenders take turns in one run."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

import gossamer as gs
from gossamer.cli.contender import Mode, contender, network_of
from gossamer.cli.network import Inputs, factory_of
from gossamer.cli.output import size, table
from gossamer.drive.progress import TerminalProgress
from gossamer.errors import DataError, PlanError
from gossamer.measure.latency import Timing, in_turns
from gossamer.measure.ledger import ledger_of
from gossamer.measure.onnx_file import Made, exported
from gossamer.measure.peers import Peer, PeerKind, running
from gossamer.store.json_file import write_json

__all__ = ["bench_file"]

_TURN_MS = 2.0


@final
@dataclass(frozen=True)
class _Against:
    """Who is measured beside the lowered network."""

    torch: bool
    peers: tuple[PeerKind, ...]

    @classmethod
    def of(cls, names: str) -> _Against:
        """From ``torch,onnxruntime``."""
        wanted = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
        known = {kind.value: kind for kind in PeerKind}
        for name in wanted:
            if name != Mode.TORCH.value and name not in known:
                expected = ", ".join((Mode.TORCH.value, *known))
                raise PlanError(f"--against: found {name!r}, expected some of {expected}")
        return cls(Mode.TORCH.value in wanted, tuple(known[name] for name in wanted if name in known))


@final
class _Bench:
    """Collects rows.

    Args:
        file: a ``.gsm``.
        network: factory name.
        inputs: of the network.
        modes: of our own.
        peers: other runtimes.
        folder: of their environments, or None.
        seconds: per row.
    """

    def __init__(
        self,
        file: Path,
        network: str,
        inputs: Inputs,
        modes: tuple[Mode, ...],
        peers: tuple[PeerKind, ...],
        folder: Path | None,
        seconds: float,
    ) -> None:
        self.file, self.network, self.inputs, self.modes = file, network, inputs, modes
        self.peers, self.folder, self.seconds = peers, folder, seconds
        self.rows: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.memory: dict[str, dict[str, int]] = {}
        self.weights: dict[str, int] = {}

    def measure(self, batch: int, threads: int) -> None:
        """One row: everything takes turns, each in a process of its own, or the busiest would be put behind."""
        with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
            folder = Path(made)
            all_started: dict[str, Peer] = {}
            for mode in self.modes:
                log = folder / f"{mode.value}.log"
                peer = contender(mode, self.file, self.network, self.inputs, batch, threads, log)
                all_started[mode.value] = stack.enter_context(peer)
            onnx: Path | str = ""
            if self.peers:
                make = partial(dense_of, self.file.absolute(), self.network, self.inputs, batch)
                onnx = exported(make, self.folder, folder)
            started, missing = stack.enter_context(running(self.peers, self.folder, onnx, threads))
            all_started |= {kind.value: peer for kind, peer in started.items()}
            self.missing |= {kind.value: reason for kind, reason in missing.items()}
            runners = {name: peer.run for name, peer in all_started.items()}
            taken = in_turns(runners, seconds=self.seconds, turn_ms=_TURN_MS)
        for name, peer in all_started.items():  # batches ascend: what is kept is of the largest
            self.versions[name], self.weights[name] = peer.version, peer.weight_bytes
            self.memory[name] = peer.resident_bytes
        self.layers = all_started[Mode.LOWERED.value].said["layers"]
        times = {name: Timing.of(ms) for name, ms in taken.items()}
        found = {name: {**asdict(t), "per_second": 1e3 * batch / t.median_ms} for name, t in times.items()}
        self.rows.append({"batch": batch, "threads": threads, **found})


def dense_of(file: Path, network: str, inputs: Inputs, batch: int) -> Made:
    """The weights of a file as a dense network, and its inputs; called in the process that exports."""
    return network_of(Mode.TORCH, file, factory_of(network), ()), inputs.of(batch)


def bench_file(
    *,
    file: Path,
    network: str,
    inputs: Inputs,
    against: str,
    peers: Path | None,
    batches: list[int],
    threads: list[int],
    seconds: float,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """Size, latency, throughput and memory, the compressed network beside dense ones."""
    wanted = _Against.of(against)
    for name, numbers in {"--batch": batches, "--threads": threads}.items():
        if any(n < 1 for n in numbers):
            raise DataError(f"{name}: found {min(numbers)}, expected at least 1")
    if peers is not None and not peers.is_dir():
        raise DataError(f"--peers: found no folder {str(peers)!r}")
    factory = factory_of(network)
    loaded = gs.load(file, into=factory)
    ledger = ledger_of(file, zstd=False)
    smaller = _shapes(factory()) != _shapes(loaded.dense())
    modes = (Mode.LOWERED, *([Mode.ORIGINAL] if smaller else []), *([Mode.TORCH] if wanted.torch else []))
    bench = _Bench(file, network, inputs, modes, wanted.peers, peers, seconds)
    plan = [(batch, count) for count in threads or [torch.get_num_threads()] for batch in sorted(set(batches))]
    with TerminalProgress(enabled=False if quiet else None) as progress:
        for i, (batch, count) in enumerate(plan):
            progress.update(f"batch {batch}, {count} threads", i, len(plan))
            bench.measure(batch, count)
    console.print(
        f"[bold]{escape(str(file))}[/bold]  {size(ledger.file_bytes)} bytes, {ledger.ratio:.1f}x smaller than "
        f"{size(ledger.dense_bytes)}"
    )
    _show(bench, console, max(batches))
    document = {"file": str(file), "ledger": ledger.to_json(), "latency": bench.rows, "resident_bytes": bench.memory}
    document |= {"weight_bytes": bench.weights, "missing": bench.missing, "versions": bench.versions}
    write_json(json_file, {**document, "layers": bench.layers})


def _shapes(network: nn.Module) -> list[torch.Size]:
    return [value.shape for value in network.state_dict().values()]


def _show(bench: _Bench, console: Console, batch: int) -> None:
    ours = Mode.LOWERED.value
    rows = []
    for row in bench.rows:
        names = [name for name in row if isinstance(row[name], dict)]
        for name in names:
            times = row[name]
            first = [f"{row['batch']}", f"{row['threads']}"] if name == ours else ["", ""]
            faster = "" if name == ours else f"{times['median_ms'] / row[ours]['median_ms']:.2f}x"
            rate = f"{times['per_second']:,.1f}"
            rows.append([*first, _shown(name), _spread(times), rate, faster])
    columns = ["batch", "threads", "runs in", "ms (middle half)", "per second", "compressed\nis faster"]
    console.print(table("Latency and throughput", columns, rows, text_columns=3))
    rows = [
        [_shown(name), *(size(grown[kind]) for kind in ("network", "runtime", "process")), size(held)]
        for name, held in bench.weights.items()
        for grown in [bench.memory[name]]
    ]
    title = (
        f"Resident bytes at batch {batch}, a process each (runtime: compiler and kernels, or a peer's library, once)"
    )
    columns = ["", "network", "runtime", "whole process", "of them\nweights"]
    console.print(table(title, columns, rows))
    for name, reason in bench.missing.items():
        console.print(f"{name} is missing: {escape(reason)}")
    rows = [
        [c["layer"], c["kernel"], c["reason"], f"{c['density']:.3f}", _ms(c["ms"]), _ms(c["dense_ms"])]
        for c in bench.layers
    ]
    title = f"What runs each layer at batch {bench.rows[-1]['batch']}"
    console.print(table(title, ["layer", "runs on", "why", "density", "ms", "dense ms"], rows, text_columns=3))


_SHOWN = {Mode.LOWERED.value: "compressed", Mode.ORIGINAL.value: "torch, before", Mode.TORCH.value: "torch, dense"}


def _shown(name: str) -> str:
    return _SHOWN.get(name, name.replace("_", " "))  # words may be wrapped


def _ms(time: float) -> str:
    return f"{time:.3f}" if math.isfinite(time) else "–"


def _spread(timing: dict[str, float]) -> str:
    return f"{timing['median_ms']:.3f} ({timing['low_ms']:.3f} to {timing['high_ms']:.3f})"
