"""Writing that leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from gossamer.errors import DataError

__all__ = ["check_creatable", "publish", "replacing", "write_atomically"]


def check_creatable(path: Path) -> None:
    """Refuse, before work is done for it, a file that could not be written; leaves nothing behind.

    Raises:
        DataError: the folder is missing or not writable, the name is too long, or ``path`` is a folder.
    """
    try:
        if not path.parent.is_dir():
            raise DataError(f"{path}: found no folder {path.parent}")
        if path.is_dir():
            raise DataError(f"{path}: found a folder, expected the name of a file")
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".part", dir=path.parent):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot write there: {error.strerror}") from error


def write_atomically(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Write a temporary sibling, flush it to disk, rename it over ``path``.

    On any failure or interruption the sibling is removed and an old file at ``path`` stays as it was.

    Returns:
        Bytes written.

    Raises:
        DataError: the folder is missing or not writable, or the disk is full.
    """
    size = 0
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)
            size += len(chunk)
    return size


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary sibling to write and read, in any order; it takes the place of ``path`` when the block ends well.

    Raises:
        DataError: the folder is missing or not writable, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot write there: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        publish(part, path)
    except OSError as error:
        raise DataError(f"{path}: writing failed, the old file if any is untouched: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed: nothing left to remove
            part.unlink()


def publish(part: Path, path: Path) -> None:
    """Flush a complete file to disk and rename it over ``path``, with the permissions of a file at ``path``."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.chmod(_mode_of(path))
    part.replace(path)


def _mode_of(path: Path) -> int:
    """Permissions of the file that is replaced, or what a new file would have had."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
