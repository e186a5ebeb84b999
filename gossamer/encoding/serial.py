"""Trees ⇄ JSON + arrays, bit for bit. Shared nodes and leaves are written once; children come before parents.

Nothing here reads or writes files; `gossamer.store` puts the arrays and the JSON into one.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from torch import Tensor

from gossamer.encoding.factors import CP, LowRank, Monarch, TensorTrain, Tucker
from gossamer.encoding.node import Encoding, Leaf
from gossamer.encoding.patterns import NM, Blocks, Mask
from gossamer.encoding.values import Affine, Codebook, Dense
from gossamer.encoding.weights import Concat, Kept, Masked, Ref, Scaled, Sum, View
from gossamer.errors import FormatError

__all__ = ["KINDS", "Flat", "flatten", "unflatten"]

# Every kind of node a file may contain. Closed: reading a file never runs code that this table does not name.
KINDS: Mapping[str, type[Encoding]] = types.MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            *(Dense, Affine, Codebook, Mask, Blocks, NM, Masked, Kept, Sum, Scaled, View, Concat, Ref),
            *(LowRank, Tucker, CP, TensorTrain, Monarch),
        )
    }
)

Json = Any
MAX_NODES = 1 << 20


@dataclass(frozen=True)
class Flat:
    """Trees taken apart.

    Args:
        kinds: [name, version] of every kind used.
        nodes: [index into kinds, {field: value}], where {"n": i} is node i, {"t": i} leaf i.
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
        [[0, {'array': {'t': 0}, 'fixed': False}]]
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

        fields = {f.name: value(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)}
        # Equal nodes over the same leaves are one: training keeps shared leaves, not shared node objects.
        text = json.dumps([kinds[kind], fields])
        if text not in by_text:
            by_text[text] = len(flat.nodes)
            flat.nodes.append([kinds[kind], fields])
        node_ids[id(node)] = by_text[text]
        return node_ids[id(node)]

    for name, tree in trees.items():
        by_place = {(id(leaf.owner), leaf.field): leaf for leaf in tree.leaves()}
        flat.roots[name] = visit(tree, name, by_place)
    return flat


def unflatten(
    kinds: Json, nodes: Json, roots: Mapping[str, int], leaves: Sequence[Tensor], *, contents: bool = True
) -> dict[str, Encoding]:
    """Put trees together again from untrusted JSON.

    Args:
        kinds: as in `Flat`.
        nodes: as in `Flat`.
        roots: as in `Flat`.
        leaves: the tensors that {"t": i} stands for.
        contents: also check what the leaves hold (False where they are placeholders).

    Raises:
        FormatError: unknown kind or version, malformed field, forward reference, inconsistent shapes or contents.
    """
    known = [_kind(k) for k in _list(kinds, "kinds")]
    made: list[Encoding] = []
    if len(_list(nodes, "nodes")) > MAX_NODES:
        raise FormatError(f"found {len(nodes)} nodes, expected at most {MAX_NODES}")
    for i, node in enumerate(nodes):
        if not (isinstance(node, list) and len(node) == 2 and _is_index(node[0], len(known))):
            raise FormatError(f"node {i}: found {str(node)[:80]}, expected [kind, fields]")
        made.append(_make(i, known[node[0]], node[1], made, leaves, contents))
    for name, at in roots.items():
        if not _is_index(at, len(made)):
            raise FormatError(f"tensor {name!r}: found root {at}, expected one of {len(made)} nodes")
    return {name: made[at] for name, at in roots.items()}


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
    i: int, kind: type[Encoding], fields: Json, made: list[Encoding], leaves: Sequence[Tensor], contents: bool
) -> Encoding:
    where = f"node {i} ({kind.__name__})"
    hints = _hints(kind)
    if not isinstance(fields, dict) or set(fields) != set(hints):
        found = sorted(fields) if isinstance(fields, dict) else fields
        raise FormatError(f"{where}: found fields {str(found)[:120]}, expected {sorted(hints)}")
    values = {name: _value(f"{where} {name}", fields[name], hint, made, leaves) for name, hint in hints.items()}
    try:
        node = kind(**values)
        if contents:
            node.validate()
    except FormatError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError, OverflowError, ZeroDivisionError) as broken:
        raise FormatError(f"{where}: {broken}".splitlines()[0]) from broken
    return node


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
    for option in _options(hint):
        if option is type(None) and value is None:
            return True
        if not isinstance(option, type):
            continue
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return True
        if option in (int, str, bool) and type(value) is option:
            return True
        if issubclass(option, (Encoding, Tensor)) and isinstance(value, option):
            return True
    return False


def _is_index(value: Json, length: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < length


def _list(value: Json, what: str) -> list[Json]:
    if not isinstance(value, list):
        raise FormatError(f"{what}: found {type(value).__name__}, expected a list")
    return value


@cache
def _hints(kind: type[Encoding]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}
