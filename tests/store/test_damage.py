"""Every truncation and every flipped bit of a real file: `FormatError`, or the very same network."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from contract.test_every_encoding import same_trees
from store.forge import pruned_and_shared, shrunk_and_factorized, written

from gossamer.encoding import Encoding, TensorSpec
from gossamer.errors import FormatError
from gossamer.store import read_container, write_container

Made = tuple[tuple[TensorSpec, ...], dict[str, Encoding]]
MAX_FLIPS = 12_000  # all of a file of 1.5 KB; of a larger one a fixed sample

both = pytest.mark.parametrize("make", [pruned_and_shared, shrunk_and_factorized], ids=lambda m: m.__name__)


def flip(path: Path, data: bytearray, place: int) -> None:
    """Change one bit in memory and on disk."""
    data[place // 8] ^= 1 << place % 8
    with path.open("r+b", buffering=0) as file:
        file.seek(place // 8)
        file.write(data[place // 8 : place // 8 + 1])


@both
def test_every_truncation_is_refused(make: Callable[[], Made], tmp_path: Path) -> None:
    specs, trees = make()
    path = tmp_path / "a.gsm"
    write_container(path, specs, trees)
    data = path.read_bytes()
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(FormatError, match=r"a\.gsm"):
            read_container(path, specs)
    written(path, data + b"\0")
    with pytest.raises(FormatError):
        read_container(path, specs)


@both
def test_every_flipped_bit_is_refused_or_harmless(make: Callable[[], Made], tmp_path: Path) -> None:
    specs, trees = make()
    path = tmp_path / "a.gsm"
    write_container(path, specs, trees)
    data = bytearray(path.read_bytes())
    places = list(range(len(data) * 8))
    if len(places) > MAX_FLIPS:
        places = sorted(random.Random(0).sample(places, MAX_FLIPS))
    refused = 0
    for place in places:
        flip(path, data, place)
        try:
            found = read_container(path, specs)
        except FormatError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert same_trees(trees, dict(found.trees)), place
        flip(path, data, place)
    assert refused > 0.999 * len(places)


@both
def test_without_a_network_to_compare_damage_is_refused_too(make: Callable[[], Made], tmp_path: Path) -> None:
    specs, trees = make()
    path = tmp_path / "a.gsm"
    write_container(path, specs, trees)
    data = bytearray(path.read_bytes())
    for place in random.Random(1).sample(range(len(data) * 8), 1000):
        flip(path, data, place)
        try:
            assert same_trees(trees, dict(read_container(path).trees))
        except FormatError as error:
            assert str(error)
        flip(path, data, place)
