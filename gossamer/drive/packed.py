"""Outputs of modules taken apart into tensors and plain structure, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Unpackable", "pack", "tensors_in", "unpack"]

Json = Any


class Unpackable(Exception):
    """A value of another type than tensors, plain numbers, text, and tuples, lists and dicts of them."""


def pack(value: Any, tensors: list[Tensor]) -> Json:
    """Structure as JSON; the tensors are appended to a list.

    Raises:
        Unpackable: names the type.

    Example:
        >>> pack((torch.zeros(2), {"n": 1}), [])
        ['tuple', [['tensor', 0], ['dict', [['n', ['value', 1]]]]]]
    """
    kind = type(value)
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise Unpackable(str(value.layout))
        tensors.append(value.detach())
        return ["tensor", len(tensors) - 1]
    if value is None or kind in (bool, int, float, str):
        return ["value", value]
    if kind in (tuple, list, torch.Size):
        return ["list" if kind is list else "tuple", [pack(v, tensors) for v in value]]
    if kind is dict and all(type(k) is str for k in value):
        return ["dict", [[k, pack(v, tensors)] for k, v in value.items()]]
    raise Unpackable(kind.__name__)


def unpack(structure: Json, tensor: Callable[[int], Tensor]) -> Any:
    """The value again.

    Args:
        structure: from `pack`.
        tensor: the tensor of a number.
    """
    kind, inside = structure
    if kind == "tensor":
        return tensor(inside)
    if kind == "value":
        return inside
    if kind == "dict":
        return {k: unpack(v, tensor) for k, v in inside}
    members = [unpack(v, tensor) for v in inside]
    return members if kind == "list" else tuple(members)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of tuples, lists, dicts and of objects' attributes, each structure once."""
    seen: set[int] = set()

    def walk(part: Any, depth: int) -> Iterator[Tensor]:
        if isinstance(part, Tensor):
            yield part
            return
        if depth > 6 or id(part) in seen or part is None or isinstance(part, (str, int, float, bool, torch.nn.Module)):
            return
        seen.add(id(part))
        members = part.values() if isinstance(part, dict) else part if isinstance(part, (tuple, list)) else ()
        if not members and hasattr(part, "__dict__"):
            members = vars(part).values()
        for member in members:
            yield from walk(member, depth + 1)

    return walk(value, 0)
