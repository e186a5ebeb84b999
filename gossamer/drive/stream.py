"""A recipe over a checkpoint that need not fit in memory: observe, plan, apply, tensor by tensor, and on after a kill.

The recipe is a chain of lazy sources: each method is planned over the one before it and applied whenever one of its
trees is asked for. Recomputing costs less than keeping: a method is applied once more for every round in which a later
one observes. Nothing is spooled to disk, so no room is needed beyond the output.
"""

from __future__ import annotations

import base64
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gossamer.coding import Effort, check_effort
from gossamer.drive.one_shot import Planned, plan_method
from gossamer.drive.plan_record import plan_from_record, plan_to_record
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.recipe import Recipe, check_method, plain_skeletons, plan_json
from gossamer.drive.recipe_file import dump_recipe
from gossamer.drive.source import Source
from gossamer.drive.staged import StagedSource
from gossamer.drive.workers import Workers
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import DataError, GossamerError, PlanError
from gossamer.methods.base import Method
from gossamer.store.atomic import publish, replacing
from gossamer.store.journal import Journal, read_journal
from gossamer.store.pieces import Piece, code_tensor, shared_leaves
from gossamer.store.writer import PieceWriter, is_large, write_pieces

__all__ = ["Streamed", "methods_of", "stream"]

Json = Any
T = TypeVar("T")

THREADS = 2
IN_FLIGHT = 144 << 20  # bytes of float32 weights that are worked on at once; what is made of them doubles it
_CHECK_PIECE = 1 << 22


@dataclass(frozen=True)
class Streamed:
    """What a run did.

    Args:
        file_bytes: of the container.
        plans: what each method decided, as JSON.
        skipped: tensor or site → why a method left it alone.
        resumed: tensors that an earlier run had finished.
    """

    file_bytes: int
    plans: list[dict[str, Json]]
    skipped: dict[str, str]
    resumed: int


@dataclass
class _Run:
    """The two files beside the output, and what is known from an earlier run."""

    part: Path
    journal: Path
    plans: list[Json] = field(default_factory=list)
    pieces: list[Json] = field(default_factory=list)
    good: int = 0


def methods_of(recipe: Recipe, listed: Sequence[TensorSpec], bind: Callable[[Method], Method]) -> list[Method]:
    """The bound methods of a recipe that can be streamed, checked against the tensors before a weight is read.

    Raises:
        PlanError: an entry that trains, or a method that needs data or runs the network.
        CompositionError: a method that will match nothing.
    """
    possible = plain_skeletons(listed)
    bound = []
    for number, entry in enumerate(recipe, 1):
        where = f"recipe entry {number} ({type(entry).__name__})"
        if not isinstance(entry, Method):
            what = "that trains or runs the network"
            how = "text for a model folder comes with --calib, data for other networks with --network and --data"
            raise PlanError(
                f"{where}: found an entry {what}, expected methods only: a checkpoint is read in pieces; {how}"
            )
        if entry.needs:
            raise PlanError(f"{where}: found a method that needs {sorted(entry.needs)} from data, expected one without")
        bound.append(bind(entry))
        if bound[-1].runs_network:
            raise PlanError(f"{where}: found a method that runs the network, expected one that looks at weights alone")
        check_method(where, bound[-1], listed, possible)
    return bound


