"""Choices among many numbers on compiled kernels: what exceeds a size, the highest of rows and of groups; merging."""

from __future__ import annotations

from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.jit.cpu import host, unavailable, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.choice_code import MAGNITUDE, MOST_OF_GROUP, VALUE
from gossamer.runtime.choice_moves_code import APART, REJOINED
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.description import blank
from gossamer.runtime.kernels import ChoiceKernels, load
from gossamer.runtime.layout import Pool
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import OpenMP, openmp

__all__ = ["MOST_OF_GROUP", "Choice", "Room", "choice", "float_bits", "kth_largest", "row_edges"]

_WORTH_A_TEAM = 1 << 16
"""Numbers from which on looking at them is worth a team."""

_WORTH_A_SAMPLE = 1 << 15
"""Numbers from which on a sample says where the k-th largest is looked for."""

_SAMPLE = 1 << 13
"""Numbers of the sample."""

_SIDES = 226
"""Of these, on each side of where it should be: five standard deviations, or more."""

Array = npt.NDArray[Any]


@final
class Room:
    """Memory for what `Choice.above` finds.

    Args:
        size: of what is looked at, at most.
        memory: where it comes from; new pages would take as long as looking.
    """

    __slots__ = ("found", "positions")

    def __init__(self, size: int, memory: Slabs) -> None:
        self.positions = memory.empty(2 * size).view(torch.int64)
        self.found = memory.empty(size)

    def taken(self, counts: Array, *, own: bool) -> tuple[Tensor, Tensor]:
        """What members found, one after the other.

        Args:
            counts: int64 [members, 2], where each begins and how many it found.
            own: whether nobody else uses the room: then nothing need be copied where there is one member.
        """
        parts = counts.tolist()
        if own and len(parts) == 1:
            ((low, n),) = parts
            return self.positions[low : low + n], self.found[low : low + n]
        positions, found = (torch.cat([t[low : low + n] for low, n in parts]) for t in (self.positions, self.found))
        return positions, found


def float_bits(number: float) -> int:
    """The bits of a number, rounded to float32.

    Example:
        >>> hex(float_bits(1.0))
        '0x3f800000'
    """
    return int(np.array(number, np.float32).view(np.uint32))


