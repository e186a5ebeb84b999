"""Make the golden files of one format version. Run once per version, then never again: files are read for ever.

    python tests/golden/make.py

Refuses to overwrite. Numbers come from a generator of this file's own, so that the same trees can be made anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gossamer.encoding import (
    CP,
    NM,
    Affine,
    Blocks,
    Codebook,
    Concat,
    Constant,
    Convolutional,
    Dense,
    Drawn,
    Encoding,
    Hashed,
    Interpolation,
    Kept,
    KernelBasis,
    KernelShapes,
    Kind,
    LowRank,
    Mask,
    Masked,
    Monarch,
    NormalLevels,
    Permuted,
    PowerLevels,
    Rotated,
    Scaled,
    Sum,
    TensorSpec,
    TensorTrain,
    Tucker,
    VectorCodebook,
    View,
)
from gossamer.store import write_container
from gossamer.store.safetensors_file import write_safetensors

HERE = Path(__file__).parent

Trees = dict[str, Encoding]


class Numbers:
    """A linear congruential generator: the same numbers on every machine, for ever."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> int:
        """0 to 65535."""
        self._state = (1103515245 * self._state + 12345) % (1 << 31)
        return self._state >> 15

    def floats(self, *shape: int) -> Tensor:
        """Multiples of 1/8 from −4 to 4: sums of products of three are exact in float32, in any order."""
        count = int(torch.Size(shape).numel())
        return torch.tensor([((self.next() >> 10) - 32) / 8 for _ in range(count)], dtype=torch.float32).view(shape)

    def symbols(self, below: int, *shape: int) -> Tensor:
        """Small ones more often."""
        count = int(torch.Size(shape).numel())
        numbers = [self.next() * self.next() * below >> 32 for _ in range(count)]
        return torch.tensor(numbers, dtype=torch.uint8).view(shape)

    def mask(self, share: float, *shape: int) -> Tensor:
        count = int(torch.Size(shape).numel())
        return torch.tensor([self.next() < share * 65536 for _ in range(count)], dtype=torch.bool).view(shape)


def masked_codebook(n: Numbers, share: float, *shape: int) -> Masked:
    where = Mask.of(n.mask(share, *shape))
    size = int(torch.Size(shape).numel())
    return Masked(where, Codebook(size, size, n.symbols(6, where.positions().numel()), Dense(n.floats(1, 6))))


def pruned() -> Trees:
    """Masks of every kind over plain, shared and quantized values; biases on a grid."""
    n = Numbers(1)
    where = Mask.of(n.mask(0.3, 12, 16))
    live = where.positions().numel()
    grid = Affine(16, 5, n.symbols(16, live), Dense(n.floats(48).abs() + 1), n.symbols(16, 48), 4)
    nm = NM(n.symbols(6, 12).to(torch.int16), (6, 8), 2, 4)
    blocks = Blocks.of(n.mask(0.5, 3, 2), (5, 7), (2, 4))
    return {
        "shared": masked_codebook(n, 0.1, 20, 24),
        "grid": Masked(where, grid),
        "half": Masked(nm, Dense(n.floats(24).half())),
        "blocks": Masked(blocks, Dense(n.floats(blocks.positions().numel()).bfloat16())),
        "bias": Affine(12, 12, n.symbols(255, 12), Dense(n.floats(1)), 128),
        "dead": Masked(Mask.of(torch.zeros(2, 3, dtype=torch.bool)), Dense(torch.zeros(0))),
    }


