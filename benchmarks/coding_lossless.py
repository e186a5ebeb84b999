"""Rows of `benchmarks.coding` about floats without loss: ours, ZipNN, byte shuffle + zstd, blosc2."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.coding_race import CodingPeer, in_turns
from gossamer.coding import decode_floats, encode_floats

__all__ = ["lossless_rows"]

_SMALL = 1 << 16  # bytes; smaller tensors are coded together, as `gossamer pack` has them
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _units(weights: Mapping[str, Tensor]) -> list[np.ndarray[Any, Any]]:
    raw = [tensor.reshape(-1).view(torch.uint8).numpy() for tensor in weights.values()]
    small = [part for part in raw if len(part) < _SMALL]
    return [part for part in raw if len(part) >= _SMALL] + ([np.concatenate(small)] if small else [])


def lossless_rows(source: str, weights: Mapping[str, Tensor], peer: CodingPeer | None, folder: Path) -> dict[str, Any]:
    """Rows of one source, in one run on one thread; ZipNN tensor by tensor and all in one, as its users do both.

    Args:
        source: network and dtype.
        weights: float tensors.
        peer: None: ours alone.
        folder: where arrays are exchanged.

    Returns:
        {"rows", "failed"}.
    """
    dtype = next(iter(weights.values())).dtype
    size = dtype.itemsize
    units = _units(weights)
    original = sum(map(len, units))

    rooms = [np.ones_like(unit) for unit in units]  # ours decodes into memory that is there, as `unpack` does

    def ours() -> dict[str, Any]:
        start = time.perf_counter()
        coded = [encode_floats(unit, size) for unit in units]
        middle = time.perf_counter()
        again = [decode_floats(p, len(room), size, out=room) for p, room in zip(coded, rooms, strict=True)]
        end = time.perf_counter()
        assert all(np.array_equal(a, b) for a, b in zip(again, units, strict=True))
        return {"bytes": sum(part.nbytes for part in coded), "encode_s": middle - start, "decode_s": end - middle}

    quick = {"gossamer": ours}
    slow = {}
    if peer is not None:
        file = f"{source.replace(' ', '_')}.npz"
        arrays = [tensor.reshape(-1).view(torch.uint8).numpy() for tensor in weights.values()]
        np.savez(folder / file, **{f"{i:05}": part for i, part in enumerate(arrays)})
        known = {"do": "lossless", "file": file, "itemsize": size, "dtype": _NAMES[dtype]}
        for name, whole in (("zipnn", False), ("zipnn-whole", True)):
            quick[name] = lambda whole=whole: peer.ask(coder="zipnn", whole=whole, **known)  # type: ignore[misc]
        for name in ("zstd-19", "blosc2"):
            slow[name] = lambda name=name: peer.ask(coder=name, whole=False, **known)  # type: ignore[misc]
    rows, failed = in_turns(quick, 7)
    for name, run in slow.items():
        more, broken = in_turns({name: run}, 1) if original < _PATIENCE else ({}, {name: "too slow for so many bytes"})
        rows |= more
        failed |= broken
    made = []
    for coder, row in rows.items():
        made.append(
            {
                "source": source,
                "dtype": _NAMES[dtype],
                "coder": coder,
                "ratio": row["bytes"] / original,
                "encode_gb_s": original / row["encode_s"] / 1e9,
                "decode_gb_s": original / row["decode_s"] / 1e9,
                "encode_spread": row["encode_spread"],
                "decode_spread": row["decode_spread"],
                "threads": 1,
            }
        )
        print(
            f"{source} {coder}: {made[-1]['ratio']:.4f}, {made[-1]['encode_gb_s']:.2f} / {made[-1]['decode_gb_s']:.2f} "
            "GB/s",
            flush=True,
        )
    return {"rows": made, "failed": failed}


_PATIENCE = 1 << 28  # bytes that byte shuffle + zstd-19 is given, at 2 to 5 MB/s
