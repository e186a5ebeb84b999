"""`bench`: a file's lowered network and dense contenders take turns in one run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

import gossamer as gs
from gossamer.api import Compressed
from gossamer.cli.network import Inputs, factory_of
from gossamer.cli.output import size, table
from gossamer.cli.resident import Mode, resident_bytes, runner_of
from gossamer.drive.progress import TerminalProgress
from gossamer.errors import DataError, PlanError
from gossamer.measure.latency import Timing, in_turns, runner
from gossamer.measure.ledger import ledger_of
from gossamer.measure.onnx_file import Made, exported
from gossamer.measure.peers import Peer, PeerKind, running
from gossamer.runtime.candidates import resident_bytes as weight_bytes
from gossamer.runtime.lower import Choice, Lowered
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
        loaded: the file.
        original: the network as it was, if the file holds a smaller one; its weights do not matter to dense kernels.
        inputs: of the network.
        against: contenders.
        peers: folder of environments, or None.
        seconds: per row.
    """

    def __init__(
        self,
        loaded: Compressed,
        original: nn.Module | None,
        make: partial[Made],
        inputs: Inputs,
        against: _Against,
        peers: Path | None,
        seconds: float,
    ) -> None:
        self.loaded, self.original, self.make = loaded, original, make
        self.inputs, self.against, self.peers, self.seconds = inputs, against, peers, seconds
        self.rows: list[dict[str, Any]] = []
        self.layers: tuple[Choice, ...] = ()
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {"torch": torch.__version__}
        self.memory: dict[str, dict[str, int]] = {}
        self.weights: dict[str, int] = {}

    def measure(self, batch: int, threads: int) -> None:
        """One row: everything takes turns."""
        arguments = self.inputs.of(batch)
        with tempfile.TemporaryDirectory() as folder, _threads(threads):
            lowered = self.loaded.lower(arguments)
            self.layers = lowered.explain()
            ours: dict[str, nn.Module] = {Mode.LOWERED.value: lowered}
            if self.original is not None:
                ours[Mode.ORIGINAL.value] = self.original
            if self.against.torch:
                ours[Mode.TORCH.value] = self.loaded.dense()
            file: Path | str = ""
            if self.against.peers:
                file = exported(partial(self.make, batch), self.peers, Path(folder))
            with running(self.against.peers, self.peers, file, threads) as (started, missing):
                runners = {name: runner(partial(module, *arguments)) for name, module in ours.items()}
                runners |= {kind.value: peer.run for kind, peer in started.items()}
                taken = in_turns(runners, seconds=self.seconds, turn_ms=_TURN_MS)
                self._remember(ours, started)
            self.missing |= {kind.value: reason for kind, reason in missing.items()}
        times = {name: Timing.of(ms) for name, ms in taken.items()}
        found = {name: {**asdict(t), "per_second": 1e3 * batch / t.median_ms} for name, t in times.items()}
        self.rows.append({"batch": batch, "threads": threads, **found})

    def _remember(self, ours: dict[str, nn.Module], started: dict[PeerKind, Peer]) -> None:
        self.weights |= {name: _weights(module) for name, module in ours.items()}
        for kind, peer in started.items():
            self.versions[kind.value] = peer.version
            self.weights[kind.value] = peer.weight_bytes
            self.memory[kind.value] = peer.resident_bytes  # batches ascend: of the largest


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dense_of(file: Path, network: str, inputs: Inputs, batch: int) -> Made:
    """The weights of a file as a dense network, and its inputs; called in the process that exports."""
    return runner_of(Mode.TORCH, file, factory_of(network), ()), inputs.of(batch)


def _weights(module: nn.Module) -> int:
    """A lowered network also holds a captured copy, which shares its weights."""
    return weight_bytes(module.network if isinstance(module, Lowered) else module)


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
    original = factory().eval()
    smaller = _shapes(original) != _shapes(loaded.dense())
    make = partial(dense_of, file.absolute(), network, inputs)
    bench = _Bench(loaded, original if smaller else None, make, inputs, wanted, peers, seconds)
    plan = [(batch, count) for count in threads or [torch.get_num_threads()] for batch in sorted(set(batches))]
    modes = [Mode.LOWERED, *([Mode.ORIGINAL] if smaller else []), *([Mode.TORCH] if wanted.torch else [])]
    with TerminalProgress(enabled=False if quiet else None) as progress, torch.random.fork_rng():
        steps = len(plan) + len(modes)
        for i, (batch, count) in enumerate(plan):
            progress.update(f"batch {batch}, {count} threads", i, steps)
            bench.measure(batch, count)
        for i, mode in enumerate(modes, start=len(plan)):
            progress.update(f"memory of {mode.value}", i, steps)
            bench.memory[mode.value] = resident_bytes(mode, file, network, inputs, max(batches))
    console.print(
        f"[bold]{escape(str(file))}[/bold]  {size(ledger.file_bytes)} bytes, {ledger.ratio:.1f}x smaller than "
        f"{size(ledger.dense_bytes)}"
    )
    _show(bench, console, max(batches))
    document = {"file": str(file), "ledger": ledger.to_json(), "latency": bench.rows, "resident_bytes": bench.memory}
    document |= {"weight_bytes": bench.weights, "missing": bench.missing, "versions": bench.versions}
    write_json(json_file, {**document, "layers": [vars(choice) for choice in bench.layers]})


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
        if (grown := bench.memory.get(name)) is not None
    ]
    title = (
        f"Resident bytes at batch {batch}, a process each (runtime: compiler and kernels, or a peer's library, once)"
    )
    columns = ["", "network", "runtime", "whole process", "of them\nweights"]
    console.print(table(title, columns, rows))
    for name, reason in bench.missing.items():
        console.print(f"{name} is missing: {escape(reason)}")
    rows = [[c.layer, c.kernel, c.reason, f"{c.density:.3f}", _ms(c.ms), _ms(c.dense_ms)] for c in bench.layers]
    title = f"What runs each layer at batch {bench.rows[-1]['batch']}"
    console.print(table(title, ["layer", "runs on", "why", "density", "ms", "dense ms"], rows, text_columns=3))


_SHOWN = {Mode.LOWERED.value: "compressed", Mode.ORIGINAL.value: "torch, before", Mode.TORCH.value: "torch, dense"}


def _shown(name: str) -> str:
    return _SHOWN.get(name, name.replace("_", " "))  # words may be wrapped


def _ms(time: float) -> str:
    return f"{time:.3f}" if math.isfinite(time) else "–"


def _spread(timing: dict[str, float]) -> str:
    return f"{timing['median_ms']:.3f} ({timing['low_ms']:.3f} to {timing['high_ms']:.3f})"
