"""Resident memory of one way of running a network, measured in a process of its own.

``python -m gossamer.cli.resident dense|lowered FILE NETWORK SHAPE BATCH`` prints one JSON document.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import gossamer as gs
from gossamer.cli.network import example_inputs, factory_of
from gossamer.errors import DataError

__all__ = ["resident_bytes"]


def resident_bytes(mode: str, file: Path, network: str, shape: str, batch: int) -> dict[str, int]:
    """Bytes that a process grows by when it loads the file and runs it once.

    "network" is what this network takes, activations and buffers of the libraries included; "runtime" what the compiler
    and its kernels take once per process (nothing for dense).

    Args:
        mode: "dense" (ordinary weights) or "lowered".
        file: a ``.gsm``.
        network: factory name.
        shape: of one sample.
        batch: samples per call.

    Raises:
        DataError: the process failed; with its last line.
    """
    command = [sys.executable, "-m", "gossamer.cli.resident", mode, str(file), network, shape, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{file}: measuring memory failed: {last[:200]}")
    grown: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return grown


def _now() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str]) -> None:
    """Measure, print, leave."""
    mode, file, network, shape, batch = arguments
    inputs = example_inputs(shape, int(batch))
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the libraries' own pools are not the network's
    nn.Linear(8, 8)(torch.randn(2, 8))
    factory = factory_of(network)
    gc.collect()
    start = _now()
    if mode == "lowered":  # the compiler and its kernels are paid once per process, whatever the network
        warm = gs.compress(nn.Linear(64, 64), [gs.prune.Magnitude(sparsity=0.95)])
        warm.lower(torch.randn(16, 64))
        del warm
        gc.collect()
    before = _now()
    loaded = gs.load(file, into=factory)
    runner = loaded.lower(inputs) if mode == "lowered" else loaded.dense()
    del loaded
    gc.collect()
    with torch.inference_mode():
        runner(inputs)
    gc.collect()
    grown = {"network": max(0, _now() - before), "runtime": max(0, before - start)}
    sys.stdout.write(json.dumps(grown) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
