"""Hostile files, kind by kind of node: sizes that lie, places out of range, negative shapes are refused on reading."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.encoding_examples import MAKERS, Maker
from store.forge import Parts, seal, take_apart, written
from store.test_forged import BIG, node, refused, small_memory

from gossamer.encoding import (
    NM,
    Delta,
    Dense,
    Encoding,
    External,
    KernelBasis,
    KernelShapes,
    Kind,
    LowRank,
    Masked,
    NormalLevels,
    Permuted,
    PowerLevels,
    TensorSpec,
    VectorCodebook,
)
from gossamer.encoding.serial import KINDS
from gossamer.errors import FormatError
from gossamer.store import read_container, write_container


def d(*shape: int) -> Dense:
    return Dense(torch.zeros(shape))


def u8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def i8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int8)


def i16(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int16)


def file_of(tree: Encoding, folder: Path) -> bytes:
    """A container with one tensor, its contents not checked."""
    spec = TensorSpec("w", tree.dense_shape(), torch.float32, Kind.LINEAR)
    write_container(folder / "whole.gsm", [spec], {"w": tree})
    return (folder / "whole.gsm").read_bytes()


SHAPES = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.uint8)

CONTENTS: dict[str, tuple[Encoding, str]] = {
    "a kernel of a shape beyond the last": (
        Masked(KernelShapes(u8(0, 1, 2, 0), SHAPES, (2, 2, 3)), d(8)),
        "choice 2, expected below 2",
    ),
    "a shape of twos": (
        Masked(KernelShapes(u8(0, 1, 1, 0), 2 * SHAPES, (2, 2, 3)), d(8)),
        "shapes with 2, expected 0 and 1",
    ),
    "fewer values than the kernels' shapes keep": (Masked(KernelShapes(u8(0, 1, 1, 0), SHAPES, (2, 2, 3)), d(7)), "7"),
    "a column twice": (Permuted(d(2, 4), i16(0, 1, 1, 3)), "expected a permutation of 4"),
    "a column beyond": (Permuted(d(2, 4), i16(0, 1, 4, 3)), "expected a permutation of 4"),
    "a column before the first": (Permuted(d(2, 4), i16(0, -1, 2, 3)), "expected a permutation of 4"),
    "a choice beyond": (Masked(NM(i16(0, 6), (2, 4), 2, 4), d(4)), "expected 0 to 5"),
    "a vector beyond": (VectorCodebook(u8(0, 3).view(1, 2), d(1, 3, 2), (4,)), "3"),
    "a vector beyond its own codebook": (VectorCodebook(u8(0, 3).view(1, 2), d(2, 3, 2), (4,)), "3"),
    "a level beyond": (NormalLevels(2, 2, u8(0, 4), d(1), 2), "4"),
    "a power beyond": (PowerLevels(2, 2, u8(0, 3), i8(0), 2), "index 3, expected at most 2"),
    "an exponent too low": (PowerLevels(2, 2, u8(0, 2), i8(-91), 2), "exponent -91, expected at least -90"),
    "more exponents than groups": (PowerLevels(2, 2, u8(0, 2), i8(0, 0, 0), 2), "3 groups, expected 1"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_that_a_kind_does_not_allow_are_refused_when_a_file_is_read(name: str, tmp_path: Path) -> None:
    tree, expected = CONTENTS[name]
    assert expected in refused(file_of(tree, tmp_path), tmp_path, expected=False)


def examples() -> dict[str, Encoding]:
    """The first example of every kind of node that a file may hold."""
    found: dict[str, Encoding] = {}
    delta = Delta(torch.zeros(2, 3, dtype=torch.int64), External.of("w", torch.ones(2, 3)))
    for tree in (*(make(Maker(torch.float32)).tree for make in MAKERS), delta):
        for _, below in tree.nodes():
            found.setdefault(type(below).__name__, tree)
    return found


EXAMPLES = examples()

# Kind, field, value, a part of the message.
FIELDS: list[tuple[str, str, Any, str]] = [
    ("KernelShapes", "weight_shape", [-3, -2, 2, 2], "negative"),
    ("KernelShapes", "weight_shape", [3, 2, -2, -2], "negative"),
    ("KernelShapes", "weight_shape", [3, 2, 4], ""),
    ("KernelShapes", "weight_shape", [6, 4], "[out, in, *kernel]"),
    ("KernelShapes", "weight_shape", [3, 2, BIG, 2], "shapes of"),
    ("KernelShapes", "weight_shape", [BIG, BIG, 2, 2], "choice of"),
    ("KernelShapes", "weight_shape", [2, 3, 2, 2], ""),
    ("KernelShapes", "choice", {"t": 1}, ""),
    ("Permuted", "order", {"t": 0}, "order of"),
    ("Permuted", "inner", {"n": 0}, ""),
    ("Rotated", "block", 0, "block = 0"),
    ("Rotated", "block", 3, "power of two"),
    ("Rotated", "block", -4, "block = -4"),
    ("Rotated", "block", 8, "divides 12"),
    ("Rotated", "block", BIG, "power of two"),
    ("Rotated", "key", -1, "key = -1"),
    ("Rotated", "key", 1 << 64, "key"),
    ("VectorCodebook", "rest", [BIG], "rest"),
    ("VectorCodebook", "rest", [-2, -3], "rest"),
    ("VectorCodebook", "rest", [0], "rest"),
    ("VectorCodebook", "rest", [6, *[1] * 31], "found shape"),
    ("Hashed", "weight_shape", [BIG, BIG], "larger than any tensor needs"),
    ("Hashed", "weight_shape", [-4, -3, 2], "no negative size"),
    ("Hashed", "weight_shape", [0, 10**30], "larger than any tensor needs"),
    ("Hashed", "key", -1, "key = -1"),
    ("Hashed", "key", 1 << 64, "key"),
    ("Drawn", "weight_shape", [BIG, BIG], "fewer than"),
    ("Drawn", "weight_shape", [-5, -7], "no negative size"),
    ("Drawn", "weight_shape", [0, 10**30], "[blocks] of 0 weights"),
    ("Drawn", "weight_shape", [2], "[blocks] of 2 weights"),
    ("Drawn", "bits", 0, "bits = 0"),
    ("Drawn", "bits", 9, "index 1023, expected below 512"),
    ("Drawn", "bits", 25, "bits = 25"),
    ("Drawn", "seed", -1, "seed = -1"),
    ("Drawn", "seed", 1 << 64, "seed"),
    ("Drawn", "name", 5, "name"),
    ("Drawn", "name", "x" * 5000, "5000 characters"),
    ("Drawn", "scale", {"n": 2}, ""),
    ("Drawn", "index", {"t": 1}, "index of"),
    ("KernelBasis", "landmarks", 0, "0 landmarks"),
    ("KernelBasis", "landmarks", BIG, "landmarks"),
    ("KernelBasis", "grid", [1, BIG, BIG], "expected as many positions"),
    ("KernelBasis", "grid", [1, -4, -5], "expected as many positions"),
    ("KernelBasis", "grid", [4, 5, *[1] * 30_000], "30002 axes, expected at most 8"),
    ("KernelBasis", "sigma", [0.0, 1e-9, 2.0], "sigma"),
    ("KernelBasis", "sigma", [0.0, -1.0, 2.0], "sigma"),
    ("KernelBasis", "sigma", [], "sigma"),
    ("KernelBasis", "ridge", 0.0, "ridge"),
    ("KernelBasis", "rest", [-20], "expected as many positions"),
    ("Convolutional", "output_grid", [1, BIG], "kernel of 8 positions|larger than any tensor needs"),
    ("Convolutional", "output_grid", [-1, -5], "at least 1"),
    ("Convolutional", "input_grid", [BIG, BIG], "larger than any tensor needs"),
    ("Convolutional", "stride", [0, 1], "at least 1"),
    ("Convolutional", "offset", [BIG * 4, 0], "offset"),
    ("Convolutional", "tiles", [BIG, 1], ""),
    ("Convolutional", "tiles", [1], ""),
    ("Constant", "value", 10**400, "value"),
    ("NormalLevels", "bits", 9, "bits = 9"),
    ("NormalLevels", "bits", -1, "bits = -1"),
    ("NormalLevels", "columns", 0, "columns = 0"),
    ("PowerLevels", "bits", 7, "bits = 7"),
    ("PowerLevels", "group_size", -1, "group_size = -1"),
    ("Delta", "span", [-1, 5], "a range within 6"),
    ("Delta", "span", [0, BIG], "a range within 6"),
    ("Delta", "span", [5, 1], "a range within 6"),
    ("Delta", "order", [0, 0], "a permutation"),
    ("External", "weight_shape", [BIG, BIG], ""),
    ("External", "weight_shape", [-2, -3], ""),
    ("External", "dtype", "object", "dtype 'object'"),
]


@pytest.mark.parametrize(("kind", "field", "value", "expected"), FIELDS, ids=lambda v: str(v)[:24])
def test_fields_that_lie_are_refused(kind: str, field: str, value: Any, expected: str, tmp_path: Path) -> None:
    parts = take_apart(file_of(EXAMPLES[kind], tmp_path))
    set_field(parts, kind, field, value)
    message = refused(seal(parts), tmp_path, expected=False)
    assert any(part in message for part in expected.split("|"))


def set_field(parts: Parts, kind: str, field: str, value: Any) -> None:
    """Fields go by position, and defaults at the end are left out: those before it must be there."""
    fields = node(parts, kind)
    for declared in dataclasses.fields(KINDS[kind]):
        if declared.name == field:
            fields[field] = value
            return
        default: Any = declared.default
        fields.setdefault(declared.name, list(default) if isinstance(default, tuple) else default)


def values_for(parts: Parts) -> list[Any]:
    references = [{"n": i} for i in range(len(parts.index["nodes"]))] + [{"t": 0}, {"t": 1}]
    return [0, -1, BIG, 10**30, 1.5, True, None, "F32", [], [BIG], [-1, -1], [0, BIG], [1] * 40, [3, 1, 2], *references]


@pytest.mark.parametrize("kind", sorted(set(EXAMPLES) - {"Ref"}))
def test_any_value_of_any_field_is_refused_or_gives_a_weight_of_its_shape(kind: str, tmp_path: Path) -> None:
    whole = take_apart(file_of(EXAMPLES[kind], tmp_path))
    with small_memory():
        for field in dataclasses.fields(KINDS[kind]):
            for value in values_for(whole):
                parts = copy.deepcopy(whole)
                set_field(parts, kind, field.name, value)
                read_and_used(written(tmp_path / "a.gsm", seal(parts)), f"{field.name} = {str(value)[:40]}")


def read_and_used(path: Path, what: str) -> None:
    try:
        found = read_container(path)
    except FormatError as error:
        assert "\n" not in str(error), what
        return
    tree = found.trees["w"]
    assert tree.dense_shape() == found.specs[0].shape, what
    if not any(isinstance(node, External) for _, node in tree.nodes()):  # those have no numbers here
        assert tuple(tree.to_dense().shape) == tree.dense_shape(), what


def test_every_kind_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(KINDS) - {"Ref"}  # which no file may hold


def test_a_basis_of_eight_axes_is_fine() -> None:
    tree = LowRank(d(3, 2), KernelBasis(2, (1, 1, 2, 2, 1, 1, 1, 1), (1.0,) * 8, 0.01, 0, (4,)))
    assert tree.to_dense().shape == (3, 4)
