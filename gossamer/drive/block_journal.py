"""What a calibrated run has finished, so that one that was killed goes on: trees, outputs of blocks, the plan."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from gossamer.drive.packed import tensors_in
from gossamer.encoding.node import Codec, Encoding, Leaf
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Evidence
from gossamer.store.container import read_container
from gossamer.store.dtypes import to_bytes
from gossamer.store.journal import Journal, read_journal
from gossamer.store.safetensors_file import write_safetensors
from gossamer.store.weights import read_weights
from gossamer.store.writer import write_container

__all__ = ["BlockJournal", "Checkpoint", "relinked", "sum_of_data", "sum_of_trees"]

Json = Any

_KEPT = ("start.safetensors", "joined.safetensors", "step-*.gsm", "outputs-*.bin")


@final
@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps what it has finished.

    Args:
        folder: made if it is not there; one per run.
        resume: go on with what is found in it; without, finding something is an error.
    """

    folder: Path
    resume: bool = False


def sum_of_trees(specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> str:
    """A checksum of names, kinds of trees and all their numbers."""
    crc = 0
    for spec in specs:
        crc = zlib.crc32(repr((spec.names, spec.shape, str(spec.dtype))).encode(), crc)
        for leaf in trees[spec.name].leaves():
            crc = zlib.crc32(f"{leaf.path} {type(leaf.owner).__name__}".encode(), crc)
            crc = zlib.crc32(to_bytes(leaf.tensor).data, crc)
    return f"{crc:08x}"


def sum_of_data(batches: Sequence[Any]) -> str:
    """A checksum of all tensors of some batches."""
    crc = 0
    for batch in batches:
        for tensor in tensors_in(batch):
            crc = zlib.crc32(repr((tuple(tensor.shape), str(tensor.dtype))).encode(), crc)
            crc = zlib.crc32(to_bytes(tensor).data, crc)
    return f"{len(batches)} batches, {crc:08x}"


@final
class BlockJournal:
    """The folder of one run.

    Args:
        checkpoint: where, and whether to go on.
        start: what the run is: recipe, network, data, as text.

    Raises:
        PlanError: something is there and is not to be continued, or belongs to another run.
        DataError: the folder cannot be made.
    """

    def __init__(self, checkpoint: Checkpoint, start: Mapping[str, str]) -> None:
        self.folder = checkpoint.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made: {error.strerror}") from error
        path = self.folder / "journal"
        records, good = read_journal(path) if path.exists() else ([], 0)
        if records and not checkpoint.resume:
            raise PlanError(f"{path}: found a run, expected none: go on with it by resume, or delete the folder")
        for key, value in start.items() if records else ():
            if records[0].get(key) != value:
                found, wanted = _where_they_differ(str(records[0].get(key)), value)
                raise PlanError(f"{path}: found a run with another {key}: {found!r}, expected {wanted!r}")
        self.plan: Json | None = next((r["plan"] for r in records if "plan" in r), None)
        self.steps: list[Json] = [r for r in records if "step" in r]
        self._journal = Journal(path, good if records else 0)
        if not records:
            for pattern in _KEPT:  # of a run whose journal is gone
                for left in self.folder.glob(pattern):
                    left.unlink()
            self._journal.append(dict(start))

    def planned(self, plan: Json) -> None:
        """What was decided for the whole network."""
        self.plan = plan
        self._journal.append({"plan": plan})

    def keep_evidence(self, name: str, evidence: Mapping[str, Evidence]) -> None:
        """Write statistics that are gathered once."""
        flat = {f"{key}:{n}": value for n, found in evidence.items() for key, value in found.items()}
        write_safetensors(self.folder / f"{name}.safetensors", flat)

    def evidence(self, name: str) -> dict[str, Evidence] | None:
        """Those statistics, if an earlier run has written them."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        found: dict[str, dict[str, Tensor]] = {}
        for text, value in read_weights(path).items():
            key, _, tensor = text.partition(":")
            found.setdefault(tensor, {})[key] = value
        return dict(found)

    def keep_trees(
        self, step: int, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]
    ) -> Mapping[str, Encoding]:
        """Write new trees and read them back: what goes on is the same as what a resumed run has."""
        if not specs:
            return {}
        write_container(self._path(step), specs, trees, effort="fast")
        return self.trees(step, specs)

    def trees(self, step: int, specs: Sequence[TensorSpec]) -> Mapping[str, Encoding]:
        """The trees of an earlier run."""
        return read_container(self._path(step), specs).trees if specs else {}

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step + 1:04d}.gsm"

    def finished(self, record: Json) -> None:
        """A step is done; on disk when this returns."""
        self._journal.append(record)

    def close(self, *, complete: bool) -> None:
        """Close; of a complete run the outputs of blocks are not kept, its trees are."""
        self._journal.close()
        if complete:
            for path in self.folder.glob("outputs-*.bin"):
                path.unlink()


def _where_they_differ(one: str, other: str, length: int = 120) -> tuple[str, str]:
    """Both from shortly before the first difference on."""
    same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    begin = max(0, same - length // 3)
    before = "…" if begin else ""
    return before + one[begin : begin + length], before + other[begin : begin + length]


def relinked(
    trees: Mapping[str, Encoding], shared: Mapping[str, Encoding], masks: Sequence[Leaf]
) -> dict[str, Encoding]:
    """Trees from a file, with what a plan shares, and the masks that coupled tensors share, shared again."""
    known = {_content(leaf.tensor): leaf.tensor for part in shared.values() for leaf in part.leaves()}
    known_masks = {_mask(leaf): leaf.tensor for leaf in masks}
    if not known and not known_masks:
        return dict(trees)
    shapes = {key[1] for key in known}
    memo: dict[int, tuple[Any, Any]] = {}

    def linked(leaf: Leaf) -> Tensor:
        tensor = leaf.tensor
        if leaf.codec is Codec.MASK and known_masks and (found := known_masks.get(_mask(leaf))) is not None:
            return found
        return known.get(_content(tensor), tensor) if tuple(tensor.shape) in shapes else tensor

    return {name: tree.map_leaves(linked, memo) for name, tree in trees.items()}


def _mask(leaf: Leaf) -> tuple[tuple[int, ...], object]:
    """Its grid and bits; masks of grids that differ can have the same bits."""
    return leaf.owner.dense_shape(), _content(leaf.tensor)


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(tensor.dtype), tuple(tensor.shape), to_bytes(tensor).tobytes()
