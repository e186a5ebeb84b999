"""Rows of `benchmarks.runtime` for single layers, beside the peak of multiply-adds measured in the same rounds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.runtime_peak import peak
from gossamer.runtime.group_code import Way
from gossamer.runtime.tiled import GroupedLinear, tiler

__all__ = ["layer_row"]


def layer_row(shape: tuple[int, int], sparsity: float, seconds: float, *, rows: int = 1) -> dict[str, Any]:
    """The best kernel for one shape on one thread, eight matrices in turn, beside multiply-adds from registers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens, columns = 256, shape[1]
    blocks = (shape[0] // rows, columns)
    masks = [(torch.rand(blocks) >= sparsity).repeat_interleave(rows, dim=0) for _ in range(8)]
    weights = [torch.randn(shape) * mask for mask in masks]
    work = 2e-9 * tokens * sum(int(w.count_nonzero()) for w in weights)
    x = tiler().pack(torch.randn(tokens, columns))
    forms: dict[str, list[GroupedLinear]] = {
        f"{way.name.lower()}, panels of {-(-columns // panels)}": [
            GroupedLinear(w, None, way, width=-(-columns // panels)) for w in weights
        ]
        for way in (Way if rows == 1 else (Way.PATTERNS,))
        for panels in {-(-columns // width) for width in (96, 128, 192, 256, 768)}
    }
    rates: dict[str, list[float]] = {form: [] for form in forms}
    peaks: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(peaks) < 5 * len(forms):
        for form, layers in forms.items():
            peaks.append(peak().gflops())
            start = time.perf_counter()
            for layer in layers:
                layer.product(x.data)
            rates[form].append(work / (time.perf_counter() - start))
    medians = {form: float(np.median(found)) for form, found in rates.items()}
    best = max(medians, key=lambda form: medians[form])
    top = float(np.percentile(peaks, 75))
    return {
        "shape": list(shape),
        "format": "unstructured" if rows == 1 else f"{rows}x1 blocks",
        "sparsity": sparsity,
        "n": tokens,
        "kernel": best,
        "gflops": round(medians[best], 1),
        "peak_gflops": round(top, 1),
        "fraction_of_peak": round(medians[best] / top, 3),
    }