def factors() -> Trees:
    """Every factorization, with factors that are compressed themselves."""
    n = Numbers(2)

    def dense(*shape: int) -> Dense:
        return Dense(n.floats(*shape))

    sparse = Mask.of(n.mask(0.2, 5, 4))
    return {
        "low_rank": LowRank(masked_codebook(n, 0.5, 8, 3), dense(3, 6)),
        "conv": Tucker(dense(2, 2, 3, 3), (dense(6, 2), dense(4, 2), None, None)),
        "cp": CP((dense(4, 2), dense(3, 2), dense(2, 2))),
        "train": TensorTrain((dense(1, 2, 3, 2), dense(2, 3, 2, 1))),
        "monarch": Monarch(dense(2, 3, 2), dense(2, 2, 3)),
        "sum": Sum((LowRank(dense(5, 1), dense(1, 4)), Masked(sparse, dense(sparse.positions().numel())))),
    }


def joined() -> Trees:
    """Shrunk layers, turned and joined weights, scales, sharing between tensors, buffers of other dtypes."""
    n = Numbers(3)
    channels = Mask.of(n.mask(0.6, 6))
    kept = channels.positions().numel()
    table = Dense(n.floats(1, 4))
    first, second = (Codebook(12, 12, n.symbols(4, 4, 3), table) for _ in range(2))
    variance = Dense(n.floats(kept).abs(), fixed=True)
    return {
        "conv": Kept(Dense(n.floats(kept, 2, 3)), (channels, None, None), (1, 1, 1)),
        "next": Kept(Dense(n.floats(3, kept * 2)), (None, channels), (1, 2)),
        "variance": Kept(variance, (channels,), (1,), 1.0),
        "turned": View(masked_codebook(n, 0.4, 4, 3, 2), (1, 0, 2)),
        "gates": Concat((first, second, first)),
        "tied": second,
        "scaled": Scaled(Dense(n.floats(4, 3)), Dense(n.floats(3)), Dense(n.floats(4))),
        "count": Dense(torch.tensor(12345)),
        "flags": Dense(torch.tensor([True, False, True])),
        "double": Dense(n.floats(3).double()),
    }


def levels() -> Trees:
    """Levels that formulas give, plain and under masks, casts, constants."""
    n = Numbers(4)
    where = Mask.of(n.mask(0.4, 6, 10))
    live = where.positions().numel()
    normal = NormalLevels(10, 4, n.symbols(16, 6, 10), Dense(n.floats(18).abs() + 1))
    powers = PowerLevels(10, 10, n.symbols(7, live), n.symbols(9, 6).to(torch.int8) - 4, 3)
    return {
        "normal": normal,
        "sparse_normal": Masked(where, NormalLevels(60, 60, n.symbols(4, live), Dense(n.floats(1).half()), 2)),
        "powers": Masked(where, powers),
        "ternary": Affine(10, 10, n.symbols(3, 6, 10), Dense(n.floats(6).abs() + 1), 1, 2),
        "cast": Dense(n.floats(5, 8).to(torch.float8_e4m3fn), fixed=True),
        "shift": Constant((6,), 1 - 1e-5),
    }


def structured() -> Trees:
    """Vectors, hashes, predictions, translations, permutations and kernel shapes."""
    n = Numbers(5)
    shapes = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    choice = torch.tensor([0, 2, 1, 1, 0, 0], dtype=torch.uint8)
    nm = Masked(NM(n.symbols(6, 6).to(torch.int16), (3, 8), 2, 4), Dense(n.floats(12)))
    basis = KernelBasis(6, (1, 4, 5), (0.0, 1.5, 2), 0.01, 3, (20,))
    return {
        "vectors": VectorCodebook(n.symbols(5, 4, 3), Dense(n.floats(1, 5, 2)), (6,)),
        "hashed": Hashed(Dense(n.floats(7)), (4, 3, 2), 0xFFFF_FFFF_FFFF_FFFF),
        "predicted": LowRank(Dense(n.floats(2, 6)), basis),
        "toeplitz": Convolutional(Dense(n.floats(1, 1, 1, 8)), (1, 5), (1, 4), offset=(0, -4)),
        "tiles": Convolutional(Dense(n.floats(8, 1, 2, 2)), (3, 4), (4, 5), tiles=(2, 2)),
        "permuted": Permuted.of(nm, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])),
        "kernels": Masked(KernelShapes(choice, shapes, (3, 2, 2, 2)), Dense(n.floats(10))),
    }


