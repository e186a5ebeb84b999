"""Where every byte of a file went: each in exactly one category, and the sum is the size of the file."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import zstandard
from torch import Tensor

from gossamer.encoding.delta import External
from gossamer.encoding.node import Category, Encoding
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import CompositionError
from gossamer.network.inspect import is_plain
from gossamer.store.container import Container, Record, read_container
from gossamer.store.safetensors_file import dense_chunks, dense_file_bytes

__all__ = ["Ledger", "TensorAccount", "ledger_of"]

FREE = (
    "the network's source code (what `into=` names)",
    "Gossamer itself, which reads the file",
)


@dataclass(frozen=True)
class TensorAccount:
    """One tensor's share.

    Args:
        name: canonical.
        encoding: its skeleton, such as ``Masked(Mask, Codebook(Dense))``.
        elements: dense elements.
        dense_bytes: dense size.
        file_bytes: coded leaves with their tables; what is shared is booked on the first user.
        bits_per_weight: file_bytes · 8 / elements.
        entropy_bytes: order-0 entropy of the same leaves.
        nonzero: share of weights that are not zero.
        untouched: whether no method was applied.
        why: for a tensor that shrank to no less than half: why it did not. Otherwise empty.
    """

    name: str
    encoding: str
    elements: int
    dense_bytes: int
    file_bytes: int
    bits_per_weight: float
    entropy_bytes: float
    nonzero: float
    untouched: bool
    why: str


@final
@dataclass(frozen=True)
class Ledger:
    """The account of one file.

    Args:
        file_bytes: size of the file; equals the sum of ``categories``.
        categories: bytes per category, every category listed.
        tensors: one account each.
        dense_bytes: of an ordinary safetensors file with the network's full-size tensors.
        zstd19_bytes: what zstd at level 19 makes of the *reconstructed* dense file, or None if not computed.
        parameters: elements of all tensors, dense.
        compressed_parameters: elements of tensors that are not stored as they were.
        entropy_bytes: order-0 entropy of all leaves.
        free: what was not counted.
    """

    file_bytes: int
    categories: Mapping[str, int]
    tensors: tuple[TensorAccount, ...]
    dense_bytes: int
    zstd19_bytes: int | None
    parameters: int
    compressed_parameters: int
    entropy_bytes: float
    free: tuple[str, ...] = FREE

    @property
    def ratio(self) -> float:
        """How many times smaller than the dense file."""
        return self.dense_bytes / self.file_bytes

    @property
    def bits_per_parameter(self) -> float:
        """All bytes of the file over all parameters."""
        return self.file_bytes * 8 / max(1, self.parameters)

    @property
    def bits_per_compressed_weight(self) -> float:
        """Bytes of the tensors that were compressed over their elements; 0 if there are none."""
        spent = sum(t.file_bytes for t in self.tensors if not t.untouched)
        return spent * 8 / self.compressed_parameters if self.compressed_parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "file_bytes": self.file_bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "zstd19_bytes": self.zstd19_bytes,
            "parameters": self.parameters,
            "bits_per_param": self.bits_per_parameter,
            "bits_per_compressed_weight": self.bits_per_compressed_weight,
            "entropy_bytes": self.entropy_bytes,
            "categories": dict(self.categories),
            "tensors": [vars(t) for t in self.tensors],
            "free": list(self.free),
        }

    def __str__(self) -> str:
        lines = [f"{self.file_bytes:,} bytes, {self.ratio:.1f}x smaller than {self.dense_bytes:,}"]
        lines += [f"{size:>12,}  {name}" for name, size in self.categories.items() if size]
        return "\n".join(lines)


def ledger_of(file: str | Path | Container, *, zstd: bool = True, reasons: Mapping[str, str] | None = None) -> Ledger:
    """Account for a container.

    Args:
        file: path, or what `read_container` returned with its entropies measured.
        zstd: also compress the reconstructed dense file with zstd-19 (about 3 MB/s).
        reasons: tensor or site → why a method left it alone; those stored in the file are used otherwise.

    Raises:
        FormatError: a damaged file.

    Cost: decodes every leaf.
    """
    container = file if isinstance(file, Container) else read_container(file, measure_entropy=True)
    noted = container.notes.get("skipped", {})
    known = {**(noted if isinstance(noted, dict) else {}), **(reasons or {})}
    categories = {category.value: 0 for category in Category}
    categories[Category.HEADER.value] = container.header_bytes + container.index_bytes
    for record in container.records:
        categories[Category.TABLES.value] += record.table
        categories[record.category.value] += record.payload
    dense = {s.name: _dense(container.trees[s.name], s) for s in container.specs}
    free: tuple[str, ...] = FREE
    if any(isinstance(node, External) for tree in container.trees.values() for _, node in tree.nodes()):
        free = (*FREE, "the reference checkpoint that this file is a difference to")
        zstd = zstd and not any(tensor.is_meta for tensor in dense.values())
    accounts = tuple(_account(s, container, dense[s.name], known) for s in container.specs)
    compressed = sum(a.elements for a in accounts if not a.untouched)
    return Ledger(
        file_bytes=container.file_bytes,
        categories=types.MappingProxyType(categories),
        tensors=accounts,
        dense_bytes=dense_file_bytes(dense),
        zstd19_bytes=_zstd19(dense) if zstd else None,
        parameters=sum(s.elements for s in container.specs),
        compressed_parameters=compressed,
        entropy_bytes=sum(r.entropy for r in container.records) / 8,
        free=free,
    )


def _dense(tree: Encoding, spec: TensorSpec) -> Tensor:
    """The weight; on the meta device where it is a difference to a reference that is not at hand."""
    try:
        return tree.to_dense().detach().to(spec.dtype)
    except CompositionError:
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _account(spec: TensorSpec, container: Container, dense: Tensor, reasons: Mapping[str, str]) -> TensorAccount:
    mine = [r for r in container.records if r.tensor == spec.name]
    spent = sum(r.table + r.payload for r in mine)
    tree = container.trees[spec.name]
    nonzero = float((dense != 0).float().mean()) if dense.numel() and not dense.is_meta else 0.0
    why = ""
    if 2 * spent >= spec.nbytes:
        why = reasons.get(spec.name) or _why(tree, mine, spec)
    return TensorAccount(
        name=spec.name,
        encoding=str(skeleton_of(tree)),
        elements=spec.elements,
        dense_bytes=spec.nbytes,
        file_bytes=spent,
        bits_per_weight=spent * 8 / max(1, spec.elements),
        entropy_bytes=sum(r.entropy for r in mine) / 8,
        nonzero=nonzero,
        untouched=is_plain(tree, spec.dtype),
        why=why,
    )


def _why(tree: Encoding, records: list[Record], spec: TensorSpec) -> str:
    if is_plain(tree, spec.dtype):
        kept = sum(r.table + r.payload for r in records) / max(1, spec.nbytes)
        coded = f"lossless coding left {kept:.0%}" if kept < 1 else "its bytes are noise to a lossless coder"
        return f"no method was applied; {coded}"
    largest = max(records, key=lambda r: r.table + r.payload, default=None)
    if largest is None:
        return ""
    share = (largest.table + largest.payload) / max(1, spec.nbytes)
    return f"{largest.category.value} ({largest.path}) alone are {share:.0%} of the dense size"


def _zstd19(dense: Mapping[str, Tensor]) -> int:
    packer = zstandard.ZstdCompressor(level=19).compressobj()
    size = sum(len(packer.compress(bytes(chunk))) for chunk in dense_chunks(dense))
    return size + len(packer.flush())
