"""Writing that leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gossamer.errors import DataError

__all__ = ["write_atomically"]


def write_atomically(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Write a temporary sibling, flush it to disk, rename it over ``path``.

    On any failure or interruption the sibling is removed and an old file at ``path`` stays as it was.

    Returns:
        Bytes written.

    Raises:
        DataError: the folder is missing or not writable, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot write there: {error.strerror}") from error
    part = Path(name)
    size = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(_mode_of(path))
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: writing failed, the old file if any is untouched: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed: nothing left to remove
            part.unlink()
    return size


def _mode_of(path: Path) -> int:
    """Permissions of the file that is replaced, or what a new file would have had."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
