"""Packed files trust nothing: every truncation, every flipped bit and every forged field is a `FormatError`."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store.dense import as_bf16, weights, write_dense
from store.test_damage import flip

import gossamer as gs
from gossamer.coding import Coder
from gossamer.errors import DataError, FormatError
from gossamer.store import packed_layout
from gossamer.store.packed_file import PackedFile
from gossamer.store.packed_layout import RESERVED, Entry, deflated, inflated, sealed_header
from gossamer.store.safetensors_file import open_layout

MAX_FLIPS = 6_000


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """``a.packed``: a difference to ``base.safetensors`` in part, with all kinds of pieces in it."""
    x = weights(0, 20, 30)
    y = x + np.float32(1e-4)
    write_dense(tmp_path / "base.safetensors", {"w": ("F32", [20, 30], x.tobytes())})
    tensors = {
        "w": ("F32", [20, 30], y.astype(np.float32).tobytes()),
        "h": ("BF16", [20, 30], as_bf16(x)),
        "n": ("I64", [2], (7).to_bytes(8, "little") * 2),
        "q": ("I8", [200], np.round(x.reshape(-1)[:200] * 200).astype(np.int8).tobytes()),
        "noise": ("U8", [64], np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8).tobytes()),
        "none": ("F16", [0, 3], b""),
    }
    write_dense(tmp_path / "a.safetensors", tensors, metadata={"format": "pt"})
    gs.pack(tmp_path / "a.safetensors", tmp_path / "a.packed", reference=tmp_path / "base.safetensors")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    packed = PackedFile(folder / "a.packed", folder / "base.safetensors")
    return {"header": packed.header} | {name: packed.raw(name).tobytes() for name in packed.names()}


def test_every_truncation_of_a_packed_file_is_refused(files: Path) -> None:
    path = files / "a.packed"
    data = path.read_bytes()
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(FormatError, match=r"a\.packed"):
            everything(files)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError):
        everything(files)


def test_every_flipped_bit_of_a_packed_file_is_refused(files: Path) -> None:
    path = files / "a.packed"
    data = bytearray(path.read_bytes())
    places = list(range(len(data) * 8))
    if len(places) > MAX_FLIPS:
        places = sorted(random.Random(0).sample(places, MAX_FLIPS))
    for place in places:
        flip(path, data, place)
        with pytest.raises(FormatError) as refused:
            everything(files)
        assert "\n" not in str(refused.value)
        flip(path, data, place)


def test_what_is_damaged_is_not_unpacked_and_leaves_nothing_behind(files: Path) -> None:
    data = bytearray((files / "a.packed").read_bytes())
    data[RESERVED + 9] ^= 1
    (files / "a.packed").write_bytes(data)
    before = sorted(files.iterdir())
    with pytest.raises(FormatError, match="checksum"):
        gs.unpack(files / "a.packed", files / "b.safetensors", reference=files / "base.safetensors")
    assert sorted(files.iterdir()) == before


# -- forged: all sums are right, the content is not ------------------------------------------------------------------


def forge(path: Path, change: Callable[[dict[str, Any], bytearray, bytearray], object]) -> None:
    """Write a packed file anew with another index, header or data, and with the right sums."""
    layout, whole = open_layout(path)
    parts = [bytearray(whole[layout.data_start + a.start : layout.data_start + a.stop]) for a in layout.arrays.values()]
    whole.release()
    index = json.loads(inflated(bytes(parts[2]), "index"))
    header = bytearray(inflated(bytes(parts[1]), "header"))
    change(index, header, parts[0])
    head = deflated(bytes(header))
    if index.get("header") != "wrong":
        index["header"] = [len(header), zlib.crc32(head)]
    text = deflated(json.dumps(index).encode())
    sealed = sealed_header((len(parts[0]), len(head), len(text)), zlib.crc32(text))
    path.write_bytes(sealed + parts[0] + head + text)


def piece(index: dict[str, Any], number: int, field: int, value: Any) -> None:
    index["pieces"][number][field] = value


def altered(header: bytearray, old: bytes, new: bytes) -> None:
    assert old in header
    header[:] = header.replace(old, new, 1)


def moved(index: dict[str, Any]) -> None:
    """All of the first piece's bytes to its payload."""
    table, payload = index["pieces"][0][2:4]
    index["pieces"][0][2:4] = [0, table + payload]


HUGE = b'{"a":{"dtype":"U8","shape":[140737488355328],"data_offsets":[0,140737488355328]}}'