def stream(
    source: Source,
    recipe: Recipe,
    path: str | Path,
    *,
    identity: Json,
    bind: Callable[[Method], Method] = lambda method: method,
    resume: bool = False,
    keep_plan: bool = False,
    effort: Effort = "best",
    progress: Progress | None = None,
) -> Streamed:
    """Compress a source into one container, holding a few tensors at a time.

    The file is, byte for byte, what `write_container` makes of the recipe's trees in memory. From 16 MiB of tensors on
    it grows as ``path`` + ".part", beside a journal (".journal") of the plans and of every finished tensor; both stay
    when the run is killed, interrupted or out of room.

    Args:
        source: the checkpoint.
        recipe: methods only.
        path: the ``.gsm`` to write; replaced when it is complete.
        identity: JSON that says which input this is; must be the same when a run is resumed.
        bind: makes methods concrete for the network, where there is one.
        resume: go on where an earlier run stopped; from the start if there was none.
        keep_plan: store recipe and plan in the file.
        effort: how long to look for fewer bytes; a resumed run must have the same.
        progress: where to report.

    Returns:
        Sizes and plans.

    Raises:
        PlanError: an entry that cannot be streamed, or an earlier run that this one does not continue.
        CompositionError: a method that does not accept what is there.
        DataError: weights that are not finite, a file that cannot be read or written.

    Cost: the source is read once for applying, and once for every round that a method observes.
    """
    check_effort(effort)
    path, listed = Path(path), source.specs()
    methods = methods_of(recipe, listed, bind)
    report = progress or NoProgress()
    run = _Run(path.with_name(path.name + ".part"), path.with_name(path.name + ".journal"))
    large = is_large(listed)
    kept = {"keep_plan": keep_plan, "effort": effort}
    start = {"start": 1, "recipe": dump_recipe(recipe), "input": identity, **kept}
    if large:
        _take_up(run, start, resume)
    sizes = {s.name: 4 * s.elements for s in listed}
    try:
        with _opened(run, start, large) as files, Workers(THREADS, sizes, IN_FLIGHT) as workers:
            stages: list[Planned] = []
            plans, skipped = [], dict[str, str]()
            for number, method in enumerate(methods):
                title = f"planning {type(method).__name__}"

                def each(work: Callable[[str], T], names: Sequence[str], title: str = title) -> Iterable[T]:
                    return _reported(workers.map(work, names), names, sizes, title, report)

                try:
                    stored = plan_from_record(run.plans[number]) if number < len(run.plans) else None
                    planned = plan_method(method, source, each=each, plan=stored)
                except GossamerError as error:
                    raise type(error)(f"recipe entry {number + 1} ({type(method).__name__}): {error}") from error
                if stored is None:
                    files.append({"plan": plan_to_record(planned.plan)})
                stages.append(planned)
                source = StagedSource(planned, source)
                plans.append(plan_json(method, planned))
                for site, why in planned.skipped.items():
                    skipped.setdefault(site, f"{type(method).__name__}: {why}")
            notes = {"plan": plans, "recipe": dump_recipe(recipe), "skipped": skipped} if keep_plan else {}
            pieces = _pieces(source, stages, workers, len(run.pieces), sizes, effort, report)
            if large:
                written = files.write(path, listed, pieces, notes)
            else:
                written = write_pieces(path, listed, list(pieces), notes)
        if large:
            run.part.unlink(missing_ok=True)  # published, or copied
            run.journal.unlink()
    except OSError as error:
        raise DataError(
            f"{run.part}: writing failed: {error.strerror}; what is finished is kept: make room and add --resume"
        ) from error
    return Streamed(written, plans, skipped, len(run.pieces))


def _reported(
    results: Iterator[T], names: Sequence[str], sizes: Mapping[str, int], title: str, report: Progress
) -> Iterator[T]:
    done, total = 0, sum(sizes[n] for n in names)
    for name, result in zip(names, results, strict=True):
        done += sizes[name]
        report.update(title, done, total)
        yield result


# -- applying --------------------------------------------------------------------------------------------------------


def _pieces(
    source: Source,
    stages: Sequence[Planned],
    workers: Workers,
    skip: int,
    sizes: Mapping[str, int],
    effort: Effort,
    report: Progress,
) -> Iterator[Piece]:
    """The coded tensors in order, but for the first ``skip``."""
    names = [s.name for s in source.specs()]
    shared = {
        id(leaf.tensor): f"{number}/{key}{leaf.path}"
        for number, planned in enumerate(stages)
        for key, tree in planned.plan.shared.items()
        for leaf in tree.leaves()
    }
    units = _units(source, names)
    if isinstance(source, StagedSource):
        source.forget()
    missing = names[skip:]
    place = {n: i for i, n in enumerate(names)}
    leaders = {min(units[n], key=place.__getitem__): None for n in missing}

    def work(name: str) -> list[Piece]:
        trees = {n: source.read(n) for n in units[name]}
        mine = {**shared_leaves(trees), **shared}
        return [code_tensor(n, trees.pop(n), mine, effort) for n in tuple(trees)]

    order = list(leaders)
    results = _reported(workers.map(work, order), order, sizes, "applying and coding", report)
    ready: dict[str, Piece] = {}
    for name in missing:
        while name not in ready:
            ready |= {piece.name: piece for piece in next(results)}
        yield ready.pop(name)


