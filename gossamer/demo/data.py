"""Fashion-MNIST: the full set from a folder, or the subset that ships with the package."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DataError

__all__ = ["Fashion", "Shuffled", "load_fashion"]

_PACKAGED = Path(__file__).parent.parent / "data" / "fashion_mnist"
_LIMIT = 70_000


@dataclass(frozen=True)
class Fashion:
    """Images and labels.

    Args:
        train: float32 [n, 1, 28, 28], mean 0 and deviation 1 over the training images.
        train_labels: int64 [n].
        test: float32 [m, 1, 28, 28].
        test_labels: int64 [m].
        full: whether this is the full set.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    full: bool


class Shuffled:
    """Training batches in a new order every epoch; the same orders for the same seed.

    Args:
        inputs: [n, 1, height, width].
        targets: [n].
        batch: samples per batch; what is left over of an epoch is left out.
        seed: for the orders.
        flip: mirror the first half of every batch left to right.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, batch: int, seed: int, *, flip: bool = False) -> None:
        self._inputs, self._targets, self._batch, self._flip = inputs, targets, batch, flip
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, len(self._inputs) // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._inputs), generator=self._generator)
        for i in range(len(self)):
            chosen = order[i * self._batch : (i + 1) * self._batch]
            inputs = self._inputs[chosen]
            if self._flip:
                half = len(inputs) // 2
                inputs = torch.cat([inputs[:half].flip(3), inputs[half:]])
            yield inputs, self._targets[chosen]


def load_fashion(folder: str | Path | None = None) -> Fashion:
    """Read Fashion-MNIST.

    Args:
        folder: where the four idx files lie, at any depth, plain or as .gz; None: the packaged 10,000 + 2,000.

    Raises:
        DataError: a file is missing or malformed.
    """
    root = _PACKAGED if folder is None else Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: found no folder, expected one with the four Fashion-MNIST idx files")
    images, labels = (
        {part: _idx(_find(root, f"{part}-{kind}-idx{dims}-ubyte"), dims) for part in ("train", "t10k")}
        for kind, dims in (("images", 3), ("labels", 1))
    )
    for part in ("train", "t10k"):
        if len(images[part]) != len(labels[part]) or len(images[part]) == 0:
            raise DataError(f"{root}: found {len(images[part])} {part} images and {len(labels[part])} labels")
        if images[part].shape[1:] != (28, 28) or labels[part].max() > 9:
            raise DataError(f"{root}: found images of {images[part].shape[1:]}, expected 28×28 in ten classes")
    pixels = images["train"].astype(np.float64)
    mean, deviation = float(pixels.mean()), float(pixels.std())
    train, test = (
        torch.from_numpy(images[p].astype(np.float32)).sub_(mean).div_(deviation).unsqueeze(1)
        for p in ("train", "t10k")
    )
    targets = [torch.from_numpy(labels[p].astype(np.int64)) for p in ("train", "t10k")]
    return Fashion(train, targets[0], test, targets[1], full=len(train) == 60_000)


def _find(root: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".xz"):
        found = sorted(root.rglob(name + suffix))
        if found:
            return found[0]
    raise DataError(f"{root}: found no {name} (plain, .gz or .xz), expected the four Fashion-MNIST idx files")


def _idx(path: Path, dims: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    header, most = 4 + 4 * dims, 4 + 4 * dims + _LIMIT * 28 * 28
    try:
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    content = unpacked.read(most + 1)
            elif path.suffix == ".xz":
                with lzma.LZMAFile(raw) as unpacked_xz:
                    content = unpacked_xz.read(most + 1)
            else:
                content = raw.read(most + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {str(error)[:100]}") from error
    found = np.frombuffer(content[:header], ">u4") if len(content) >= header else np.zeros(0)
    if len(found) != 1 + dims or found[0] != 0x800 + dims:
        raise DataError(f"{path}: found no idx header of {dims} dimensions")
    shape = tuple(int(x) for x in found[1:])
    if int(np.prod(shape)) != len(content) - header:
        raise DataError(f"{path}: found {len(content) - header} bytes of data, its header expected {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
