"""One way of running a network with PyTorch, in a process of its own that waits to be asked.

``python -m gossamer.cli.contender MODE FILE NETWORK INPUTS BATCH THREADS``; `gossamer.measure.peers.Peer` talks to it.
"""

from __future__ import annotations

import enum
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.cli.network import Inputs, factory_of
from gossamer.errors import DataError
from gossamer.measure.latency import runner
from gossamer.measure.peers import Peer

__all__ = ["Mode", "contender", "network_of"]


class Mode(enum.Enum):
    """Ways of running a network.

    ORIGINAL is the network as it was, TORCH the weights of the file as dense tensors, LOWERED what `lower` makes of it.
    """

    LOWERED = "lowered"
    ORIGINAL = "original"
    TORCH = "torch"


def contender(mode: Mode, file: Path, network: str, inputs: Inputs, batch: int, threads: int, log: Path) -> Peer:
    """A process that runs a network in one way; what it says includes ``layers`` if it was lowered.

    Of its memory "network" is what this network takes, activations and buffers of the libraries included; "runtime"
    what the compiler and its kernels take once per process (nothing for dense); "process" all of it.

    Args:
        mode: how it is run.
        file: a ``.gsm``.
        network: factory name.
        inputs: of the network.
        batch: samples per call.
        threads: of torch, and of the kernels, which follow it.
        log: where its errors go.

    Raises:
        DataError: the process failed; with its last line.
    """
    command = [sys.executable, "-m", "gossamer.cli.contender", mode.value, str(file), network]
    try:
        return Peer([*command, json.dumps(asdict(inputs)), str(batch), str(threads)], log)
    except DataError as error:
        reason = str(error).removeprefix("gossamer.errors.DataError: ")
        raise DataError(f"{file}, {mode.value}: {reason}") from error


def _now() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def network_of(mode: Mode, file: Path, factory: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> nn.Module:
    """The network, ready to be called."""
    if mode is Mode.ORIGINAL:
        return factory().eval()  # its weights do not matter to dense kernels
    loaded = gs.load(file, into=factory)
    return loaded.lower(inputs) if mode is Mode.LOWERED else loaded.dense()


def main(arguments: list[str]) -> None:
    """Load, say so, run on demand."""
    name, file, network, described, batch, threads = arguments
    mode = Mode(name)
    torch.set_num_threads(int(threads))
    inputs = Inputs(**json.loads(described)).of(int(batch))
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the libraries' own pools are not the network's
    nn.Linear(8, 8)(torch.randn(2, 8))
    factory = factory_of(network)
    gc.collect()
    start = _now()
    if mode is Mode.LOWERED:  # the compiler and its kernels are paid once per process, whatever the network
        warm = gs.compress(nn.Linear(64, 64), [gs.prune.Magnitude(sparsity=0.95)])
        warm.lower(torch.randn(16, 64))
        del warm
        gc.collect()
    before = _now()
    made = network_of(mode, Path(file), factory, inputs)
    gc.collect()
    run = runner(partial(made, *inputs))
    run(1)
    gc.collect()
    now = _now()
    grown = {"network": max(0, now - before), "runtime": max(0, before - start), "process": now}
    _say(
        {"version": torch.__version__, "weight_bytes": _weights(made), "resident_bytes": grown, "layers": _layers(made)}
    )
    for line in sys.stdin:
        _say(run(int(line)))


def _weights(made: nn.Module) -> int:
    from gossamer.runtime.candidates import resident_bytes
    from gossamer.runtime.lower import Lowered

    # A lowered network also holds a captured copy, which shares its weights.
    return resident_bytes(made.network if isinstance(made, Lowered) else made)


def _layers(made: nn.Module) -> list[dict[str, Any]]:
    from gossamer.runtime.lower import Lowered

    return [vars(choice) for choice in made.explain()] if isinstance(made, Lowered) else []


def _say(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