FORGED: dict[str, Callable[[dict[str, Any], bytearray, bytearray], object]] = {
    "a piece too few": lambda index, header, data: index["pieces"].pop(),
    "a piece too many": lambda index, header, data: index["pieces"].append(index["pieces"][0]),
    "no list": lambda index, header, data: index.update(pieces={"a": 1}),
    "another key": lambda index, header, data: index.update(more=1),
    "an unknown coder": lambda index, header, data: piece(index, 0, 1, 250),
    "an unknown way": lambda index, header, data: piece(index, 0, 0, 8),
    "a negative size": lambda index, header, data: piece(index, 0, 3, -1),
    "a size of 2^47": lambda index, header, data: piece(index, 0, 3, 1 << 47),
    "a truth value": lambda index, header, data: piece(index, 0, 2, True),
    "a fraction": lambda index, header, data: piece(index, 0, 2, 1.5),
    "a coder of masks": lambda index, header, data: piece(index, 0, 1, int(Coder.MASK_GAPS)),
    "raw, but coded": lambda index, header, data: piece(index, 0, 1, int(Coder.RAW)),
    "a table that is payload": lambda index, header, data: moved(index),
    "another dense sum": lambda index, header, data: piece(index, 1, 5, 0),
    "no reference": lambda index, header, data: index.pop("references"),
    "half a reference": lambda index, header, data: index.update(references=[["a", 1]]),
    "a reference of a list": lambda index, header, data: index.update(references=[[[], 1, "a"]]),
    "the wrong header's sum": lambda index, header, data: index.update(header="wrong"),
    "data too short": lambda index, header, data: data.pop(),
    "data too long": lambda index, header, data: data.append(0),
    "a header that is none": lambda index, header, data: altered(header, b"{", b"["),
    "a header with a hole": lambda index, header, data: altered(header, b'"data_offsets": [0', b'"data_offsets": [1'),
    "another dtype": lambda index, header, data: altered(header, b'"F32"', b'"F64"'),
    "a tensor of 2^47 bytes": lambda index, header, data: header.__setitem__(slice(None), HUGE),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_fields_are_refused(what: str, files: Path) -> None:
    forge(files / "a.packed", lambda index, header, data: None)
    everything(files)  # the forger's tools work
    forge(files / "a.packed", FORGED[what])
    with pytest.raises(FormatError) as refused:
        everything(files)
    assert "\n" not in str(refused.value)


def test_random_forgeries_are_refused_or_change_nothing(files: Path) -> None:
    path, dense = files / "a.packed", everything(files)
    before = path.read_bytes()
    chance = random.Random(0)

    def change(index: dict[str, Any], header: bytearray, data: bytearray) -> None:
        for _ in range(chance.randint(1, 3)):
            kind = chance.randrange(4)
            entry = chance.choice(index["pieces"])
            if kind == 0:
                entry[chance.randrange(6)] = chance.choice([0, 1, 2, 3, 7, 255, 4096, 1 << 31, 1 << 40])
            elif kind == 1:  # a payload that is nobody's, under the right sum
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                at = 0
                for listed in index["pieces"]:
                    listed[4] = zlib.crc32(data[at : at + listed[2] + listed[3]])
                    at += listed[2] + listed[3]
            elif kind == 2:
                header[chance.randrange(len(header))] = chance.randrange(32, 127)
            else:
                entry[2:4] = entry[3:1:-1]

    refused = 0
    for _ in range(600):
        forge(path, change)
        try:
            found = everything(files)
        except (FormatError, DataError):
            refused += 1
        else:
            values = sorted(v for n, v in found.items() if n != "header")
            assert values == sorted(v for n, v in dense.items() if n != "header")  # a name, or blanks, at most
        path.write_bytes(before)
    assert refused > 500


def test_an_index_that_inflates_without_bound_is_refused(files: Path) -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packed.compress(b" " * (1 << 26)) + packed.flush()
    with pytest.raises(FormatError, match="more than"):
        inflated(bomb, "index")
    blanks = b" " * (1 << 22)
    assert inflated(deflated(blanks), "header") == blanks  # what is written can be read, however well it shrinks


def test_another_version_and_other_files_are_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="no seal of a packed file"):
        PackedFile(files / "a.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        PackedFile(files / "missing.packed")
    with monkeypatch.context() as patch:
        patch.setattr(packed_layout, "VERSION", 2)
        forge(files / "a.packed", lambda index, header, data: None)
    with pytest.raises(FormatError, match="version '2' of packed files, expected 1"):
        PackedFile(files / "a.packed")


def test_entries_survive_json() -> None:
    entry = Entry(gs.coding.difference.Difference.MINUS, True, Coder.STATIC, 3, 4, 5, 6)
    assert Entry.from_json(entry.to_json()) == entry
