"""What an update of the topology costs, in steps: ``python -m benchmarks.training_updates --json FILE [--threads N]``.

Every ``EVERY`` steps an update; its cost is what the step that it follows and the next one, which finds no layouts,
take longer than the median of the steps that have nothing to do with one. The last line of the output, and FILE, is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import gossamer.train as sparse
from benchmarks.rows import cpu_name
from benchmarks.training_networks import NETWORKS
from gossamer.train import SparseTraining

__all__ = ["METHODS", "update_row"]

EVERY = 5
_WARM = 6  # steps that are not counted
_LEAST = 3  # updates that are

Make = Callable[[int, str | tuple[str, ...]], SparseTraining]

METHODS: dict[str, Make] = {
    "set": lambda steps, skip: sparse.SET(sparsity=0.9, steps=steps, every=EVERY, skip=skip),
    "dsr": lambda steps, skip: sparse.DSR(sparsity=0.9, steps=steps, every=EVERY, skip=skip),
    "rigl": lambda steps, skip: sparse.RigL(sparsity=0.9, steps=steps, every=EVERY, skip=skip),
    "srigl": lambda steps, skip: sparse.SRigL(sparsity=0.9, steps=steps, every=EVERY, skip=skip),
    "snfs": lambda steps, skip: sparse.SNFS(sparsity=0.9, steps=steps, every=EVERY, window=1, skip=skip),
    "nofm": lambda steps, skip: sparse.NofM(n=1, m=8, steps=steps, every=EVERY, skip=skip),
}
"""At 90%, or 1 of 8; SNFS with a window of one step, so that other steps have no dense gradient."""


def update_row(name: str, method: str, threads: int, seconds: float) -> dict[str, Any]:
    """One network with one method.

    Args:
        name: of the network, one of `NETWORKS`.
        method: one of `METHODS`.
        threads: of PyTorch and of the kernels.
        seconds: of measuring.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    network = NETWORKS[name]
    made = METHODS[method](10**6, network.dense)
    model = sparse.sparsify(network.make(), made)
    optimizer = network.optimizer(list(model.parameters()))
    sparsifier = sparse.Sparsifier(model, optimizer, made)
    generator = torch.Generator().manual_seed(1)
    batches = [(network.inputs(network.batch, generator), network.targets(network.batch, generator)) for _ in range(4)]
    times: list[float] = []
    updated: list[bool] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < _WARM + EVERY * (_LEAST + 1):
        inputs, targets = batches[len(times) % len(batches)]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        update = sparsifier.step()
        times.append(1e3 * (time.perf_counter() - start))
        updated.append(update is not None)
    counted = range(_WARM, len(times) - 1)
    step = statistics.median(times[i] for i in counted if not updated[i] and not updated[i - 1])
    costs = [times[i] + times[i + 1] - 2 * step for i in counted if updated[i]]
    cost = statistics.median(costs)
    return {
        "network": name,
        "method": method,
        "sparsity": round(sparsifier.sparsity, 4),
        "threads": threads,
        "updates": len(costs),
        "step_ms": round(step, 3),
        "update_ms": round(cost, 3),
        "update_spread_ms": [round(min(costs), 3), round(max(costs), 3)],
        "steps": round(cost / step, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of measuring each method")
    parser.add_argument("--network", choices=NETWORKS, default=next(iter(NETWORKS)))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    rows = []
    for method in given.methods:
        rows.append(update_row(given.network, method, given.threads, given.seconds))
        row = rows[-1]
        print(
            f"{row['network']} {method}: {row['update_ms']} ms, {row['steps']} steps of {row['step_ms']} ms", flush=True
        )
    text = json.dumps({"cpu": cpu_name(), "torch": torch.__version__, "updates": rows})
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
