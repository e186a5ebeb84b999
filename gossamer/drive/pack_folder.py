"""A folder with ``.safetensors`` files to a folder with packed ones and back; everything else is copied."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gossamer.drive.growing import refuse_output
from gossamer.drive.pack_file import PackedUnit, Source, Tally, pack_file, unpack_file
from gossamer.errors import DataError, FormatError, PlanError
from gossamer.store.atomic import write_atomically
from gossamer.store.byte_file import file_sums
from gossamer.store.journal import Journal, read_journal
from gossamer.store.layout import LARGE_FROM
from gossamer.store.packed_file import PackedFile
from gossamer.store.packed_layout import ENDING, VERSION
from gossamer.store.reference import Reference
from gossamer.store.safetensors_file import parse_json

__all__ = ["MANIFEST", "PackedFolder", "Tree", "pack_folder"]

Json = Any

MANIFEST: Final = "gossamer.pack.json"
_WEIGHTS: Final = ".safetensors"


@dataclass(frozen=True)
class Tree:
    """What is in a folder.

    Args:
        root: the folder.
        files: with ``/``, counted from the root, in order.
        empty: folders with nothing in them.
    """

    root: Path
    files: tuple[str, ...]
    empty: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """Walk it.

        Raises:
            DataError: something that is neither a file nor a folder of its own.
        """
        files: list[str] = []
        empty: list[str] = []
        for folder, inner, names in os.walk(root, onerror=_refuse):
            here = Path(folder)
            inner.sort()
            linked = next((n for n in inner if (here / n).is_symlink()), None)
            if linked is not None:
                raise DataError(f"{here / linked}: found a link to a folder, expected files and folders")
            for name in sorted(names):
                if not (here / name).is_file():
                    raise DataError(f"{here / name}: found no ordinary file, expected files and folders")
                files.append((here / name).relative_to(root).as_posix())
            if not inner and not names and here != root:
                empty.append(here.relative_to(root).as_posix())
        return cls(root, tuple(sorted(files)), tuple(sorted(empty)))

    def identity(self) -> Json:
        """Names, bytes and times: what must be the same when a run goes on."""
        found = [(name, (self.root / name).stat()) for name in self.files]
        return [[name, s.st_size, s.st_mtime_ns] for name, s in found]


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def pack_folder(
    source: Path,
    out: Path,
    *,
    reference: Reference | None,
    verify: bool,
    resume: bool,
    workers: int,
    tally: Tally,
) -> tuple[int, int, dict[str, list[PackedUnit]], int]:
    """Pack every ``X.safetensors`` of a folder to ``X.safetensors.packed``, copy the rest.

    The folder grows as ``out`` + ".part" and is renamed. Beside it a journal says which files are finished.

    Returns:
        (bytes in, bytes out, what was done per file, pieces that an earlier run had finished).

    Raises:
        PlanError: something lies at ``out``, ``out`` lies in the source, or an earlier run that this one does not
            continue.
        DataError: no ``.safetensors`` in it, or files that cannot be read or written.
        FormatError: a file that is truncated or malformed; all headers are checked before anything is written.
    """
    refuse_output(out)
    _refuse_inside(source, out)
    tree = Tree.of(source)
    weights = [name for name in tree.files if name.endswith(_WEIGHTS)]
    if not weights:
        raise DataError(f"{source}: found no *{_WEIGHTS}, expected a folder with weights")
    taken = next((n for n in tree.files if _WEIGHTS + ENDING in n or n == MANIFEST), None)
    if taken is not None:
        raise DataError(f"{source / taken}: found what packing writes, expected a folder that was not packed before")
    sources = {name: Source(source / name) for name in weights}
    nbytes = sum((source / name).stat().st_size for name in tree.files)
    tally.total = nbytes
    start = {"version": VERSION, "folder": tree.identity(), "reference": reference.identity() if reference else None}
    told: dict[str, list[PackedUnit]] = {}
    again = 0
    with _growing_folder(out, start, nbytes, resume=resume) as (part, done):
        for name in (*weights, *(n for n in tree.files if n not in sources)):
            to = part / (name + ENDING if name in sources else name)
            to.parent.mkdir(parents=True, exist_ok=True)
            if name not in sources:
                _copy(source / name, to)
                tally.add(to.stat().st_size)
            elif name in done.names and to.is_file():
                again += len(PackedFile(to).pieces)
                tally.add(sources[name].layout.file_bytes)
            else:
                to.unlink(missing_ok=True)  # complete perhaps, but nobody noted it
                _, told[name], finished = pack_file(
                    sources[name],
                    to,
                    reference=reference,
                    near=name,
                    verify=verify,
                    resume=True,
                    workers=workers,
                    tally=tally,
                )
                again += finished
                done.note(name)
        for name in tree.empty:
            (part / name).mkdir(parents=True, exist_ok=True)
        if tree.identity() != start["folder"]:
            raise DataError(f"{source}: found files that changed while they were packed, expected them to stay")
        _write_manifest(part, tree, frozenset(weights))
        written = sum(p.stat().st_size for p in part.rglob("*") if p.is_file())
    return nbytes, written, told, again


class PackedFolder:
    """A folder that `pack_folder` wrote, compared with its list of files.

    Raises:
        DataError: no such folder.
        FormatError: not a packed folder, or one in which files are missing, added or changed.
    """

    def __init__(self, path: Path, reference: Reference | None) -> None:
        self.path, self._reference = path, reference
        listed = path / MANIFEST
        if not listed.is_file():
            raise FormatError(f"{path}: found no {MANIFEST}, expected a folder that gossamer pack wrote")
        self._tree = Tree.of(path)
        sizes, sums, self._empty = _read_manifest(listed)
        found = {name for name in self._tree.files if name != MANIFEST}
        for name in sorted(found ^ sizes.keys()):
            what = "nothing in its place" if name in sizes else "a file that was not packed with the others"
            raise FormatError(f"{path / name}: found {what}, expected the files that {MANIFEST} lists")
        self._files: dict[str, PackedFile] = {}
        for name, size in sizes.items():
            if (path / name).stat().st_size != size:
                raise FormatError(f"{path / name}: found {(path / name).stat().st_size} bytes, expected {size}")
            if name.endswith(_WEIGHTS + ENDING):
                self._files[name] = PackedFile(path / name, reference)
        self._sums = sums
        self.file_bytes = sum(sizes.values()) + listed.stat().st_size
        copied = sum(size for name, size in sizes.items() if name not in self._files)
        self.dense_bytes = copied + sum(file.dense_bytes for file in self._files.values())

    def unpack(self, out: Path, *, resume: bool, workers: int, tally: Tally) -> int:
        """Write the folder that was packed.

        Returns:
            Bytes written.

        Raises:
            PlanError, DataError, FormatError: as `unpack_file`.
        """
        refuse_output(out)
        _refuse_inside(self.path, out)
        tally.total = self.dense_bytes
        start = {"version": VERSION, "folder": self._tree.identity()}
        with _growing_folder(out, start, self.dense_bytes, resume=resume) as (part, done):
            others = [n for n in self._tree.files if n not in self._files and n != MANIFEST]
            for name in (*self._files, *others):  # copies last: their names may be those of files that grow
                to = part / (name.removesuffix(ENDING) if name in self._files else name)
                to.parent.mkdir(parents=True, exist_ok=True)
                if name not in self._files:
                    self._copy_checked(name, to)
                    tally.add(to.stat().st_size)
                elif name in done.names and to.is_file():
                    tally.add(self._files[name].dense_bytes)
                else:
                    to.unlink(missing_ok=True)
                    file = self._files[name]
                    unpack_file(file, to, reference=self._reference, resume=True, workers=workers, tally=tally)
                    done.note(name)
            for name in self._empty:
                (part / name).mkdir(parents=True, exist_ok=True)
        return self.dense_bytes

    def _copy_checked(self, name: str, to: Path) -> None:
        _copy(self.path / name, to)
        found = file_sums(to, to.stat().st_size)
        if found != self._sums[name]:
            raise FormatError(f"{self.path / name}: found checksum {found}, expected {str(self._sums[name])[:8]}")


def _copy(source: Path, to: Path) -> None:
    try:
        shutil.copyfile(source, to)
        shutil.copymode(source, to)
    except OSError as error:
        raise DataError(f"{source}: cannot be copied to {to}: {error.strerror}") from error


def _refuse_inside(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise PlanError(f"{out}: found a place within {source}, expected one outside: inputs are never changed")


def _write_manifest(part: Path, tree: Tree, weights: frozenset[str]) -> None:
    listed = []
    for name in tree.files:
        to = part / (name + ENDING if name in weights else name)
        size = to.stat().st_size
        listed.append([to.relative_to(part).as_posix(), size, None if name in weights else file_sums(to, size)])
    document = {"version": VERSION, "files": listed, "empty folders": list(tree.empty)}
    write_atomically(part / MANIFEST, [json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"])


def _read_manifest(path: Path) -> tuple[dict[str, int], dict[str, Json], list[str]]:
    found = parse_json(path.read_bytes(), str(path))
    if not isinstance(found, dict) or set(found) != {"version", "files", "empty folders"}:
        raise FormatError(f"{path}: found {str(found)[:60]}, expected version, files and empty folders")
    if found["version"] != VERSION:
        raise FormatError(f"{path}: found version {str(found['version'])[:12]} of packed folders, expected {VERSION}")
    files, empty = found["files"], found["empty folders"]
    good = isinstance(files, list) and all(
        isinstance(f, list) and len(f) == 3 and isinstance(f[0], str) and type(f[1]) is int for f in files
    )
    if not good or not isinstance(empty, list) or not all(isinstance(name, str) for name in empty):
        raise FormatError(f"{path}: found files {str(files)[:60]}, expected [name, bytes, checksum] of each")
    for name in empty:
        if name.startswith("/") or ".." in Path(name).parts:
            raise FormatError(f"{path}: found folder {name[:80]!r}, expected one within")
    return {f[0]: f[1] for f in files}, {f[0]: f[2] for f in files}, empty


class _Done:
    """Which files of a growing folder are finished."""

    def __init__(self, journal: Journal, names: set[str]) -> None:
        self._journal, self.names = journal, names

    def note(self, name: str) -> None:
        self._journal.append({"file": name})


@contextlib.contextmanager
def _growing_folder(out: Path, start: dict[str, Json], nbytes: int, *, resume: bool) -> Iterator[tuple[Path, _Done]]:
    """A folder that takes the place ``out`` when the block ends well; what is in it stays if it is large."""
    part, log = out.with_name(out.name + ".part"), out.with_name(out.name + ".journal")
    if (log.exists() or part.exists()) and not resume:
        raise PlanError(f"{part}: found an unfinished run, expected none: add --resume, or delete it and its journal")
    records, good = read_journal(log) if log.exists() and part.is_dir() else ([], 0)
    for key, expected in start.items() if records else ():
        if records[0].get(key) != expected:
            raise PlanError(f"{log}: found a run with another {key}; delete it and {part.name} to start anew")
    if not records and part.exists():
        raise PlanError(f"{part}: found something without a journal, expected the rest of a run: delete it")
    keep = True
    try:
        with contextlib.closing(Journal(log, good)) as journal:
            if not records:
                journal.append(start)
            part.mkdir(exist_ok=True)
            try:
                yield part, _Done(journal, {str(r["file"]) for r in records[1:]})
            except FormatError:
                keep = False
                raise
            except BaseException:
                keep = nbytes >= LARGE_FROM
                raise
        part.replace(out)
        log.unlink()
    except OSError as error:
        raise DataError(f"{part}: writing failed: {error.strerror}; make room and add --resume") from error
    finally:
        if not keep:
            shutil.rmtree(part, ignore_errors=True)
            log.unlink(missing_ok=True)
