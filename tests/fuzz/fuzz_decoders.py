"""Fuzzing of the decoders, by coverage: ``PYTHONPATH=. python tests/fuzz/fuzz_decoders.py CORPUS -max_total_time=600``.

Needs atheris, which may lie in an environment of its own, beside what Gossamer needs. Any bytes must end in
`FormatError` or in an array of the right shape and dtype; anything else, a hang (``-timeout=10``) or a large allocation
(``-rss_limit_mb=2048``) is a crash that libFuzzer keeps. Without atheris: ``--replay CORPUS.zip`` runs a corpus once.

Atheris itself keeps about 500 bytes for each input that it tries.

An input: one byte chooses what is decoded, one the coder, two the length of the table; then table and payload.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import numpy as np

if "--replay" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["gossamer.coding"]):
        from gossamer.coding import Coded, Coder, decode_floats, decode_mask, decode_sparse_symbols, decode_symbols
        from gossamer.coding.grids import decode_grid
else:
    from gossamer.coding import Coded, Coder, decode_floats, decode_mask, decode_sparse_symbols, decode_symbols
    from gossamer.coding.grids import decode_grid

from gossamer.coding.blocks import Blocks
from gossamer.errors import FormatError

# Behind the checksums of blocks, which random bytes never pass.
Blocks.block = lambda self, number: memoryview(self.payload)[self._ends[number] : self._ends[number + 1]]  # type: ignore[method-assign]

SHAPES = ((30, 40), (3, 3), (0, 5), (70_000,), (256, 300))
DTYPES = ("uint8", "int8", "int16", "int64", "bool")


def decode(data: bytes) -> None:
    """One input."""
    if len(data) < 4:
        return
    what, coder, table = data[0], Coder(data[1] % len(Coder)), int.from_bytes(data[2:4], "little")
    coded = Coded(coder, data[4 : 4 + table], data[4 + table :])
    shape, dtype = SHAPES[what % len(SHAPES)], np.dtype(DTYPES[what // 8 % len(DTYPES)])
    count = int(np.prod(shape))
    try:
        if coder.name.startswith(("FLOAT", "RAW")):
            size = (1, 2, 4, 8)[what // 8 % 4]
            found = decode_floats(coded, count * size, size)
            assert (found.shape, found.dtype) == ((count * size,), np.dtype(np.uint8))
        elif coder.name.startswith("MASK"):
            mask = decode_mask(coded, shape)
            assert (mask.shape, mask.dtype) == (shape, np.dtype(bool))
        elif coder.name.startswith("SPARSE"):
            mask, values = decode_sparse_symbols(coded, shape, dtype)
            assert mask.shape == shape and values.shape == (int(mask.sum()),) and values.dtype == dtype
        elif coder is Coder.TABLES:
            grid = decode_grid(coded, shape, dtype)
            assert (grid.shape, grid.dtype) == (shape, dtype)
        else:
            symbols = decode_symbols(coded, shape, dtype)
            assert (symbols.shape, symbols.dtype) == (shape, dtype)
    except FormatError as error:
        assert str(error) and "\n" not in str(error)


def seeds(folder: Path) -> None:
    """Good inputs, one per coder and shape, to start from."""
    from gossamer.coding import encode_floats, encode_mask, encode_sparse_symbols, encode_symbols
    from gossamer.coding.grids import encode_grid

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for place, shape in enumerate(SHAPES):
        count = int(np.prod(shape))
        q = rng.binomial(15, 0.3, shape).astype(np.uint8)
        rows = (q * (1 + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) % 3)).astype(np.uint8)
        mask = rng.random(shape) < 0.2
        weights = rng.normal(0, 0.02, count).astype("<f4")
        found = [(0, encode_symbols(q)), (0, encode_grid(rows)), (0, encode_mask(mask))]
        found.append((1, encode_sparse_symbols(mask, (q[mask] % 7).astype(np.int8) - 3)))
        found += [
            (2, encode_floats(weights.view(np.uint8), 4)),
            (1, encode_floats(weights.astype("<f2").view(np.uint8), 2)),
        ]
        found.append((2, encode_floats(np.round(weights * 200).view(np.uint8), 4)))
        found.append((2, encode_floats(np.where(mask.reshape(-1), weights, 0).astype("<f4").view(np.uint8), 4)))
        for number, (kind, coded) in enumerate(found):
            head = bytes([8 * kind + place, int(coded.coder)]) + len(coded.table).to_bytes(2, "little")
            (folder / f"{coded.coder.name.lower()}-{place}-{number}").write_bytes(head + coded.data)


def main() -> None:
    """Fuzz, replay, or write seeds."""
    if "--replay" in sys.argv:
        with zipfile.ZipFile(sys.argv[-1]) as corpus:
            names = corpus.namelist()
            for name in names:
                decode(corpus.read(name))
        sys.stdout.write(f"{len(names)} inputs, no crash\n")
        return
    seeds(Path(sys.argv[1]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atheris.Setup(sys.argv, decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
