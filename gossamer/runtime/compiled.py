"""What all products that hold addresses of compiled code and of their own arrays have in common."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["CompiledProduct"]


class CompiledProduct:
    """Immutable, so that a copy is the object itself; addresses mean nothing to another process."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> str:
        raise TypeError("a compiled product cannot be pickled: save the compressed network and lower it again")
