"""Runs one ONNX file in one peer, on demand: ``PYTHON runtime_worker.py KIND FILE THREADS``, with the peer's Python.

Prints one line of JSON when ready, ``{"version": …}``. Then every line on standard input, a number of runs, is answered
by one line, the milliseconds of each run. Imports nothing of Gossamer; waits without using the processor.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def onnxruntime_of(file: str, threads: int, *, int8: bool) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    import onnxruntime as ort

    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        smaller = str(Path(file).with_suffix(".int8.onnx"))
        quantize_dynamic(file, smaller, weight_type=QuantType.QInt8)
        file = smaller
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others take turns on these cores
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return ort.__version__, lambda feed: session.run(None, feed)


def openvino_of(file: str, threads: int, precision: str) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(file, "CPU", settings)
    request = compiled.create_infer_request()
    return ov.__version__, request.infer


def deepsparse_of(file: str, threads: int, batch: int) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    import deepsparse

    engine = deepsparse.compile_model(file, batch_size=batch, num_cores=threads)
    return deepsparse.__version__, lambda feed: engine.run(list(feed.values()))


def main() -> None:
    import numpy as np

    kind, file, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    x = np.load(Path(file).with_suffix(".npy"))
    if kind in ("onnxruntime", "onnxruntime_int8"):
        version, run = onnxruntime_of(file, threads, int8=kind.endswith("int8"))
    elif kind in ("openvino", "openvino_bf16"):
        version, run = openvino_of(file, threads, "bf16" if kind.endswith("bf16") else "f32")
    elif kind == "deepsparse":
        version, run = deepsparse_of(file, threads, len(x))
    else:
        raise SystemExit(f"found peer {kind!r}, expected onnxruntime, openvino or deepsparse")
    for _ in range(2):
        run({"x": x})
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run({"x": x})
            taken.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
