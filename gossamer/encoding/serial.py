"""Trees ⇄ JSON + arrays, bit for bit. Shared nodes and leaves are written once; children come before parents.

Nothing here reads or writes files; `gossamer.store` puts the arrays and the JSON into one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from gossamer.encoding.convolutional import Convolutional
from gossamer.encoding.delta import Delta, External
from gossamer.encoding.drawn import Drawn
from gossamer.encoding.factors import CP, LowRank, Monarch, TensorTrain, Tucker
from gossamer.encoding.generated import Hashed, KernelBasis
from gossamer.encoding.interpolation import Interpolation
from gossamer.encoding.levels import NormalLevels, PowerLevels
from gossamer.encoding.node import Encoding, Leaf, Pattern, Value, computable_dtype
from gossamer.encoding.patterns import NM, Blocks, KernelShapes, Mask
from gossamer.encoding.rotated import Rotated
from gossamer.encoding.values import Affine, Codebook, Constant, Dense
from gossamer.encoding.vectors import VectorCodebook
from gossamer.encoding.weights import Concat, Kept, Masked, Permuted, Ref, Scaled, Sum, View
from gossamer.errors import FormatError

__all__ = ["KINDS", "Flat", "flatten", "unflatten"]

# Every kind of node a file may contain. Closed: reading a file never runs code that this table does not name.
KINDS: Mapping[str, type[Encoding]] = types.MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            *(Dense, Affine, Codebook, Mask, Blocks, NM, Masked, Kept, Sum, Scaled, View, Concat, Ref),
            *(LowRank, Tucker, CP, TensorTrain, Monarch),
            *(Delta, External),
            *(VectorCodebook, Hashed, KernelBasis, Convolutional, Drawn),
            *(Constant, NormalLevels, PowerLevels),
            *(KernelShapes, Permuted),
            *(Interpolation, Rotated),
        )
    }
)

Json = Any
MAX_NODES = 1 << 20  # also of all trees written out, with shared nodes once per place
MAX_DEPTH = 32
_STEPS = 16
_MAX_AXES = 32
_MAX_SIZE = 1 << 48


@dataclass(frozen=True)
class Flat:
    """Trees taken apart.

    Args:
        kinds: [name, version] of every kind used.
        nodes: [index into kinds, value of each field in the order of that version], where {"n": i} is the node i places
            before this one and {"t": i} leaf i. Trailing values that are their field's default are left out.
        roots: name of each tree → its node.
        leaves: the distinct leaves, each as first met.
        owner: for each leaf the name of the tree that it was first met in.
    """

    kinds: list[list[Json]]
    nodes: list[list[Json]]
    roots: dict[str, int]
    leaves: list[Leaf]
    owner: list[str]


def flatten(trees: Mapping[str, Encoding]) -> Flat:
    """Take trees apart into JSON and leaves.

    Cost: linear in the number of nodes; leaves are not copied.

    Example:
        >>> import torch
        >>> flatten({"w": Dense(torch.zeros(2))}).nodes
        [[0, {'t': 0}]]
    """
    flat = Flat([], [], {}, [], [])
    kinds: dict[str, int] = {}
    node_ids: dict[int, int] = {}
    leaf_ids: dict[int, int] = {}
    by_text: dict[str, int] = {}

    def visit(node: Encoding, name: str, leaves: dict[tuple[int, str], Leaf]) -> int:
        if id(node) in node_ids:
            return node_ids[id(node)]
        kind = type(node).__name__
        if kind not in kinds:
            kinds[kind] = len(flat.kinds)
            flat.kinds.append([kind, type(node).version])

        def value(field: str, found: object) -> Json:
            if isinstance(found, Encoding):
                return {"n": visit(found, name, leaves)}
            if isinstance(found, Tensor):
                if id(found) not in leaf_ids:
                    leaf_ids[id(found)] = len(flat.leaves)
                    flat.leaves.append(leaves[id(node), field])
                    flat.owner.append(name)
                return {"t": leaf_ids[id(found)]}
            if isinstance(found, tuple):
                return [value(f"{field}.{i}", member) for i, member in enumerate(found)]
            return found

        given = [(f, getattr(node, f.name)) for f in dataclasses.fields(node)]
        while given and _is_default(*given[-1]):
            given.pop()
        fields = [value(f.name, found) for f, found in given]
        # Equal nodes over the same leaves are one: training keeps shared leaves, not shared node objects.
        text = json.dumps([kinds[kind], *fields])
        if text not in by_text:
            here = len(flat.nodes)
            by_text[text] = here
            flat.nodes.append([kinds[kind], *(_turned(field, here) for field in fields)])
        node_ids[id(node)] = by_text[text]
        return node_ids[id(node)]

    for name, tree in trees.items():
        by_place = {(id(leaf.owner), leaf.field): leaf for leaf in tree.leaves()}
        flat.roots[name] = visit(tree, name, by_place)
    return flat


def unflatten(
    kinds: Json,
    nodes: Json,
    roots: Mapping[str, int],
    leaves: Sequence[Tensor],
    *,
    contents: bool = True,
    most: int | None = None,
) -> dict[str, Encoding]:
    """Put trees together again from untrusted JSON.

    Args:
        kinds: as in `Flat`.
        nodes: as in `Flat`.
        roots: as in `Flat`.
        leaves: the tensors that {"t": i} stands for.
        contents: also check what the leaves hold (False where they are placeholders).
        most: largest number of elements that any node may stand for; None: no limit.

    Raises:
        FormatError: unknown kind or version, malformed field, forward reference, inconsistent shapes or contents,
            trees deeper than 32 or, with shared nodes written out, larger than 2²⁰ nodes.
    """
    known = [_kind(k) for k in _list(kinds, "kinds")]
    made: list[Encoding] = []
    depths: list[int] = []
    places: list[int] = []
    dtypes: dict[int, torch.dtype] = {}
    if len(_list(nodes, "nodes")) > MAX_NODES:
        raise FormatError(f"found {len(nodes)} nodes, expected at most {MAX_NODES}")
    for i, node in enumerate(nodes):
        good = isinstance(node, list) and len(node) >= 1 and _is_index(node[0], len(known))
        names = _hints(known[node[0]]) if good else {}
        if not good or len(node) > 1 + len(names):
            raise FormatError(f"node {i}: found {str(node)[:80]}, expected [kind, value of each field]")
        fields, below = dict[str, Json](), list[int]()
        for field, value in zip(names, node[1:], strict=False):
            fields[field] = value
            if isinstance(value, (dict, list)):  # nothing else refers to nodes
                fields[field] = _turned(value, i)
                below += _references(fields[field], i)
        depths.append(1 + max([depths[j] for j in below], default=0))
        places.append(1 + sum([places[j] for j in below]))
        if depths[i] > MAX_DEPTH or places[i] > MAX_NODES:  # few nodes can share their way to a tree without end
            found = f"a tree {depths[i]} deep with {places[i]} nodes"
            raise FormatError(f"node {i}: found {found}, expected at most {MAX_DEPTH} and {MAX_NODES}")
        made.append(_make(i, known[node[0]], fields, made, leaves, contents, most, dtypes))
    for name, at in roots.items():
        if not _is_index(at, len(made)):
            raise FormatError(f"tensor {name!r}: found root {at}, expected one of {len(made)} nodes")
        if contents:
            _check_groups(f"tensor {name!r}", made[at])
    if sum(places[at] for at in roots.values()) > MAX_NODES:
        raise FormatError(f"found trees of {sum(places[at] for at in roots.values())} nodes, expected {MAX_NODES}")
    return {name: made[at] for name, at in roots.items()}


def _turned(value: Json, here: int) -> Json:
    """References to nodes by number as distances back from ``here``, or the reverse; anything else as it is.

    Equal layers then have equal JSON, which deflates to nearly nothing.
    """
    if isinstance(value, dict) and type(value.get("n")) is int:
        return {**value, "n": here - value["n"]}
    return [_turned(member, here) for member in value] if isinstance(value, list) else value


def _references(value: Json, before: int) -> Iterator[int]:
    """Earlier nodes that a field's JSON refers to."""
    if isinstance(value, dict) and _is_index(value.get("n"), before):
        yield value["n"]
    elif isinstance(value, list):
        for member in value:
            yield from _references(member, before)


