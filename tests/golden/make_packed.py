"""Make the golden packed files of one format version. Run once per version, then never again: files are read for ever.

    PYTHONPATH=tests python tests/golden/make_packed.py

Refuses to overwrite. The dense files are not kept: numbers come from a generator that gives the same everywhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from golden.make import Numbers
from store.dense import write_dense

import gossamer as gs

HERE = Path(__file__).parent
VERSION = 1
NAMES = ("packed", "difference")


def many() -> np.ndarray:
    """Ones, and 301 other numbers once each."""
    place = np.arange(40_000)
    return np.where(place % 133 == 0, 1.0 + place / (1 << 18), 1.0).astype("<f4")


def dense(folder: Path) -> Path:
    """Every coder, small and in blocks; empty, scalar, packed and unknown dtypes; blanks behind the header."""
    n = Numbers(1)
    floats = n.floats(400).numpy()
    few = (np.arange(40_000) % 997 == 5).astype(np.int8)
    sparse = np.where(few, np.float32(0.5) + np.arange(40_000, dtype=np.float32) / 65536, np.float32(0))
    drift = many()
    path = folder / "packed.safetensors"
    write_dense(
        path,
        {
            "floats": ("F32", (20, 20), floats.astype("<f4").tobytes()),
            "halves": ("F16", (400,), floats.astype("<f2").tobytes()),
            "brain": ("BF16", (400,), (floats.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()),
            "sparse": ("F32", (200, 200), sparse.astype("<f4").tobytes()),
            "drift": ("F32", (40_000,), drift.tobytes()),
            "few": ("I8", (40_000,), few.tobytes()),
            "symbols": ("U8", (300,), n.symbols(9, 300).numpy().tobytes()),
            "wide": ("I32", (100,), (np.arange(100, dtype="<i4") * 77_777_777).astype("<i4").tobytes()),
            "steps": ("I64", (50,), np.arange(50, dtype="<i8").tobytes()),
            "same": ("U16", (90,), b"\x05\x01" * 90),
            "noise": ("F8_E4M3", (64,), bytes(n.next() >> 8 for _ in range(64))),
            "four": ("F4", (2, 8), bytes(n.next() >> 8 for _ in range(8))),
            "new": ("F2_UNKNOWN", (5,), b"abc"),
            "none": ("F64", (0, 3), b""),
            "one": ("BOOL", (), b"\1"),
        },
        metadata={"format": "pt", "made by": "tests/golden/make_packed.py"},
        blanks=11,
    )
    return path


def fine_tuned(folder: Path) -> Path:
    """Tensors of `dense` that are the same, moved a little, and moved far; and one that is new."""
    n = Numbers(1)
    floats = n.floats(400).numpy().astype("<f4")
    moved = (floats.view("<i4") + np.arange(400, dtype="<i4") % 3).view("<f4")
    drift = many()
    drift[::1000] = np.nextafter(drift[::1000], np.float32(9), dtype="<f4")
    flipped = (floats.astype("<f2").view("<u2") ^ (np.arange(400, dtype="<u2") % 7 == 0).astype("<u2") << 15).astype(
        "<u2"
    )
    path = folder / "difference.safetensors"
    write_dense(
        path,
        {
            "floats": ("F32", (20, 20), moved.tobytes()),
            "halves": ("F16", (400,), flipped.tobytes()),
            "drift": ("F32", (40_000,), drift.tobytes()),
            "few": ("I8", (40_000,), (np.arange(40_000) % 997 == 5).astype(np.int8).tobytes()),
            "steps": ("I64", (50,), (np.arange(50, dtype="<i8") + 1).tobytes()),
            "added": ("F32", (30,), floats[:30].tobytes()),
        },
    )
    return path


def made(folder: Path) -> dict[str, Path]:
    """Both packed anew, by name."""
    base, tuned = dense(folder), fine_tuned(folder)
    gs.pack(base, folder / "packed", workers=1)
    gs.pack(tuned, folder / "difference", reference=base, workers=1)
    return {name: folder / name for name in NAMES}


def main() -> int:
    """Write what is missing; an error if anything is there already."""
    paths = {name: HERE / f"{name}.v{VERSION}.packed" for name in NAMES}
    present = [p.name for p in paths.values() if p.exists()]
    if present:
        sys.stderr.write(f"found {', '.join(present)}: golden files are never overwritten\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for name, path in made(Path(folder)).items():
            paths[name].write_bytes(path.read_bytes())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
