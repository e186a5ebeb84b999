"""Large containers: the room that was left for the header does not stay where it would be a share of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gossamer.coding import order0_bits
from gossamer.encoding import Affine, Dense, Encoding, TensorSpec
from gossamer.encoding.spec import Kind
from gossamer.store import read_container, write_container
from gossamer.store.pieces import code_tensor
from gossamer.store.safetensors_file import open_layout
from gossamer.store.writer import container_bytes, is_large

_SIDE = 256


def weights(bits: int) -> tuple[list[TensorSpec], dict[str, Encoding]]:
    """18 MB of weights with so many bits each."""
    random = torch.Generator().manual_seed(0)
    specs, trees = [], dict[str, Encoding]()
    for i in range(70):
        name = f"blocks.{i}.a_layer_with_a_long_name.weight"
        q = torch.randint(0, 1 << bits, (_SIDE, _SIDE), generator=random, dtype=torch.uint8)
        trees[name] = Affine(_SIDE**2, _SIDE**2, q, Dense(torch.tensor([0.1])), 1 << (bits - 1), bits)
        specs.append(TensorSpec(name, (_SIDE, _SIDE), torch.float32, Kind.LINEAR))
    assert is_large(specs)
    return specs, trees


def test_a_large_network_that_became_small_carries_no_blanks(tmp_path: Path) -> None:
    specs, trees = weights(1)
    size = write_container(tmp_path / "a.gsm", specs, trees)
    assert size == (tmp_path / "a.gsm").stat().st_size
    layout, _ = open_layout(tmp_path / "a.gsm")
    assert len(layout.header) - len(layout.header.rstrip()) < 8
    symbols = sum(order0_bits(tree.part("q").numpy()) / 8 for tree in trees.values())  # type: ignore[union-attr]
    assert size < 1.01 * symbols + 70 * 130
    read = read_container(tmp_path / "a.gsm", specs).trees
    assert all(torch.equal(read[name].to_dense(), tree.to_dense()) for name, tree in trees.items())


def test_a_file_that_is_large_beside_the_room_stays_where_it_is(tmp_path: Path) -> None:
    name = "w"
    values = torch.randn(5 << 20, generator=torch.Generator().manual_seed(0))
    specs = [TensorSpec(name, tuple(values.shape), torch.float32, Kind.OTHER)]
    write_container(tmp_path / "a.gsm", specs, {name: Dense(values)})
    layout, _ = open_layout(tmp_path / "a.gsm")
    assert 8 <= len(layout.header) - len(layout.header.rstrip()) < layout.file_bytes / 1000
    assert torch.equal(read_container(tmp_path / "a.gsm", specs).trees[name].to_dense(), values)


@pytest.mark.parametrize("bits", [1, 4])
def test_the_size_that_is_computed_is_that_of_the_file(bits: int, tmp_path: Path) -> None:
    specs, trees = weights(bits)
    pieces = (code_tensor(name, tree, {}) for name, tree in trees.items())
    # sums have up to ten digits, which deflate differently
    assert container_bytes(specs, pieces) == pytest.approx(write_container(tmp_path / "a.gsm", specs, trees), abs=900)