def _check_groups(where: str, node: Encoding, part: str = "") -> None:
    # A value that is not packed under a mask: its own elements are all there are.
    if isinstance(node, Value):
        try:
            node.validate_over(prod(node.dense_shape()))
        except FormatError as broken:
            raise FormatError(f"{where}{part}: {broken}") from broken


def _kind(entry: Json) -> type[Encoding]:
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
        raise FormatError(f"kinds: found {str(entry)[:80]}, expected [name, version]")
    kind = KINDS.get(entry[0])
    if kind is None:
        raise FormatError(f"found unknown kind of node {entry[0][:40]!r}, expected one of {sorted(KINDS)}")
    if entry[1] != kind.version or isinstance(entry[1], bool):
        raise FormatError(f"{entry[0]}: found version {str(entry[1])[:20]}, expected {kind.version}")
    return kind


def _make(
    i: int,
    kind: type[Encoding],
    fields: Mapping[str, Json],
    made: list[Encoding],
    leaves: Sequence[Tensor],
    contents: bool,
    most: int | None,
    dtypes: dict[int, torch.dtype],
) -> Encoding:
    where = f"node {i} ({kind.__name__})"
    hints = _hints(kind)
    if not _required(kind) <= fields.keys() <= hints.keys():
        raise FormatError(f"{where}: found fields {str(sorted(fields))[:120]}, expected {sorted(hints)}")
    values = {n: _value(f"{where} {n}", found, hints[n], made, leaves) for n, found in fields.items()}
    try:
        node = kind(**values)
        shape = node.dense_shape()
        # Sizes are bounded one by one too: a zero makes a product nothing, whatever else it has.
        boundless = len(shape) > _MAX_AXES or prod([size or 1 for size in shape]) >= _MAX_SIZE
        if min(shape, default=0) < 0 or boundless or (most is not None and prod(shape) > most):
            raise FormatError(f"{where}: found shape {str(shape)[:60]}, larger than any tensor needs, or negative")
        if contents:
            node.validate()
            dtypes[id(node)] = _result_dtype(node, dtypes)
            if most is not None and isinstance(node, TensorTrain) and node.largest_step() > _STEPS * most:
                raise FormatError(f"{where}: found ranks that take {node.largest_step()} numbers to multiply out")
            for name, part in () if isinstance(node, Masked) else node.parts():
                if isinstance(part, Encoding):
                    _check_groups(where, part, f" {name}")
    except FormatError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError, OverflowError, ZeroDivisionError) as broken:
        raise FormatError(f"{where}: {broken}".splitlines()[0]) from broken
    return node


