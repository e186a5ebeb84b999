"""A row of `benchmarks.coding`: from a cold file to a network that runs, beside safetensors reading the dense file."""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import gossamer as gs
from benchmarks.zoo.minilm import load_minilm, minilm

__all__ = ["load_row"]


def _forget(file: Path) -> None:
    """What Linux keeps of a file in memory is dropped, so that it is read from the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def load_row(checkpoint: Path, folder: Path, threads: int, repeats: int = 15) -> dict[str, Any]:
    """Seconds from either file, in turns, both read cold.

    `load_file` maps the file, so a number of each page is read, too; a network is not made of it. Ours ends with a
    network in eval mode.
    """
    torch.set_num_threads(threads)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(threads))
    small = folder / "minilm.gsm"
    recipe = [gs.quantize.RoundToNearest(bits=4, group=64, scale_dtype="float16", only="*.weight", skip="*LayerNorm*")]
    gs.compress(load_minilm(checkpoint), recipe).save(small)

    def ours() -> object:
        return gs.load(small, into=minilm).dense()

    def theirs() -> object:
        found = load_file(checkpoint)
        return [float(tensor.reshape(-1)[::1024].double().sum()) for tensor in found.values()]

    times: dict[str, list[float]] = {"gsm": [], "safetensors": []}
    for turn in range(repeats + 1):
        for name, file, run in (("gsm", small, ours), ("safetensors", checkpoint, theirs)):
            gc.collect()
            _forget(file)
            start = time.perf_counter()
            made = run()
            if turn:
                times[name].append(time.perf_counter() - start)
            del made
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    row: dict[str, Any] = {"source": "minilm rtn 4-bit g64", "threads": threads, "file_bytes": small.stat().st_size}
    row["dense_bytes"] = checkpoint.stat().st_size
    for name, found in times.items():
        row[f"{name}_s"] = statistics.median(found)
        row[f"{name}_spread"] = round((max(found) - min(found)) / row[f"{name}_s"], 2)
    print(
        f"load, {threads} threads: {1e3 * row['gsm_s']:.0f} ms, dense {1e3 * row['safetensors_s']:.0f} ms", flush=True
    )
    return row
