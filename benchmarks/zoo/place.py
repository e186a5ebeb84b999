"""Where the networks and data lie, what was read already, and how much of it a run uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gossamer.demo.data import Fashion, load_fashion
from gossamer.errors import DataError

__all__ = ["Zoo"]

_HELD_OUT = 5_000


@dataclass(frozen=True)
class Zoo:
    """Real data and checkpoints.

    Args:
        folder: as unpacked by fetch.sh; None: only the packaged Fashion-MNIST subset is there.
        cache: where to keep what takes long to make, such as tokens.
        quick: use a small part of everything.
        validate: measure on held-out training data instead of the test data. Settings are chosen so.
    """

    folder: Path | None
    cache: Path
    quick: bool = False
    validate: bool = False

    def path(self, *parts: str) -> Path:
        """A file or folder of the zoo.

        Raises:
            DataError: it is not there.
        """
        if self.folder is None:
            raise DataError(f"{'/'.join(parts)}: found no zoo, expected the folder that fetch.sh fills")
        found = self.folder.joinpath(*parts)
        if not found.exists():
            raise DataError(f"{found}: found nothing, expected what fetch.sh unpacks there")
        return found

    @cached_property
    def fashion(self) -> Fashion:
        """Fashion-MNIST, read once."""
        data = load_fashion(None if self.quick or self.folder is None else self.path("deb"))
        if not self.validate:
            return data
        held = min(_HELD_OUT, len(data.train) // 5)
        return replace(
            data,
            train=data.train[:-held],
            train_labels=data.train_labels[:-held],
            test=data.train[-held:],
            test_labels=data.train_labels[-held:],
        )