def _result_dtype(node: Encoding, known: Mapping[int, torch.dtype]) -> torch.dtype:
    """Dtype that a tree's numbers are computed in; ``known`` has those of its parts by identity.

    Raises:
        FormatError: numbers that cannot be combined, such as factors of different dtypes, or a mask as a factor.
    """
    if isinstance(node, Dense):
        return computable_dtype(node.array.dtype)
    if isinstance(node, (Constant, PowerLevels)):
        return torch.float32
    if isinstance(node, (Pattern, Ref, KernelBasis)):
        return torch.bool if isinstance(node, Pattern) else torch.float32
    if isinstance(node, (Delta, External)):
        external = node.reference if isinstance(node, Delta) else node
        found = external.numbers() if isinstance(external, External) else torch.float32
        return torch.float32 if found in (torch.float16, torch.bfloat16) else found
    expected_pattern = "where", "keep", "rows"
    below = []
    for name, part in node.parts():
        # A generated v is computed in the dtype of u.
        generated = isinstance(node, LowRank) and name == "v" and isinstance(part, KernelBasis)
        if isinstance(part, Encoding) and not generated and name.partition(".")[0] not in expected_pattern:
            below.append(known[id(part)])
    same = len(set(below)) == 1
    if same and isinstance(node, (Masked, Kept, View, Permuted)):
        return below[0]
    if not same or below[0] not in (torch.float32, torch.float64):
        raise FormatError(f"{type(node).__name__}: found parts of {below}, expected floats of one dtype")
    return below[0]


def _value(where: str, found: Json, hint: Any, made: list[Encoding], leaves: Sequence[Tensor]) -> object:
    result: object
    if isinstance(found, dict):
        key = next(iter(found), "")
        index = found.get(key)
        known: Sequence[object] = made if key == "n" else leaves if key == "t" else ()
        if len(found) != 1 or not isinstance(index, int) or not _is_index(index, len(known)):
            raise FormatError(f"{where}: found reference {str(found)[:60]}, expected an earlier node or a leaf")
        result = known[index]
    elif isinstance(found, list):
        inner = _member_hint(hint, where)
        result = tuple(_value(where, member, inner, made, leaves) for member in found)
        _check_length(where, result, hint)
        return result
    else:
        result = found
    if not _conforms(result, hint):
        raise FormatError(f"{where}: found {type(result).__name__}, expected {getattr(hint, '__name__', hint)}")
    return float(cast(float, result)) if hint is float else result


def _member_hint(hint: Any, where: str) -> Any:
    for option in _options(hint):
        if typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
    raise FormatError(f"{where}: found a list, expected {getattr(hint, '__name__', hint)}")


def _check_length(where: str, found: tuple[object, ...], hint: Any) -> None:
    for option in _options(hint):
        args = typing.get_args(option)
        if typing.get_origin(option) is tuple and (Ellipsis in args or len(args) == len(found)):
            return
    raise FormatError(f"{where}: found {len(found)} members, expected {hint}")


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _conforms(value: object, hint: Any) -> bool:
    plain, objects = _accepted(hint)
    if float in plain and type(value) in (int, float):
        number = cast(float, value)
        return abs(number) <= sys.float_info.max  # JSON has 1e999, which is infinite, and integers of any size
    return type(value) in plain or isinstance(value, objects)


@cache
def _accepted(hint: Any) -> tuple[frozenset[type], tuple[type, ...]]:
    """Kinds of plain values, and of nodes and tensors, that a field takes; a number may be written as an integer."""
    options = [option for option in _options(hint) if isinstance(option, type)]
    plain = frozenset(options) & {int, float, str, bool, type(None)}
    return plain, tuple(option for option in options if issubclass(option, (Encoding, Tensor)))


def _is_index(value: Json, length: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < length


def _list(value: Json, what: str) -> list[Json]:
    if not isinstance(value, list):
        raise FormatError(f"{what}: found {type(value).__name__}, expected a list")
    return value


def _is_default(field: dataclasses.Field[Any], found: object) -> bool:
    """Whether a setting need not be written: it is what the kind's version has as its default."""
    return not isinstance(found, (Encoding, Tensor)) and type(found) is type(field.default) and found == field.default


@cache
def _required(kind: type[Encoding]) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING)


@cache
def _hints(kind: type[Encoding]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}
