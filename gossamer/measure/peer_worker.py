"""Runs one ONNX file in one peer, on demand: ``PYTHON peer_worker.py KIND FILE THREADS``, with the peer's Python.

Prints one line of JSON when ready: ``{"version", "weight_bytes", "resident_bytes": {"network", "runtime",
"process"}}``. Then every line on standard input, a number of runs, is answered by one line, the milliseconds of each
run. Imports nothing of Gossamer; waits without using the processor.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Session = tuple[str, str, Callable[[dict[str, Any]], Any]]
"""Version, the file that is run, and how to run it."""


def onnxruntime_of(library: Any, file: str, threads: int, *, int8: bool) -> Session:
    """A session with every optimisation of the graph."""
    if int8:
        quantization = importlib.import_module("onnxruntime.quantization")
        smaller = str(Path(file).with_suffix(".int8.onnx"))
        quantization.quantize_dynamic(file, smaller, weight_type=quantization.QuantType.QInt8)
        file = smaller
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads spin within a run, but not into the turn of another.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = library.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return library.__version__, file, lambda feed: session.run(None, feed)


def openvino_of(library: Any, file: str, threads: int, precision: str) -> Session:
    """A request of a network compiled for latency, its threads pinned."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": True,
    }
    request = library.Core().compile_model(file, "CPU", settings).create_infer_request()
    return library.__version__, file, lambda feed: request.infer(feed, share_inputs=True, share_outputs=True)


def deepsparse_of(library: Any, file: str, threads: int, batch: int) -> Session:
    """An engine for one size of batches."""
    engine = library.compile_model(file, batch_size=batch, num_cores=threads)
    return library.__version__, file, lambda feed: engine.run(list(feed.values()))


def resident() -> int:
    """Bytes of this process in memory; 0 where Linux does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def main() -> None:
    """Load, say so, run on demand."""
    import numpy as np

    kind, file, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with np.load(Path(file).with_suffix(".npz")) as stored:
        feed = {name: stored[name] for name in stored.files}
    bare = resident()
    library = importlib.import_module(kind.partition("_")[0])
    before = resident()
    if kind in ("onnxruntime", "onnxruntime_int8"):
        version, ran, run = onnxruntime_of(library, file, threads, int8=kind.endswith("int8"))
    elif kind in ("openvino", "openvino_bf16"):
        version, ran, run = openvino_of(library, file, threads, "bf16" if kind.endswith("bf16") else "f32")
    elif kind == "deepsparse":
        version, ran, run = deepsparse_of(library, file, threads, len(next(iter(feed.values()))))
    else:
        raise SystemExit(f"found peer {kind!r}, expected onnxruntime, openvino or deepsparse")
    for _ in range(2):
        run(feed)
    gc.collect()
    now = resident()
    answer(
        {
            "version": version,
            "weight_bytes": Path(ran).stat().st_size,
            "resident_bytes": {
                "network": max(0, now - before),
                "runtime": max(0, before - bare),
                "process": now,
            },
        }
    )
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run(feed)
            taken.append(1e3 * (time.perf_counter() - start))
        answer(taken)


def answer(document: Any) -> None:
    """One line of JSON to whoever started this."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
