"""The latest few things that were made, such as tables for a size of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar, final

__all__ = ["Recent"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@final
class Recent(Generic[Key, Value]):
    """Makes what is asked for and keeps the latest. May be used by several threads: at worst something is made twice.

    Args:
        most: how many are kept.

    Example:
        >>> squares = Recent[int, int](2)
        >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 3)], sorted(squares.values())
        ([1, 4, 9], [4, 9])
    """

    __slots__ = ("_made", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: dict[Key, Value] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """What was made for a key, or is made now."""
        found = self._made.get(key)
        if found is None:
            found = make()
            for old in list(self._made)[: max(0, len(self._made) - self._most + 1)]:
                self._made.pop(old, None)
            self._made[key] = found
        return found

    def values(self) -> Iterable[Value]:
        """All that are kept."""
        return list(self._made.values())

    def clear(self) -> None:
        """Keeps nothing."""
        self._made.clear()
