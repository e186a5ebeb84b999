"""Weights made from a seed, vectors and convolutions: what a file may say of them, and what it may not."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.encoding import (
    CP,
    Concat,
    Convolutional,
    Dense,
    Encoding,
    Hashed,
    KernelBasis,
    LowRank,
    VectorCodebook,
)
from gossamer.encoding.serial import flatten, unflatten
from gossamer.errors import FormatError
from gossamer.network import specs
from gossamer.store import read_container, write_container

KEY = 1 << 64


def d(*shape: int, dtype: torch.dtype = torch.float32) -> Dense:
    return Dense(torch.zeros(shape, dtype=dtype))


def u8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def basis(**changes: object) -> KernelBasis:
    settings = {"landmarks": 3, "grid": (4, 5), "sigma": (1.0, 0.0), "ridge": 0.01, "key": 0, "rest": (20,)}
    return KernelBasis(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hashed(d(2, 3), (4,), 0),
        lambda: Hashed(d(0), (4,), 0),
        lambda: Hashed(d(3), (4,), -1),
        lambda: Hashed(d(3), (4,), KEY),
        lambda: Hashed(d(3), (-4,), 0),
        lambda: basis(landmarks=0),
        lambda: basis(landmarks=21),
        lambda: basis(landmarks=2049, grid=(1 << 20,), sigma=(1.0,), rest=(1 << 20,)),
        lambda: basis(grid=()),
        lambda: basis(grid=(4, 6)),
        lambda: basis(grid=(-4, -5)),
        lambda: basis(rest=(-4, -5)),
        lambda: basis(rest=()),
        lambda: basis(sigma=(1.0,)),
        lambda: basis(sigma=(1.0, -1.0)),
        lambda: basis(sigma=(1.0, float("nan"))),
        lambda: basis(sigma=(1.0, 1e-300)),
        lambda: basis(ridge=0.0),
        lambda: basis(ridge=float("inf")),
        lambda: basis(key=KEY),
        lambda: VectorCodebook(torch.zeros(2, 3), d(1, 4, 2), (6,)),
        lambda: VectorCodebook(u8(6), d(1, 4, 2), (6,)),
        lambda: VectorCodebook(u8(2, 3), d(4, 2), (6,)),
        lambda: VectorCodebook(u8(2, 3), d(2, 4, 2), (6,)),
        lambda: VectorCodebook(u8(2, 3), d(1, 257, 2), (6,)),
        lambda: VectorCodebook(u8(2, 3), d(1, 4, 2), (7,)),
        lambda: VectorCodebook(u8(2, 3), d(1, 4, 2), (-2, -3)),
        lambda: Convolutional(d(1, 1, 2), (1, 3), (1, 4)),
        lambda: Convolutional(d(1, 1, 1, 2), (0, 3), (1, 4)),
        lambda: Convolutional(d(1, 1, 1, 2), (1, 3), (1, 4), stride=(1, 0)),
        lambda: Convolutional(d(3, 1, 1, 2), (1, 4), (1, 4), tiles=(1, 2)),
        lambda: Convolutional(d(3, 1, 1, 2), (1, 4), (1, 4), tiles=(1, 3)),
        lambda: Convolutional(d(1, 1, 1, 1000), (1, 3), (1, 4)),
        lambda: Convolutional(d(1, 1, 1, 2), (1, 3), (1, 4), offset=(0, 1 << 60)),
    ],
)
def test_malformed_nodes_are_refused_in_one_line(make: Callable[[], Encoding]) -> None:
    with pytest.raises(FormatError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_index_beyond_the_table_is_refused() -> None:
    with pytest.raises(FormatError, match="index 4, expected below 4"):
        VectorCodebook(u8(2, 3) + 4, d(1, 4, 2), (6,)).validate()


def unflattened(tree: Encoding, most: int | None = None) -> dict[str, Encoding]:
    flat = flatten({"w": tree})
    return unflatten(flat.kinds, flat.nodes, flat.roots, [leaf.tensor for leaf in flat.leaves], most=most)


def test_a_few_bytes_cannot_ask_for_much_more_than_the_tensors_hold() -> None:
    for tree in (
        Hashed(d(1), (1000, 1000), 0),
        basis(landmarks=2000, grid=(2000,), sigma=(1.0,), rest=(2000,)),
        Convolutional(d(1, 1, 1, 1), (1, 1000), (1, 1000)),
    ):
        with pytest.raises(FormatError, match="larger than any tensor needs"):
            unflattened(tree, most=10_000)


def test_a_generated_factor_is_computed_in_the_dtype_of_the_stored_one_and_nowhere_else() -> None:
    stored = Dense(torch.randn(2, 3, dtype=torch.float64))
    tree = unflattened(LowRank(stored, basis()))["w"]
    assert tree.to_dense().dtype == torch.float64
    double = Dense(torch.zeros(20, 2, dtype=torch.float64))
    for wrong in (CP((Dense(torch.zeros(5, 20, dtype=torch.float64)), basis())), LowRank(basis(), double)):
        with pytest.raises(FormatError):
            unflattened(wrong)
    with pytest.raises(FormatError, match="expected floats of one dtype"):
        unflattened(LowRank(Dense(torch.zeros(2, 3, dtype=torch.int64)), basis()))


def test_a_prediction_comes_back_from_a_file_bit_for_bit_and_its_basis_costs_no_array(tmp_path: Path) -> None:
    torch.manual_seed(0)
    groups = tuple(
        LowRank(Dense(torch.randn(3, 30)), basis(landmarks=30, grid=(12, 12), sigma=(1.5, 1.5), key=i, rest=(144,)))
        for i in range(2)
    )
    tree, model = Concat(groups), nn.Linear(144, 6, bias=False)
    size = write_container(tmp_path / "w.gsm", specs(model), {"weight": tree})
    assert size < 180 * 4 + 900
    again = read_container(tmp_path / "w.gsm", specs(model)).trees["weight"]
    assert torch.equal(again.to_dense(), tree.to_dense())
    assert not list(again.at("/members.0/v").leaves())


def test_a_basis_is_computed_once_and_shared_by_trees_over_other_leaves() -> None:
    tree = LowRank(d(2, 3), basis())
    other = tree.map_leaves(lambda leaf: leaf.tensor + 1)
    assert other.v is tree.v
    assert other.v.to_dense() is tree.v.to_dense()


def test_generated_bits_stay_what_they_are_in_files_that_exist() -> None:
    v = basis(landmarks=7, sigma=(1.25, 2.0)).to_dense()
    w = Hashed(Dense(torch.arange(1.0, 6.0)), (4, 6), 123456789).to_dense()
    assert zlib.crc32(v.numpy().tobytes()) == 2301696533
    assert w.flatten().int().tolist() == [
        -1,
        3,
        -1,
        -3,
        -1,
        4,
        5,
        4,
        -3,
        -3,
        -5,
        3,
        -3,
        -2,
        -1,
        1,
        1,
        1,
        -3,
        4,
        5,
        3,
        -4,
        -4,
    ]
