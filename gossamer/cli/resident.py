"""Resident memory of one way of running a network, measured in a process of its own.

``python -m gossamer.cli.resident MODE FILE NETWORK INPUTS BATCH`` prints one JSON document.
"""

from __future__ import annotations

import enum
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.cli.network import Inputs, factory_of
from gossamer.errors import DataError

__all__ = ["Mode", "resident_bytes", "runner_of"]


class Mode(enum.Enum):
    """Ways of running a network.

    ORIGINAL is the network as it was, TORCH the weights of the file as dense tensors, LOWERED what `lower` makes of it.
    """

    ORIGINAL = "original"
    TORCH = "torch"
    LOWERED = "lowered"


def resident_bytes(mode: Mode, file: Path, network: str, inputs: Inputs, batch: int) -> dict[str, int]:
    """Bytes that a process grows by when it loads the file and runs it once.

    "network" is what this network takes, activations and buffers of the libraries included; "runtime" what the compiler
    and its kernels take once per process (nothing for dense); "process" all that the process holds at the end.

    Args:
        mode: how it is run.
        file: a ``.gsm``.
        network: factory name.
        inputs: of the network.
        batch: samples per call.

    Raises:
        DataError: the process failed; with its last line.
    """
    command = [sys.executable, "-m", "gossamer.cli.resident", mode.value, str(file), network]
    command += [json.dumps(asdict(inputs)), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{file}: measuring memory failed: {last[:200]}")
    grown: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return grown


def _now() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def runner_of(mode: Mode, file: Path, factory: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> nn.Module:
    """The network, ready to be called."""
    if mode is Mode.ORIGINAL:
        return factory().eval()
    loaded = gs.load(file, into=factory)
    return loaded.lower(inputs) if mode is Mode.LOWERED else loaded.dense()


def main(arguments: list[str]) -> None:
    """Measure, print, leave."""
    name, file, network, described, batch = arguments
    mode = Mode(name)
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
    runner = runner_of(mode, Path(file), factory, inputs)
    gc.collect()
    with torch.inference_mode():
        runner(*inputs)
    gc.collect()
    now = _now()
    grown = {"network": max(0, now - before), "runtime": max(0, before - start), "process": now}
    sys.stdout.write(json.dumps(grown) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
