"""Checksums that are right over content that is not: `FormatError` that names what is wrong, in little memory."""

from __future__ import annotations

import copy
import json
import resource
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.forge import (
    Parts,
    pruned_and_shared,
    reseal_arrays,
    seal,
    seal_packed,
    seal_text,
    shrunk_and_factorized,
    sparse_and_shared,
    take_apart,
    text_of,
    written,
)

from gossamer.encoding import Dense, Kind, LowRank, Mask, TensorSpec, TensorTrain
from gossamer.errors import FormatError
from gossamer.store import read_container, safetensors_file, write_container
from gossamer.store.safetensors_file import parse_json

BIG = 1 << 39
LIMIT = 64 << 20  # bytes; the networks have under 1000 weights


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """0.weight is Masked(Mask, Codebook), 0.bias Affine."""
    path = tmp_path_factory.mktemp("forged") / "a.gsm"
    write_container(path, *pruned_and_shared())
    return take_apart(path.read_bytes())


@pytest.fixture(scope="module")
def factorized(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Kept, LowRank, Masked, Dense."""
    path = tmp_path_factory.mktemp("forged") / "b.gsm"
    write_container(path, *shrunk_and_factorized())
    return take_apart(path.read_bytes())


class small_memory:
    """No Python or numpy allocation above the limit, no torch allocation above another gigabyte of address space."""

    def __enter__(self) -> None:
        self._old = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), self._old[1]))
        tracemalloc.start()

    def __exit__(self, *error: object) -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, self._old)
        if error[0] is None:
            assert peak < LIMIT


def refused(data: bytes, tmp_path: Path, *, expected: bool = True) -> str:
    """The message of the refusal, with and without a network to compare with."""
    path = written(tmp_path / "forged.gsm", data)
    specs, _ = pruned_and_shared()
    messages = []
    for wanted in (specs, None) if expected else (None,):
        with small_memory(), pytest.raises(FormatError, match=r"forged\.gsm") as caught:
            read_container(path, wanted)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000
        messages.append(str(caught.value))
    return messages[-1]


def node(parts: Parts, kind: str, which: int = 0) -> dict[str, Any]:
    """Fields of a node of that kind."""
    found = [f for k, f in parts.index["nodes"] if parts.index["kinds"][k][0] == kind]
    return found[which]  # type: ignore[no-any-return]


def root(parts: Parts, name: str) -> list[Any]:
    return next(r for r in parts.index["roots"] if r[0] == name)  # type: ignore[no-any-return]


def leaf(parts: Parts, form: str) -> list[Any]:
    return next(le for _, _, ls in parts.index["arrays"] if isinstance(ls, list) for le in ls if le[0] == form)  # type: ignore[no-any-return]


def number_of(parts: Parts, kind: str) -> int:
    names = [k for k, _ in parts.index["kinds"]]
    if kind not in names:
        parts.index["kinds"].append([kind, 1])
        return len(names)
    return names.index(kind)


def add_node(parts: Parts, kind: str, **fields: Any) -> int:
    parts.index["nodes"].append([number_of(parts, kind), fields])
    return len(parts.index["nodes"]) - 1


Change = Callable[[Parts], object]


def set_in(where: Callable[[Parts], Any], key: Any, value: Any) -> Change:
    def change(parts: Parts) -> None:
        where(parts)[key] = value

    return change


def cyclic(parts: Parts) -> None:
    this = len(parts.index["nodes"])
    add_node(parts, "View", inner={"n": this}, order=[0, 1])


def forward(parts: Parts) -> None:
    this = len(parts.index["nodes"])
    add_node(parts, "View", inner={"n": this + 1}, order=[0, 1])
    add_node(parts, "View", inner={"n": 0}, order=[0, 1])


def deep_tree(parts: Parts) -> None:
    at = root(parts, "0.weight")[3]
    for _ in range(40):
        at = add_node(parts, "View", inner={"n": at}, order=[0, 1])
    root(parts, "0.weight")[3] = at


def laughing(parts: Parts) -> None:
    """Thirty nodes that are a tree of a billion."""
    at = root(parts, "0.weight")[3]
    for _ in range(30):
        at = add_node(parts, "Sum", terms=[{"n": at}, {"n": at}])
    root(parts, "0.weight")[3] = at


def huge_pattern(parts: Parts) -> None:
    """One bit that stands for half a trillion positions."""
    mask = add_mask(parts, [1])
    at = add_node(parts, "Blocks", bits_packed={"t": mask}, weight_shape=[BIG, 1], block=[BIG, 1])
    values = node(parts, "Masked")["value"]
    add_node(parts, "Masked", where={"n": at}, value=values)


def huge_product(parts: Parts) -> None:
    """u · v of two vectors, as large as their product."""
    at = root(parts, "0.weight")[3]
    tall = add_node(parts, "View", inner={"n": at}, order=[1, 0])
    for _ in range(4):
        tall = add_node(parts, "Concat", members=[{"n": tall}] * 16)
    wide = add_node(parts, "View", inner={"n": tall}, order=[1, 0])
    add_node(parts, "LowRank", u={"n": tall}, v={"n": wide})


def huge_repeat(parts: Parts) -> None:
    """One kept unit of half a trillion rows."""
    mask = add_node(parts, "Mask", bits_packed={"t": add_mask(parts, [1])}, weight_shape=[1])
    at = root(parts, "0.bias")[3]
    add_node(parts, "Kept", inner={"n": at}, keep=[{"n": mask}], repeat=[BIG], fill=0.0)


def add_mask(parts: Parts, shape: list[int]) -> int:
    """A mask of that shape with bits all one, one byte in the last array; returns its number."""
    name, dtype, _, data = parts.arrays[-1]
    parts.arrays[-1] = (name, dtype, (len(data) + 1,), data + b"\x01")
    parts.index["arrays"][-1][2].append(["MASK", shape, 5, 0, 1])
    reseal_arrays(parts)
    return len(_leaves(parts)) - 1


def joined(parts: Parts) -> list[Any]:
    """The symbols that tell a mask, too."""
    return next(le for le in _leaves(parts) if len(le) == 6)


def _leaves(parts: Parts) -> list[list[Any]]:
    return [le for _, _, ls in parts.index["arrays"] if isinstance(ls, list) for le in ls]


def extra_leaf(parts: Parts) -> None:
    name, dtype, _, data = parts.arrays[-1]
    parts.arrays[-1] = (name, dtype, (len(data) + 4,), data + bytes(4))
    parts.index["arrays"][-1][2].append(["F32", [1], 0, 0, 4])
    reseal_arrays(parts)


def swapped_leaves(parts: Parts) -> None:
    node(parts, "Codebook")["index"], node(parts, "Dense")["array"] = (
        node(parts, "Dense")["array"],
        node(parts, "Codebook")["index"],
    )


def swapped_bytes(parts: Parts) -> None:
    name, dtype, shape, data = parts.arrays[-1]
    parts.arrays[-1] = (name, dtype, shape, data[::-1])
    reseal_arrays(parts)


def two_scales(parts: Parts) -> None:
    """The four bytes of a scale read as two of half precision."""
    scale = next(le for le in _leaves(parts) if le[:2] == ["F32", [1]])
    scale[:2] = ["F16", [2]]


def array_listed_twice(parts: Parts) -> None:
    parts.arrays.append(("extra", "U8", (3,), b"abc"))
    parts.index["arrays"].append(copy.deepcopy(parts.index["arrays"][0]))


CHANGES: dict[str, tuple[Change, str]] = {
    "unknown kind": (set_in(lambda p: p.index["kinds"][0], 0, "Pickle"), "unknown kind of node 'Pickle'"),
    "kind that is an attribute": (set_in(lambda p: p.index["kinds"][0], 0, "__class__"), "unknown kind"),
    "abstract kind": (set_in(lambda p: p.index["kinds"][0], 0, "Encoding"), "unknown kind"),
    "unknown version of a kind": (set_in(lambda p: p.index["kinds"][0], 1, 2), "version 2, expected 1"),
    "version true": (set_in(lambda p: p.index["kinds"][0], 1, True), "version True"),
    "version 1.5": (set_in(lambda p: p.index["kinds"][0], 1, 1.5), "version 1.5"),
    "kinds no list": (set_in(lambda p: p.index, "kinds", {}), "kinds: found dict"),
    "nodes no list": (set_in(lambda p: p.index, "nodes", 3), "nodes: found int"),
    "roots no list": (set_in(lambda p: p.index, "roots", "x"), "roots"),
    "arrays no list": (set_in(lambda p: p.index, "arrays", None), "arrays"),
    "unknown entry": (set_in(lambda p: p.index, "code", "print()"), "expected an object with"),
    "notes no object": (set_in(lambda p: p.index, "notes", []), "notes"),
    "missing entry": (lambda p: p.index.pop("nodes"), "expected an object with"),
    "node no pair": (lambda p: p.index["nodes"].append([0]), "(Masked)"),
    "node no list": (lambda p: p.index["nodes"].append({}), "expected [kind, "),
    "node empty": (lambda p: p.index["nodes"].append([]), "expected [kind, "),
    "node of kind 99": (lambda p: p.index["nodes"].append([99, {}]), "expected [kind, "),
    "kind without version": (lambda p: p.index["kinds"][0].pop(), "expected [name, version]"),
    "kind with more": (lambda p: p.index["kinds"][0].append(["where"]), "expected [name, version]"),
    "fields missing": (lambda p: node(p, "Masked").pop("value"), "(Masked): found fields ['where']"),
    "fields extra": (set_in(lambda p: node(p, "Masked"), "hook", 1), "value of each field"),
    "field of another type": (
        set_in(lambda p: node(p, "Codebook"), "columns", "9"),
        "columns: found str, expected int",
    ),
    "field true": (set_in(lambda p: node(p, "Codebook"), "columns", True), "columns: found bool"),
    "field a float": (set_in(lambda p: node(p, "Codebook"), "columns", 9.0), "columns: found float"),
    "a leaf for a node": (set_in(lambda p: node(p, "Masked"), "value", {"t": 0}), "value"),
    "a pattern for a value": (lambda p: node(p, "Masked").update(value=node(p, "Masked")["where"]), "value"),
    "reference forward": (forward, "found reference"),
    "reference to itself": (cyclic, "found reference"),
    "reference negative": (set_in(lambda p: node(p, "Masked"), "where", {"n": -1}), "found reference"),
    "reference true": (set_in(lambda p: node(p, "Masked"), "where", {"n": True}), "found reference"),
    "reference to two": (set_in(lambda p: node(p, "Masked"), "where", {"n": 0, "t": 0}), "found reference"),
    "reference to nothing": (set_in(lambda p: node(p, "Masked"), "where", {}), "found reference"),
    "leaf 99": (set_in(lambda p: node(p, "Codebook"), "index", {"t": 99}), "found reference"),
    "columns 0": (set_in(lambda p: node(p, "Codebook"), "columns", 0), "columns = 0"),
    "columns negative": (set_in(lambda p: node(p, "Codebook"), "columns", -4), "columns = -4"),
    "columns beyond": (set_in(lambda p: node(p, "Codebook"), "columns", 10**30), "columns"),
    "group of nothing": (set_in(lambda p: node(p, "Codebook"), "group_size", 0), "group_size = 0"),
    "more scales than groups": (two_scales, "2 groups, expected 1"),
    "fewer scales than groups": (
        lambda p: (two_scales(p), node(p, "Affine").update(columns=3, group_size=1)),
        "2 groups, expected 1 or 12",
    ),
    "bits 9": (set_in(lambda p: node(p, "Affine"), "bits", 9), "bits = 9"),
    "bits too few": (set_in(lambda p: node(p, "Affine"), "bits", 1), "q = "),
    "mask of another shape": (set_in(lambda p: node(p, "Mask"), "weight_shape", [16, 12]), "shape (16, 12)"),
    "mask negative": (set_in(lambda p: node(p, "Mask"), "weight_shape", [-12, -16]), "negative"),
    "mask too small": (set_in(lambda p: node(p, "Mask"), "weight_shape", [1, 1]), "bits of shape"),
    "mask beyond": (set_in(lambda p: node(p, "Mask"), "weight_shape", [BIG, BIG]), "bits of shape"),
    "mask of endless digits": (set_in(lambda p: node(p, "Mask"), "weight_shape", [10**400]), "Mask"),
    "pattern beyond": (huge_pattern, "larger than any tensor needs"),
    "product beyond": (huge_product, "larger than any tensor needs"),
    "repeat beyond": (huge_repeat, "larger than any tensor needs"),
    "tree too deep": (deep_tree, "33 deep"),
    "tree without end": (laughing, "a tree"),
    "root beyond": (set_in(lambda p: root(p, "0.weight"), 3, 99), "'0.weight': found root 99"),
    "root true": (set_in(lambda p: root(p, "0.weight"), 3, True), "'0.weight'"),
    "root of another shape": (lambda p: set_in(lambda q: root(q, "0.weight"), 3, root(p, "2.weight")[3])(p), ""),
    "root shape beyond": (set_in(lambda p: root(p, "0.weight"), 2, [BIG, BIG]), ""),
    "root shape negative": (set_in(lambda p: root(p, "0.weight"), 2, [-12, 16]), "found root"),
    "root shape empty but endless": (set_in(lambda p: root(p, "0.weight"), 2, [0, BIG, BIG, BIG, BIG]), "found root"),
    "root of unknown dtype": (set_in(lambda p: root(p, "0.weight"), 1, "F7"), "dtype 'F7'"),
    "root dtype no name": (set_in(lambda p: root(p, "0.weight"), 1, ["F32"]), "dtype"),
    "root without name": (set_in(lambda p: root(p, "0.weight"), 0, 7), "found root"),
    "root twice": (lambda p: p.index["roots"].append(copy.deepcopy(p.index["roots"][0])), "found twice"),
    "alias twice": (lambda p: root(p, "0.weight").append(["0.bias"]), "found twice"),
    "aliases no names": (lambda p: root(p, "0.weight").append([3]), "aliases"),
    "leaf shape beyond": (set_in(lambda p: leaf(p, "U8"), 1, [BIG]), "larger than its network needs"),
    "mask shape beyond": (set_in(lambda p: leaf(p, "MASK"), 1, [BIG]), "larger than its network needs"),
    "leaf shape negative": (set_in(lambda p: leaf(p, "U8"), 1, [-1]), "found leaf"),
    "leaf shape empty but endless": (set_in(lambda p: leaf(p, "U8"), 1, [0, BIG, BIG]), "found leaf"),
    "leaf of 40 dimensions": (set_in(lambda p: leaf(p, "U8"), 1, [1] * 40), "found leaf"),
    "leaf of unknown dtype": (set_in(lambda p: leaf(p, "U8"), 0, "U7"), "dtype 'U7'"),
    "leaf of another dtype": (set_in(lambda p: leaf(p, "F32"), 0, "F16"), ""),
    "unknown coder": (set_in(lambda p: leaf(p, "F32"), 2, 77), "unknown coder 77"),
    "coder of another family": (set_in(lambda p: leaf(p, "F32"), 2, 5), ""),
    "table longer than the array": (set_in(lambda p: leaf(p, "F32"), 3, 10**6), ""),
    "table negative": (set_in(lambda p: leaf(p, "F32"), 3, -1), "found leaf"),
    "extra leaf": (extra_leaf, "no tensor uses"),
    "swapped leaves": (swapped_leaves, ""),
    "swapped bytes": (swapped_bytes, ""),
    "missing array": (lambda p: p.arrays.pop(), "found other arrays"),
    "unlisted array": (lambda p: p.arrays.append(("extra", "U8", (3,), b"abc")), "found other arrays"),
    "array listed twice": (array_listed_twice, "listed before"),
    "array of another name": (set_in(lambda p: p.index["arrays"][0], 0, "other"), "'other', which the file lacks"),
    "array is the index": (set_in(lambda p: p.index["arrays"][0], 0, "gsm.index"), "gsm.index"),
    "wrong sum of an array": (set_in(lambda p: p.index["arrays"][0], 1, 5), "checksum"),
    "leaves no list": (set_in(lambda p: p.index["arrays"][0], 2, "x"), "expected a list"),
    "leaves true": (set_in(lambda p: p.index["arrays"][0], 2, True), ""),
    "reference by name": (
        lambda p: set_in(lambda q: root(q, "0.bias"), 3, add_node(p, "Ref", name="2.bias", weight_shape=[12]))(p),
        "reference by name",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_forged_index_is_refused_and_the_message_says_what_is_wrong(name: str, shared: Parts, tmp_path: Path) -> None:
    change, expected = CHANGES[name]
    parts = copy.deepcopy(shared)
    change(parts)
    assert expected in refused(seal(parts), tmp_path)


def test_the_forger_is_right_when_nothing_is_changed(shared: Parts, tmp_path: Path) -> None:
    path = written(tmp_path / "a.gsm", seal(shared))
    with small_memory():
        found = read_container(path, pruned_and_shared()[0])
    assert set(found.trees) == {r[0] for r in shared.index["roots"]}


JOINT: dict[str, tuple[Change, str]] = {
    "partner beyond": (set_in(joined, 5, 99), "partner 99"),
    "partner is itself": (set_in(joined, 5, 1), "partner 1"),
    "partner negative": (set_in(joined, 5, -1), "partner -1"),
    "partner of floats": (set_in(joined, 0, "BF16"), "BF16 beside a mask"),
    "partner of eight-bit floats": (set_in(joined, 0, "F8_E5M2"), "F8_E5M2 beside a mask"),
    "partner of a mask": (set_in(joined, 0, "MASK"), "beside a mask"),
    "mask told by nobody": (lambda p: joined(p).pop(), ""),
    "mask beyond": (set_in(lambda p: leaf(p, "MASK"), 1, [BIG, 25]), "larger than its network needs"),
    "mask of another shape": (set_in(lambda p: leaf(p, "MASK"), 1, [40, 24]), ""),
    "symbols of another number": (set_in(joined, 1, [7]), "symbols, expected (7,)"),
    "mask with bytes of its own": (set_in(lambda p: leaf(p, "MASK"), 4, 1), ""),
}


@pytest.mark.parametrize("name", JOINT)
def test_forged_mask_beside_symbols_is_refused(name: str, tmp_path: Path) -> None:
    write_container(tmp_path / "a.gsm", *sparse_and_shared())
    parts = take_apart((tmp_path / "a.gsm").read_bytes())
    change, expected = JOINT[name]
    change(parts)
    assert expected in refused(seal(parts), tmp_path, expected=False)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"repeat": [BIG, 1, 1, 1]}, ""),
        ({"repeat": [0, 1, 1, 1]}, "repeat"),
        ({"repeat": [-1, 1, 1, 1]}, "repeat"),
        ({"fill": 10**400}, "fill"),
        ({"fill": "0"}, "fill"),
        ({"keep": [None]}, "keeps"),
        ({"keep": {"n": 0}}, "keep"),
    ],
    ids=str,
)
def test_forged_kept_is_refused(fields: dict[str, Any], expected: str, factorized: Parts, tmp_path: Path) -> None:
    parts = copy.deepcopy(factorized)
    node(parts, "Kept").update(fields)
    assert expected in refused(seal(parts), tmp_path, expected=False)


def test_infinite_numbers_are_refused(factorized: Parts, tmp_path: Path) -> None:
    text = text_of(factorized).decode()
    assert text.count("[1],1.0]") == 1  # what a removed variance is filled with
    for bad in ("1e999", "-1e999", "NaN", "Infinity"):
        forged = text.replace("[1],1.0]", f"[1],{bad}]")
        message = refused(seal_text(factorized, forged.encode()), tmp_path, expected=False)
        assert "fill" in message or "is not JSON" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: b"[" * 33 + b"]" * 33, "nested 33 deep"),
        (lambda t: b"[" * 20_000 + b"]" * 20_000, "nested 20000 deep"),
        (lambda t: t[:-1] + b',"notes":{"a":' + b"[" * 40 + b"]" * 40 + b"}}", "nested 42 deep"),
        (lambda t: t[:-1] + b',"nodes":[]}', "twice"),
        (lambda t: t.replace(b'{"n":', b'{"n":0,"n":', 1), "twice"),
        (lambda t: b"null", "expected an object"),
        (lambda t: b"", "malformed JSON"),
        (lambda t: t + b"x", "malformed JSON"),
        (lambda t: b"\xff" + t, "malformed JSON"),
        (lambda t: b"9" * 5000, "malformed JSON"),
        (lambda t: b'{"a": "' + b'\\"' * 30_000, "malformed JSON"),
        (lambda t: b'\\"' * 30_000, "malformed JSON"),
        (lambda t: b" " * (3 << 20) + t, "more than"),
    ],
    ids=[
        "33",
        "20000",
        "notes",
        "key",
        "inner key",
        "null",
        "empty",
        "rest",
        "utf",
        "digits",
        "open",
        "quotes",
        "bomb",
    ],
)
def test_an_index_that_is_no_proper_json_is_refused(
    change: Callable[[bytes], bytes], expected: str, shared: Parts, tmp_path: Path
) -> None:
    text = text_of(shared)
    assert expected in refused(seal_text(shared, change(text)), tmp_path)


def nesting(text: bytes) -> int:
    """The deepest, one character after the other."""
    depth = deepest = 0
    inside = escaped = False
    for c in map(chr, text):
        if inside:
            inside, escaped = escaped or c != '"', c == "\\" and not escaped
        else:
            inside = c == '"'
            depth += (c in "[{") - (c in "]}")
            deepest = max(deepest, depth)
    return deepest


@given(st.lists(st.sampled_from([bytes([c]) for c in b'[]{}"\\1']), max_size=20).map(b"".join), st.integers(1, 5))
def test_nesting_is_counted_outside_of_strings(text: bytes, piece: int) -> None:
    found = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_file, "MAX_DEPTH", 2)
        patch.setattr(safetensors_file, "_PIECE", piece)
        try:
            parse_json(text, "x")
        except FormatError as error:
            found = str(error)
    assert (f"nested {nesting(text)} deep" in found) == (nesting(text) > 2)


def test_an_unknown_version_or_no_seal_is_refused(shared: Parts, tmp_path: Path) -> None:
    text = text_of(shared)
    assert "version '4', expected 1 to 3" in refused(seal_text(shared, text, version="4"), tmp_path)
    assert "seal" in refused(seal_text(shared, text, version="1 2"), tmp_path)
    assert "damaged" in refused(seal_packed(shared, b"\xff\xfe\xfd"), tmp_path)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = packed.compress(text) + packed.flush()
    assert "truncated" in refused(seal_packed(shared, whole[:-3]), tmp_path)
    assert "trailing" in refused(seal_packed(shared, whole + b"x"), tmp_path)


def test_another_network_is_named(shared: Parts, factorized: Parts, tmp_path: Path) -> None:
    specs, _ = pruned_and_shared()
    path = written(tmp_path / "a.gsm", seal(factorized))
    with pytest.raises(FormatError, match=r"the network lacks"):
        read_container(path, specs)
    parts = copy.deepcopy(shared)
    root(parts, "0.weight")[0] = "0.weigth"
    with pytest.raises(FormatError, match=r"'0.weigth'.*'0.weight'"):
        read_container(written(path, seal(parts)), specs)
    parts = copy.deepcopy(shared)
    parts.index["roots"].pop()
    with pytest.raises(FormatError, match=r"expected '2\.bias' too"):
        read_container(written(path, seal(parts)), specs)


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 20), st.sampled_from([BIG, 10**30, -BIG]), st.floats(allow_nan=False)),
    *(st.sampled_from(["", "U8", "F32", "BF16", "MASK", "Mask", "Dense", "Sum", "LowRank", "Ref"]), st.just([])),
    *(st.just({}), st.builds(lambda k, i: {k: i}, st.sampled_from(["n", "t"]), st.integers(0, 12))),
    st.lists(st.integers(0, 20), max_size=4),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [p for k, v in children for p in places(v, (*at, k))]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.booleans(), data=st.data())
def test_any_change_of_the_index_is_refused_or_gives_trees_that_can_be_read(
    which: bool, data: st.DataObject, shared: Parts, factorized: Parts, tmp_path: Path
) -> None:
    parts = copy.deepcopy(shared if which else factorized)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(places(parts.index)))
        target: Any = parts.index
        for key in above:
            target = target[key]
        target[last] = data.draw(scalars)
    path = written(tmp_path / "a.gsm", seal(parts))
    try:
        found = read_container(path)
    except FormatError as error:
        assert str(error)
        return
    for spec in found.specs:
        assert found.trees[spec.name].dense_shape() == spec.shape


@pytest.mark.parametrize(
    "factors",
    [
        (Dense(torch.zeros(16, 2, dtype=torch.float64)), Dense(torch.zeros(2, 12))),
        (Dense(torch.zeros(16, 2, dtype=torch.int32)), Dense(torch.zeros(2, 12))),
        (Mask.of(torch.ones(16, 2, dtype=torch.bool)), Dense(torch.zeros(2, 12))),
    ],
    ids=["two dtypes", "integers", "a mask"],
)
def test_factors_that_cannot_be_multiplied_are_refused_when_the_file_is_read(tmp_path: Path, factors: tuple) -> None:
    spec = TensorSpec("w", (16, 12), torch.float32, Kind.LINEAR)
    write_container(tmp_path / "a.gsm", [spec], {"w": LowRank(*factors)})
    with pytest.raises(FormatError, match="LowRank"):
        read_container(tmp_path / "a.gsm", [spec])


def test_a_tensor_train_that_blows_up_on_the_way_is_refused(tmp_path: Path) -> None:
    spec = TensorSpec("w", (4, 4), torch.float32, Kind.LINEAR)
    cores = (torch.zeros(1, 2, 2, 2000), torch.zeros(2000, 2, 1, 1), torch.zeros(1, 1, 2, 1))
    tree = TensorTrain(tuple(Dense(c) for c in cores))
    assert tree.largest_step() == 8000
    write_container(tmp_path / "a.gsm", [spec], {"w": tree})
    with pytest.raises(FormatError, match=r"larger than|ranks"):
        read_container(tmp_path / "a.gsm", [spec])


@pytest.mark.parametrize(("count", "version", "coder", "last"), [(1 << 18, 2, 11, 10), (5000, 3, 19, 18)])
def test_coders_that_a_version_did_not_have_are_refused(
    count: int, version: int, coder: int, last: int, tmp_path: Path
) -> None:
    path = tmp_path / "large.gsm"
    spec = TensorSpec("w", (count,), torch.int64, Kind.OTHER)
    write_container(path, [spec], {"w": Dense(torch.arange(count) ** 2 % 1009 % 5)})
    data = path.read_bytes()
    seal_of = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["gossamer"]
    assert seal_of.startswith(f"{version} ")
    blank, less = f"{version - 1}{seal_of[1:-8]}{0:08}", str(version - 1)
    old = data.replace(seal_of.encode(), blank.encode(), 1)
    head = old[: 8 + int.from_bytes(old[:8], "little")]
    old = old.replace(blank.encode(), f"{less}{seal_of[1:-8]}{zlib.crc32(head):08x}".encode(), 1)
    wanted = f"unknown coder {coder}, this version knows those up to {last}"
    assert wanted in refused(old, tmp_path, expected=False)