def kth_largest(numbers: Array, k: int) -> float:
    """The k-th largest of float32 numbers, exactly.

    Args:
        numbers: [n], no NaN.
        k: 1 to n.

    Cost: O(n): a comparison or two per number, and a tenth of them are looked at in detail.

    Example:
        >>> kth_largest(np.array([1.0, 3.0, 2.0], np.float32), 2)
        2.0
    """
    n = len(numbers)
    if n >= _WORTH_A_SAMPLE:
        sample = np.sort(numbers[:: (n // _SAMPLE) | 1])
        at = round(len(sample) * (1 - k / n))
        low = sample[at - _SIDES] if at >= _SIDES else np.float32(-np.inf)
        high = sample[at + _SIDES] if at + _SIDES < len(sample) else np.float32(np.inf)
        not_above = numbers <= high
        inside = numbers[np.flatnonzero((numbers >= low) & not_above)]
        rest = k - (n - int(np.count_nonzero(not_above)))
        if 0 < rest <= len(inside):  # else the sample was not like the rest
            numbers, n, k = inside, len(inside), rest
    return float(np.partition(numbers, n - k)[n - k])


@final
class Choice(CompiledProduct):
    """The kernels. Results do not depend on the number of threads.

    All tensors are contiguous and on the CPU; positions int64. Not checked.

    Args:
        kernels: compiled code.
        pool: where threads come from.
    """

    def __init__(self, kernels: ChoiceKernels, pool: OpenMP) -> None:
        self.kernels = kernels
        self.openmp = pool
        self.memory = Slabs()
        self._description = blank(max(Pool) + 1, pool)
        self._address: int = self._description.ctypes.data

    def above(
        self, values: Tensor, threshold: float, *, magnitude: bool, first: int = 0, room: Room | None = None
    ) -> tuple[Tensor, Tensor]:
        """Where numbers are larger than a threshold, or not numbers, and these numbers.

        Args:
            values: float32 [n].
            threshold: is rounded to float32.
            magnitude: whether it is their magnitudes that are compared.
            first: what positions begin with.
            room: memory for n numbers that is used again; None: new memory.

        Returns:
            positions int64 [found], ascending, and float32 [found].
        """
        n, threads = values.numel(), self._threads(values.numel())
        own, room = room is None, room or Room(n, self.memory)
        counts = np.zeros((threads, 2), np.int64)
        self.kernels.above(
            self._address,
            values.data_ptr(),
            n,
            float_bits(threshold),
            MAGNITUDE if magnitude else VALUE,
            first,
            room.positions.data_ptr(),
            room.found.data_ptr(),
            counts.ctypes.data,
            threads,
        )
        return room.taken(counts, own=own)

    def blank(self, values: Tensor, positions: Tensor, begin: int, end: int, first: int) -> None:
        """Zero at ``positions[begin:end]``, which count from ``first``."""
        self.kernels.blank(values.data_ptr(), positions.data_ptr(), begin, end, first)

    def best_of_rows(
        self,
        scores: Tensor,
        count: int,
        which: Tensor | None = None,
        *,
        magnitude: bool = False,
        always: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The ``count`` highest of each row, of equal ones the first.

        Args:
            scores: float32 [rows, columns], without signs unless magnitude; NaN is higher than infinity.
            count: 0 to columns.
            which: int64, rows that are looked at; None: all.
            magnitude: whether it is their magnitudes that are compared; then several rows have to be looked at.
            always: what becomes infinite before: flat positions int64, ascending, and their `edges`; then several rows
                have to be looked at.

        Returns:
            flat positions int64 [rows that are looked at · count]; ascending if ``which`` is.

        Cost: some nanoseconds per score.
        """
        rows = torch.arange(len(scores)) if which is None else which
        assert len(rows) != 1 or not (magnitude or always), "one row is looked at as it is"
        made = torch.empty(len(rows) * count, dtype=torch.int64)
        columns = scores.shape[1]
        threads = 1 if len(rows) == 1 else self._threads(8 * len(rows) * columns)
        room = Room(0 if len(rows) == 1 else threads * columns, self.memory)
        places, starts = always or (None, None)
        self.kernels.best_of_rows(
            self._address,
            scores.data_ptr(),
            rows.data_ptr(),
            len(rows),
            columns,
            count,
            MAGNITUDE if magnitude else VALUE,
            0 if places is None else places.data_ptr(),
            0 if starts is None else starts.data_ptr(),
            made.data_ptr(),
            room.found.data_ptr(),
            room.positions.data_ptr(),
            threads,
        )
        return made

    def best_of_groups(self, scores: Tensor, size: int, count: int) -> Tensor:
        """The same of each ``size`` scores that lie side by side.

        Args:
            scores: float32 [n], n a multiple of ``size``.
            size: up to `MOST_OF_GROUP`.
            count: 0 to ``size``.
        """
        groups = scores.numel() // size
        made = torch.empty(groups * count, dtype=torch.int64)
        self.kernels.best_of_groups(
            self._address,
            scores.data_ptr(),
            groups,
            size,
            count,
            made.data_ptr(),
            self._threads(4 * scores.numel()),
        )
        return made

    def merged(self, a: Tensor, b: Tensor) -> Tensor:
        """Ascending positions of both, each int64 and ascending."""
        made = torch.empty(len(a) + len(b), dtype=torch.int64)
        given = (a.data_ptr(), len(a), b.data_ptr(), len(b), made.data_ptr())
        self.kernels.merge(self._address, *given, self._threads(len(made)))
        return made

    def rejoined(self, old: Tensor, kept: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The old positions that are kept and the new ones, ascending; and their places among the old ones.

        Args:
            old: int64, ascending.
            kept: bool [old].
            new: int64, ascending; may hold old ones that are not kept.

        Returns:
            positions, and places int64: the number of old ones where there is none.
        """
        threads, n = self._threads(len(old) + len(new)), len(old)
        shares = threads * REJOINED
        counts = [int(torch.count_nonzero(kept[s * n // shares : (s + 1) * n // shares])) for s in range(shares)]
        before = np.cumsum([0, *counts])
        size = int(before[-1]) + len(new)
        made, sources = (torch.empty(size + APART * threads, dtype=torch.int64) for _ in range(2))
        addresses = (old.data_ptr(), n, kept.data_ptr(), new.data_ptr(), len(new), before.ctypes.data, threads)
        self.kernels.rejoin(self._address, *addresses, made.data_ptr(), sources.data_ptr(), threads)
        return made[:size], sources[:size]

    def edges(self, positions: Tensor, rows: int, columns: int) -> Tensor:
        """Which of the ascending int64 positions in a matrix is the first of each row; and their number."""
        made = torch.empty(rows + 1, dtype=torch.int64)
        self.kernels.edges(positions.data_ptr(), len(positions), rows, columns, made.data_ptr())
        return made

    def sources(self, old: Tensor, new: Tensor, missing: int) -> Tensor:
        """The place of each of the ``new`` among the ``old``, or ``missing``; both int64 and ascending."""
        made = torch.empty(len(new), dtype=torch.int64)
        given = (old.data_ptr(), len(old), new.data_ptr(), len(new), missing, made.data_ptr())
        self.kernels.follow(self._address, *given, self._threads(len(new)))
        return made

    def carried(self, old: Tensor, sources: Tensor) -> Tensor:
        """``old[sources]``, float32, and zero where a source is the number of old ones or more."""
        made = old.new_zeros(len(sources)) if not len(old) else old.new_empty(len(sources))
        given = (old.data_ptr(), len(old), sources.data_ptr(), len(sources), made.data_ptr())
        self.kernels.carry(self._address, *given, self._threads(len(sources)))
        return made

    def _threads(self, numbers: int) -> int:
        return 1 if numbers < _WORTH_A_TEAM else self.openmp.threads()


def choice() -> Choice | None:
    """The kernels for this processor; None where there are none."""
    return None if unavailable() is not None else _choice()


@cache
def _choice() -> Choice:
    return Choice(load(ChoiceKernels, host(wanted_level()), cache_directory()), openmp())


def row_edges(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Which of the positions in a matrix is the first of each row; and their number.

    Args:
        positions: int64, flat, ascending, each once.
        rows: of the matrix.
        columns: of the matrix.

    Returns:
        int64 [rows + 1].

    Example:
        >>> row_edges(torch.tensor([0, 1, 5]), 3, 2).tolist()
        [0, 2, 2, 3]
    """
    kernels = choice()
    if kernels is not None:
        return kernels.edges(positions.contiguous(), rows, columns)
    return torch.from_numpy(np.searchsorted(positions.numpy(), np.arange(rows + 1) * columns))