def _units(source: Source, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each tensor those that must be made together with it, itself included."""
    units: dict[str, tuple[str, ...]] = {n: (n,) for n in names}
    inner: Source | None = source
    while isinstance(inner, StagedSource):
        for name in names:
            together = inner.together(name)
            if len(together) > 1:
                merged = tuple(dict.fromkeys(m for n in together for m in units[n]))
                units |= dict.fromkeys(merged, merged)
        inner = inner.before
    return units


# -- the files beside the output -------------------------------------------------------------------------------------


class _Files:
    """The growing container and its journal."""

    def __init__(self, run: _Run, start: Json, large: bool) -> None:
        self._run, self._large = run, large
        self._journal: Journal | None = None
        if large:
            self._journal = Journal(run.journal, run.good)
            if not run.good:
                self._journal.append(start)

    def append(self, record: Json) -> None:
        """To the journal, if there is one."""
        if self._journal is not None:
            self._journal.append(record)

    def write(self, path: Path, specs: Sequence[TensorSpec], pieces: Iterator[Piece], notes: Mapping[str, Json]) -> int:
        """All pieces, those of the earlier run first; the container takes its place when it is complete."""
        fresh = not self._run.pieces
        with self._run.part.open("w+b" if fresh else "r+b") as file:
            writer = PieceWriter(file, specs)
            for record in self._run.pieces:
                _check_piece(self._run.part, file, record)
                pooled = base64.b64decode(record["pooled"])
                writer.resume(Piece.from_json(record["piece"]), record["crc"], pooled)
            file.truncate(writer.end)  # what a kill left behind the last finished tensor
            file.seek(writer.end)
            for piece in pieces:
                at = writer.end
                size, crc, pooled = writer.add(piece)
                if size:
                    file.flush()
                    os.fsync(file.fileno())
                where = {"at": at, "size": size, "crc": crc, "pooled": base64.b64encode(pooled).decode()}
                self.append({**where, "piece": piece.to_json()})
            writer.finish(notes)
            if not writer.blank:
                publish(self._run.part, path)
                return writer.end
            # in a copy: what is finished must outlive a kill
            with replacing(path) as closed:
                file.seek(0)
                shutil.copyfileobj(file, closed, _CHECK_PIECE)
                return writer.close_room(closed)

    def close(self) -> None:
        """The journal's file."""
        if self._journal is not None:
            self._journal.close()


def _opened(run: _Run, start: Json, large: bool) -> closing[_Files]:
    return closing(_Files(run, start, large))


def _check_piece(part: Path, file: BinaryIO, record: Json) -> None:
    file.seek(record["at"])
    crc, left = 0, record["size"]
    while left:
        piece = file.read(min(left, _CHECK_PIECE))
        if not piece:
            break
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    if left or crc != record["crc"]:
        name = record["piece"]["name"]
        raise PlanError(
            f"{part}: tensor {name!r}: found checksum {crc:08x}, the journal expected {record['crc']:08x}: "
            "this run cannot be resumed; delete it and its journal"
        )


def _take_up(run: _Run, start: Json, resume: bool) -> None:
    """Read the journal of an earlier run and refuse to continue another one."""
    if not run.journal.exists():
        return
    if not resume:
        raise PlanError(f"{run.journal}: found an unfinished run, expected none: add --resume, or delete it")
    records, good = read_journal(run.journal)
    if not records:
        return
    said = {"effort": "best", **records[0]}  # journals did not tell it when there was one only
    names = {"start": "version", "recipe": "recipe", "input": "checkpoint", "keep_plan": "setting", "effort": "effort"}
    for key, what in names.items():
        if said.get(key) != start[key]:
            found = _first_difference(said.get(key), start[key])
            raise PlanError(f"{run.journal}: found a run with another {what}: {found}; delete it to start anew")
    plans = [r["plan"] for r in records[1:] if "plan" in r]
    pieces = [r for r in records[1:] if "piece" in r]
    if pieces and not run.part.exists():
        pieces, good = [], 0  # all of it again: there is a journal, but what it speaks of is gone
        plans = []
    run.plans, run.pieces, run.good = plans, pieces, good


def _first_difference(found: Json, expected: Json) -> str:
    pairs = zip(found, expected, strict=False) if isinstance(found, list) and isinstance(expected, list) else ()
    a, b = next(((a, b) for a, b in pairs if a != b), (found, expected))
    return f"found {str(a)[:80]!r}, expected {str(b)[:80]!r}"
