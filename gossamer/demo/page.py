"""The demo's page: what was made of one network, file beside file, within seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from gossamer.demo.data import Fashion
from gossamer.demo.recipes import Classic
from gossamer.drive.progress import Progress
from gossamer.measure.robustness import FGSM, PGD
from gossamer.report import Effort, report_of

__all__ = ["CLASSES", "write_page"]

CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_EFFORT = Effort(attacks=(FGSM(), PGD(steps=10)), attacked=120, corrupted=60, seconds=0.2)
_TRAINED = 10_000  # of the training images, which tell enough


def write_page(
    file: Path,
    compressed: Sequence[Path],
    classic: Classic,
    dense: nn.Module,
    data: Fashion,
    *,
    progress: Progress | None = None,
) -> int:
    """Measure the files and write the page.

    Args:
        file: the page.
        compressed: files of the network.
        classic: what it is.
        dense: with its weights.
        data: images and labels.
        progress: where to report.

    Returns:
        Bytes written.
    """
    report = report_of(
        compressed,
        network=classic.factory,
        data=(data.test, data.test_labels),
        train_data=(data.train[:_TRAINED], data.train_labels[:_TRAINED]),
        dense=dense,
        classes=CLASSES,
        examples=len(data.test),
        effort=_EFFORT,
        title=f"{classic.name} on Fashion-MNIST, compressed in {len(compressed)} ways",
        progress=progress,
    )
    return report.save(file)
