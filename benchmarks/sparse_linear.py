"""Sparse Linear layers against dense PyTorch: ``python -m benchmarks.sparse_linear --json FILE [--quick]``.

Both networks take turns within one run, so that whatever else the machine does meets both alike. The last line of
the output, and FILE, is one JSON document; times are milliseconds per forward pass. Rows whose ``others_busy`` (cores
used by other processes meanwhile) is far from 0 say little, above all with more than one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.jit.cpu import processor_name
from gossamer.runtime.linear import SparseLinear

NETWORKS = {
    "mlp-3x2048": ([2048, 2048, 2048, 2048], (0.8, 0.9, 0.95)),
    "lenet-300-100": ([784, 300, 100, 10], (0.9, 0.95)),
}
BATCHES = (1, 16, 64, 256)
THREADS = (1, 2)


@final
class Stack(nn.Module):
    """Sparse layers in a row."""

    def __init__(self, layers: list[SparseLinear]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    @property
    def resident_bytes(self) -> int:
        return sum(layer.resident_bytes for layer in self.layers if isinstance(layer, SparseLinear))


def build(sizes: list[int], sparsity: float) -> tuple[nn.Sequential, Stack]:
    """A dense network with zeros at random places, with He initialisation of what is left, and the same one sparse."""
    dense, sparse = nn.Sequential(), []
    for i, (columns, rows) in enumerate(pairwise(sizes)):
        linear = nn.Linear(columns, rows)
        last = i == len(sizes) - 2
        scale = (2 / (columns * (1 - sparsity))) ** 0.5
        with torch.no_grad():
            linear.weight.copy_(scale * torch.randn(rows, columns) * (torch.rand(rows, columns) >= sparsity))
        flat = linear.weight.detach().flatten()
        positions = flat.nonzero().flatten()
        dense.append(linear)
        if not last:
            dense.append(nn.ReLU())
        sparse.append(SparseLinear((rows, columns), positions, flat[positions], linear.bias, relu=not last))
    return dense.eval(), Stack(sparse).eval()


def interleaved(a: Callable[[], Any], b: Callable[[], Any], seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds per call of two functions that take turns, in samples of about half a millisecond or one call."""

    def sample(f: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            f()
        return (time.perf_counter() - start) / count

    counts = []
    for f in (a, b):
        f()
        counts.append(max(1, int(5e-4 / min(sample(f, 1) for _ in range(5)))))
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for f, count, kept in zip((a, b), counts, times, strict=True):
            sample(f, 1)  # the other one has just filled the caches
            kept.append(1e3 * sample(f, count))
    return times


def busy_seconds() -> float:
    """Seconds that all cores together have been busy since the machine started; 0 where Linux does not tell."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def least_disturbed(
    a: Callable[[], Any], b: Callable[[], Any], seconds: float
) -> tuple[list[float], list[float], float]:
    """Of up to three measurements the one during which other processes used the fewest cores; and how many.

    On a machine with as many busy processes as cores, a parallel region waits whole time slices for its other threads,
    and nothing can be concluded. The choice does not look at the times measured.
    """
    best: tuple[list[float], list[float], float] | None = None
    for _ in range(3):
        start, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
        times = interleaved(a, b, seconds)
        elapsed = time.perf_counter() - start
        others = max(0.0, (busy_seconds() - busy - (time.process_time() - own)) / elapsed)
        if best is None or others < best[2]:
            best = (*times, round(others, 2))
        if others < 0.1:
            break
    assert best is not None
    return best


def quartiles(times: list[float]) -> tuple[float, float]:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return round(float(middle), 5), round(float(high - low), 5)


def measure(*, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    rows = []
    for name, (sizes, sparsities) in NETWORKS.items():
        for sparsity in sparsities:
            dense, sparse = build(sizes, sparsity)
            exact = nn.Sequential(*dense).double()
            inputs = {batch: torch.randn(batch, sizes[0]) for batch in BATCHES}
            with torch.inference_mode():
                wanted = {batch: exact(x.double()) for batch, x in inputs.items()}
                exact.float()
                for threads in THREADS:
                    torch.set_num_threads(threads)
                    for batch, x in inputs.items():
                        error = float((sparse(x) - wanted[batch]).abs().max() / wanted[batch].abs().max())
                        ours, torchs, others = least_disturbed(
                            partial(sparse, x), partial(dense, x), 0.3 if quick else 2.0
                        )
                        ms, iqr = quartiles(ours)
                        torch_ms, torch_iqr = quartiles(torchs)
                        rows.append(
                            {
                                "network": name,
                                "sparsity": sparsity,
                                "batch": batch,
                                "threads": threads,
                                "ms": ms,
                                "ms_iqr": iqr,
                                "torch_ms": torch_ms,
                                "torch_ms_iqr": torch_iqr,
                                "speed_up": round(torch_ms / ms, 3),
                                "max_rel_err": error,
                                "resident_bytes": sparse.resident_bytes,
                                "dense_bytes": sum(4 * a * b for a, b in pairwise(sizes)),
                                "others_busy": others,
                            }
                        )
                        print(
                            f"{name} {sparsity:.0%} batch {batch:>3} threads {threads}: {ms:.4f} ms, "
                            f"torch {torch_ms:.4f} ms, {torch_ms / ms:.2f}x"
                            + (f" (other processes kept {others:.2f} cores busy)" if others >= 0.1 else ""),
                            flush=True,
                        )
    return {"cpu": processor_name(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="shorter samples")
    given = parser.parse_args()
    text = json.dumps(measure(quick=given.quick))
    if given.json:
        given.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
