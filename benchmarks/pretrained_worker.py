"""One row of `benchmarks.pretrained` in a process of its own, so that its peak memory is its own.

``python -m benchmarks.pretrained_worker --zoo DIR [--quick] NETWORK METHOD SETTING`` prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretrained_settings import SETTINGS, Setting
from benchmarks.rows import ROOT
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.pretrained import PRETRAINED, Pretrained
from gossamer.api import compress, load
from gossamer.drive.calls import call
from gossamer.errors import GossamerError
from gossamer.measure.latency import interleaved
from gossamer.measure.ledger import ledger_of

__all__ = ["dense_values", "row"]


def dense_values(subject: Pretrained) -> dict[str, Any]:
    """What the dense network reaches."""
    network = subject.dense()
    return {name: measure(network) for name, measure in subject.metrics.items()}


def row(subject: Pretrained, setting: Setting, *, quick: bool) -> dict[str, Any]:
    """Compress, write, read back, measure.

    Args:
        subject: the network.
        setting: how.
        quick: with an eighth of the samples.

    Returns:
        values by metric; file_bytes, dense_bytes of fp32 safetensors; seconds of compressing and writing; the process's
        peak_rss_bytes until then, and rss_bytes before; latency_ms of the file lowered, on the subject's inputs, in
        turns with the dense network in PyTorch.
    """
    network = subject.dense()
    samples = max(8, setting.samples // 8) if quick else setting.samples
    data = subject.calibration(samples) if setting.samples else None
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.gsm"
        before = _peak()
        start = time.perf_counter()
        small = compress(network, setting.recipe, data=data, loss=subject.loss)
        size = small.save(path)
        seconds = time.perf_counter() - start
        peak = _peak()
        del small, network
        values = {}
        again = load(path, into=subject.factory).dense()
        for name, measure in subject.metrics.items():
            values[name] = measure(again)
        ledger = ledger_of(path, zstd=False)
        inputs = subject.inputs()
        fast, dense = load(path, into=subject.factory).lower(inputs), subject.dense()
        times = interleaved({"ours": lambda: call(fast, inputs), "dense": lambda: call(dense, inputs)}, seconds=4.0)
    assert size == ledger.file_bytes
    return {
        "values": values,
        "file_bytes": size,
        "dense_bytes": ledger.dense_bytes,
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak,
        "rss_before_bytes": before,
        "samples": samples if setting.samples else 0,
        "latency_ms": round(times["ours"].median_ms, 3),
        "dense_latency_ms": round(times["dense"].median_ms, 3),
        "threads": torch.get_num_threads(),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("network", choices=sorted(PRETRAINED))
    parser.add_argument("method", help='of the setting, or "dense"')
    parser.add_argument("setting", nargs="?", default="")
    given = parser.parse_args()
    zoo = Zoo(given.zoo, ROOT / "benchmarks" / "out" / "zoo", quick=given.quick)
    try:
        subject = PRETRAINED[given.network](zoo)
        if given.method == "dense":
            found: dict[str, Any] = {"values": dense_values(subject)}
        else:
            wanted = (given.network, given.method, given.setting)
            setting = next(s for s in SETTINGS if (s.network, s.method, s.setting) == wanted)
            found = row(subject, setting, quick=given.quick)
    except GossamerError as error:
        found = {"error": " ".join(str(error).split())}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