def interpolated() -> Trees:
    """Low rank of which some rows are stored as they are."""
    n = Numbers(6)
    rows = Mask.of(torch.tensor([False, True, True, False, True, False, False]))
    return {"interpolated": LowRank(Interpolation(Dense(n.floats(4, 3)), rows), Dense(n.floats(3, 5)))}


def turned() -> Trees:
    """Quantized weights in rotated coordinates."""
    n = Numbers(6)
    grid = Affine(24, 8, n.symbols(16, 3, 24), Dense(n.floats(9).abs() + 1), n.symbols(16, 9), 4)
    return {
        "rotated": Rotated(grid, 4, 0x0123_4567_89AB_CDEF),
        "rotated_conv": Rotated(Dense(n.floats(2, 4, 2, 2)), 16, 1),
    }


def drawn() -> Trees:
    """Weights that a generator draws."""
    n = Numbers(7)

    def index(below: int, count: int) -> Tensor:
        return torch.tensor([n.next() * below >> 16 for _ in range(count)], dtype=torch.int32)

    where = Mask.of(n.mask(0.4, 6, 10))
    live = where.positions().numel()
    half = Dense(torch.tensor([0.0625 + 2**-12]).half())
    return {
        "drawn": Drawn(index(1 << 14, 40), half, (16, 5, 3, 3), 0xFFFF_FFFF_FFFF_FFFF, "conv.weight", 14),
        "drawn_bias": Drawn(index(1 << 9, 1), Dense(torch.tensor([0.75])), (11,), 5, "bias", 9),
        "drawn_survivors": Masked(where, Drawn(index(1 << 16, 9) << 8, half, (live,), 5, "w#/value", 24)),
        "drawn_table": Hashed(Drawn(index(32, 3), Dense(n.floats(1).abs() + 1), (7,), 5, "w#/table", 5), (4, 3, 2), 9),
    }


def short() -> Trees:
    """A weight large enough for the coder that came with version 3."""
    n = Numbers(8)
    return {"short": Affine(64, 64, n.symbols(16, 48, 64), Dense(n.floats(48).abs() + 1), 3, 4)}


# Kinds that came later have files of their own: those that are there are never written again.
GOLDEN: dict[str, Callable[[], Trees]] = {
    "pruned": pruned,
    "factors": factors,
    "joined": joined,
    "levels": levels,
    "structured": structured,
    "interpolated": interpolated,
    "turned": turned,
    "drawn": drawn,
    "short": short,
}
VERSIONS = {"short": 3}
"""Of files with coders that version 1 did not have."""


def golden(name: str, end: str = "gsm") -> Path:
    """The file of these trees."""
    return HERE / f"{name}.v{VERSIONS.get(name, 1)}.{end}"


def specs_of(trees: Trees) -> tuple[TensorSpec, ...]:
    """As a network would have them; ``tied`` has a second name."""
    return tuple(
        TensorSpec(
            name,
            tree.dense_shape(),
            torch.float64 if name == "double" else tree.to_dense().dtype,
            Kind.OTHER,
            ("tied.too",) if name == "tied" else (),
        )
        for name, tree in trees.items()
    )


def main() -> int:
    """Write what is missing; an error if anything is there already."""
    paths = [golden(name, end) for name in GOLDEN for end in ("gsm", "safetensors")]
    present = [p.name for p in paths if p.exists()]
    if present:
        sys.stderr.write(f"found {', '.join(present)}: golden files are never overwritten\n")
        return 1
    for name, make in GOLDEN.items():
        trees = make()
        write_container(golden(name), specs_of(trees), trees, {"made by": "tests/golden/make.py"})
        dense = {n: t.to_dense().contiguous() for n, t in trees.items()}
        write_safetensors(golden(name, "safetensors"), dense)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
