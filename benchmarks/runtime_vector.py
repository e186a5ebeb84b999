"""Sparse matrix × vector beside torch's dense one: ``python -m benchmarks.runtime_vector [--size 4096] [--tokens 1]``.

One thread. All kernels and torch take turns in short rounds; the least time of processor per call counts, so that other
processes disturb little. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from gossamer.runtime.vector import Positions, VectorLinear, has_bitmaps
from gossamer.runtime.vector_values import Storage

__all__ = ["SPARSITIES", "vector_rows"]

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
KINDS = (Storage.FLOAT32, Storage.BFLOAT16, Storage.INT8, Storage.CODEBOOK4)


def vector_rows(
    size: int = 4096, tokens: int = 1, sparsities: Sequence[float] = SPARSITIES, *, rounds: int = 12
) -> list[dict[str, Any]]:
    """Times of a square weight with zeros at random places.

    Args:
        size: rows and columns.
        tokens: vectors per product.
        sparsities: shares of zeros.
        rounds: in which everything takes turns, about 20 ms each.

    Returns:
        One row per sparsity, way to hold positions and kind of values: milliseconds, torch's milliseconds, bytes held
        as a share of the dense ones, and the largest error beside float64 and the largest output.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for sparsity in sparsities for row in _rows(size, tokens, sparsity, rounds)]
    finally:
        torch.set_num_threads(before)


def _rows(size: int, tokens: int, sparsity: float, rounds: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    kept = torch.rand(size, size, generator=draw) >= sparsity
    weight = torch.randn(size, size, generator=draw) * kept
    few = torch.randn(15, generator=draw)[torch.randint(15, (size, size), generator=draw)] * kept
    x = torch.randn(tokens, size, generator=draw)
    dense = torch.nn.Linear(size, size, bias=False)
    layers: dict[tuple[Positions, Storage], VectorLinear] = {}
    rows = []
    with torch.inference_mode():
        dense.weight.copy_(weight)
        for held in Positions if has_bitmaps() else (Positions.INDEX,):
            for kind in KINDS:
                stored = few if kind is Storage.CODEBOOK4 else weight
                layers[held, kind] = VectorLinear(stored, None, held=held, stored=kind)
        times = _least({None: partial(dense, x), **{k: partial(layer, x) for k, layer in layers.items()}}, rounds)
        for (held, kind), layer in layers.items():
            exact = x.double() @ (few if kind is Storage.CODEBOOK4 else weight).double().T
            ms, torch_ms = (1e3 * times[key] for key in ((held, kind), None))
            rows.append(
                {
                    "shape": [size, size],
                    "n": tokens,
                    "sparsity": sparsity,
                    "format": f"vector by {held.name.lower()}, {kind.name.lower()}",
                    "ms": round(ms, 4),
                    "torch_ms": round(torch_ms, 4),
                    "speed_up": round(torch_ms / ms, 2),
                    "resident_fraction": round(layer.resident_bytes / (4 * size * size), 4),
                    "max_rel_err": float((layer(x) - exact).abs().max() / exact.abs().max()),
                }
            )
    return rows


def _least(calls: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Seconds of processor time per call."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for key, call in calls.items():
            call()  # the others have just filled the caches
            start, count = time.thread_time(), 0
            while time.thread_time() - start < 0.02:
                call()
                count += 1
            best[key] = min(best[key], (time.thread_time() - start) / count)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1)
    given = parser.parse_args()
    rows = vector_rows(given.size, given.tokens)
    for row in rows:
        print(
            f"{row['sparsity']:.0%} {row['format']}: {row['ms']:.3f} ms, torch {row['torch_ms']:.3f}, "
            f"{row['speed_up']:.2f}x, {row['resident_fraction']:.3f} of the bytes, error {row['max_rel_err']:.1e}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
