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


def resident_bytes(mode: str, file: Path, network: str, shape: str, batch: int) -> int:
    """Bytes that a process grows by when it loads the file and runs it once.

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
    grown: int = json.loads(done.stdout.splitlines()[-1])["resident_bytes"]
    return grown


def _now() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str]) -> None:
    """Measure, print, leave."""
    mode, file, network, shape, batch = arguments
    inputs = example_inputs(shape, int(batch))
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the libraries' own pools are not the network's
    if mode == "lowered":
        import gossamer.runtime.lower  # noqa: F401  # the compiler is not the network either
    warm = nn.Linear(8, 8)(torch.randn(2, 8))
    del warm
    factory = factory_of(network)
    gc.collect()
    before = _now()
    loaded = gs.load(file, into=factory)
    runner = loaded.lower(inputs) if mode == "lowered" else loaded.dense()
    del loaded
    gc.collect()
    with torch.inference_mode():
        runner(inputs)
    gc.collect()
    sys.stdout.write(json.dumps({"resident_bytes": max(0, _now() - before)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
