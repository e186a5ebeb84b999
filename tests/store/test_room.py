"""Large containers: the room that was left for the header does not stay where it would be a share of the file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from gossamer.coding import order0_bits
from gossamer.encoding import Affine, Dense, Encoding, TensorSpec
from gossamer.encoding.spec import Kind
from gossamer.errors import DataError
from gossamer.store import read_container, write_container
from gossamer.store.pieces import code_tensor
from gossamer.store.safetensors_file import open_layout
from gossamer.store.writer import PieceWriter, container_bytes, is_large

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


class Stopping:
    """A file that can be written to a few times."""

    def __init__(self, file: BinaryIO, writes: int) -> None:
        self._file, self.left = file, writes

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self._file.write(data)


@pytest.mark.parametrize("writes", [0, 1])
def test_an_interruption_while_arrays_are_moved_up_leaves_the_old_file(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, trees = weights(1)
    path, close_room = tmp_path / "a.gsm", PieceWriter.close_room
    path.write_bytes(b"old")

    def stopping(self: PieceWriter, file: BinaryIO) -> int:
        return close_room(self, Stopping(file, writes))  # type: ignore[arg-type]

    monkeypatch.setattr(PieceWriter, "close_room", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_container(path, specs, trees)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_that_is_too_short_is_refused_rather_than_moved_up(tmp_path: Path) -> None:
    specs, trees = weights(1)
    with (tmp_path / "whole").open("w+b") as file, (tmp_path / "copy").open("w+b") as copy:
        writer = PieceWriter(file, specs)
        for name, tree in trees.items():
            writer.add(code_tensor(name, tree, {}))
        size = writer.finish()
        assert writer.blank
        file.seek(0)
        copy.write(file.read(size - 1))
        with pytest.raises(DataError, match=f"found a file of {size - 1} bytes, expected {size}"):
            writer.close_room(copy)
