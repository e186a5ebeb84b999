"""What is compared: the dense network, and files that were read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from gossamer.api import Compressed
from gossamer.errors import DataError
from gossamer.measure.ledger import Ledger, ledger_of
from gossamer.network.blank import blank
from gossamer.network.inspect import specs
from gossamer.report.samples import Logits
from gossamer.store.container import Container, read_container

__all__ = ["DenseSubject", "Subject", "distinct_names", "read_subject"]

Network = nn.Module | Callable[[], nn.Module]


@final
@dataclass(frozen=True)
class Subject:
    """A file.

    Args:
        name: that tells it apart.
        path: where it lies.
        container: what it holds.
        ledger: where its bytes are.
        compressed: the network in it, or None without code for it.
        network: the same with dense weights, outputs logits; or None.
    """

    name: str
    path: Path
    container: Container
    ledger: Ledger
    compressed: Compressed | None
    network: Logits | None


@final
@dataclass(frozen=True)
class DenseSubject:
    """The network that all files come from.

    Args:
        module: itself.
        network: the same, outputs logits.
        size: bytes of its ordinary file.
        name: shown.
    """

    module: nn.Module
    network: nn.Module
    size: int
    name: str = "dense"


def read_subject(path: Path, name: str, network: Network | None) -> Subject:
    """Read a file and rebuild its network.

    Args:
        path: the file.
        name: that tells it apart.
        network: its architecture, as a factory or a module (which is copied), or None.

    Raises:
        DataError: no such file.
        FormatError: damaged, hostile, or for another network.
    """
    made = network if network is None or isinstance(network, nn.Module) else blank(network)
    expected = None if made is None else specs(made)
    container = read_container(path, expected)
    ledger = ledger_of(container, zstd=False)
    if network is None:
        return Subject(name, path, container, ledger, None, None)
    compressed = Compressed(container.specs, container.trees, network, notes=container.notes, path=path)
    if made is not None and made is not network:
        compressed.keep(made)
    return Subject(name, path, container, ledger, compressed, Logits(compressed.dense()))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """File names without their ending; with as many folders before them as tell them apart.

    Raises:
        DataError: the same file twice.

    Example:
        >>> distinct_names([Path("a/net.gsm"), Path("b/net.gsm"), Path("c.gsm")])
        ['a/net', 'b/net', 'c']
    """
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise DataError(f"{paths[i]}: found the same file twice, expected each once")
    names = [path.stem for path in resolved]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        twice = {name for name in names if names.count(name) > 1}
        names = [_with_folders(p, depth) if n in twice else n for p, n in zip(resolved, names, strict=True)]
        if depth > max(len(p.parts) for p in resolved):  # a.gsm and a.bin: only the ending tells them apart
            return [str(path) for path in paths]
    return names


def _with_folders(path: Path, depth: int) -> str:
    return "/".join((*path.parts[-depth:-1], path.stem)).lstrip("/")
