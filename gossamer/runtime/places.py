"""Where the non-zeros of a packed convolution are, held once however many layouts kernels meet."""

from __future__ import annotations

from typing import Any, final
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

__all__ = ["Places"]

Array = npt.NDArray[Any]


@final
class Places:
    """Columns within their panels, as distances in whichever layouts are in use.

    A kernel reads an index of distances that belongs to one layout and size of images. Columns can be told from such an
    index again: so only indices that somebody uses are held, and at least one.

    Args:
        columns: uint16 [n].

    Example:
        >>> places = Places(np.array([2, 0, 1, 2], np.uint16))
        >>> index = places.at(np.array([10, 13, 16]))
        >>> index.tolist(), places.columns().tolist(), places.nbytes
        ([16, 10, 13, 16], [2, 0, 1, 2], 8)
    """

    def __init__(self, columns: Array) -> None:
        self._held: tuple[Array, bytes] = columns, b""  # one index, and the distances of all columns in it
        self._alive: WeakValueDictionary[bytes, Array] = WeakValueDictionary()

    def at(self, distances: Array) -> Array:
        """The index of a layout.

        Args:
            distances: [columns of a panel], each below 2¹⁶, no two the same.

        Returns:
            uint16 [n], the distance of each non-zero; the same array for the same distances while it is in use.
        """
        key = distances.astype(np.uint16).tobytes()
        index = self._alive.get(key)
        if index is None:
            index = self._alive[key] = np.frombuffer(key, np.uint16)[self.columns()]
        self._held = index, key
        return index

    def columns(self) -> Array:
        """uint16 [n]."""
        index, key = self._held
        if not key:
            return index
        distances = np.frombuffer(key, np.uint16)
        column = np.empty(1 << 16, np.uint16)
        column[distances] = np.arange(len(distances), dtype=np.uint16)
        return column[index]

    def release(self) -> None:
        """Holds an index that others use, if there is one."""
        for key, index in list(self._alive.items()):
            if index is not self._held[0]:
                self._held = index, key
                return

    @property
    def nbytes(self) -> int:
        """Bytes of all indices in use."""
        held = {id(index): index.nbytes for index in (self._held[0], *self._alive.values())}
        return sum(held.values())
