"""The recipe whose file and whose labels, given the file, are shortest together: sparsity, rank, bits by one rule."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.api import Compressed, compress, load
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.recipe import Recipe
from gossamer.errors import PlanError
from gossamer.measure.accuracy import Accuracy
from gossamer.measure.answers import answers
from gossamer.measure.description import FREE, DescriptionLength, description_length
from gossamer.measure.proportions import wilson
from gossamer.measure.seeded import seeded
from gossamer.store.weights import dense_bytes_of

__all__ = ["Candidate", "Choice", "by_description_length"]

Compress = Callable[[nn.Module, Recipe], Compressed]


@dataclass(frozen=True)
class Candidate:
    """One recipe, judged from its file.

    Args:
        name: of the recipe.
        description: of the labels of "train" and "validation"; None where it failed.
        train: right answers on training data; None where it failed.
        validation: the same on validation data.
        error: why it failed, or None.
    """

    name: str
    description: DescriptionLength | None
    train: Accuracy | None
    validation: Accuracy | None
    error: str | None = None

    @property
    def bits(self) -> float | None:
        """The two-part code of the training labels, with the temperature where one was fitted; None where it failed."""
        if self.description is None:
            return None
        return (self.description.two_part_bits_calibrated or self.description.two_part_bits)["train"]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        interval = None if self.validation is None else wilson(self.validation.correct, self.validation.count)
        return {
            "name": self.name,
            "bits": self.bits,
            "file_bytes": None if self.description is None else self.description.file_bytes,
            "train_accuracy": None if self.train is None else self.train.value,
            "validation_accuracy": None if self.validation is None else self.validation.value,
            "validation_low": None if interval is None else interval[0],
            "validation_high": None if interval is None else interval[1],
            "description_length": None if self.description is None else self.description.to_json(),
            "error": self.error,
        }


@final
@dataclass(frozen=True)
class Choice:
    """All candidates, and the one with the shortest code.

    Args:
        rows: in the order in which the recipes were given.
        best: the row with the fewest bits, the first of equal ones.
        compressed: the network of the best one, as read from its file.
        dense: the network before, at the size of its safetensors file.
        uniform_bits: of the training labels without a network.
    """

    rows: tuple[Candidate, ...]
    best: Candidate
    compressed: Compressed
    dense: Candidate
    uniform_bits: float

    @property
    def pays(self) -> bool:
        """Whether the best code is shorter than uniform labels: below that, no network was worth its bytes."""
        return self.best.bits is not None and self.best.bits < self.uniform_bits

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON, without the network."""
        return {
            "best": self.best.name,
            "pays": self.pays,
            "uniform_bits": self.uniform_bits,
            "dense": self.dense.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }

    def __str__(self) -> str:
        """A table, the shortest code first, failures last."""
        judged = sorted((r for r in self.rows if r.bits is not None), key=lambda r: r.bits or 0.0)
        width = max(len(name) for name in ("uniform labels", *(row.name for row in self.rows)))
        lines = [f"{'':{width}}   file bytes   label bits   both, bytes   training   validation"]
        for row in (*judged, self.dense):
            if row.description is not None and row.train and row.validation and row.bits is not None:
                size = row.description.file_bytes
                lines.append(
                    f"{row.name:{width}} {size:12,} {row.bits - 8 * size:12,.0f} {row.bits / 8:13,.0f}"
                    f" {row.train.value:10.2%} {row.validation.value:12.2%}"
                )
        lines.append(f"{'uniform labels':{width}} {0:12,} {self.uniform_bits:12,.0f} {self.uniform_bits / 8:13,.0f}")
        lines += [f"{row.name:{width}} failed: {row.error}" for row in self.rows if row.error is not None]
        return "\n".join(lines)


def by_description_length(
    model: nn.Module,
    recipes: Mapping[str, Recipe],
    *,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    free: tuple[str, ...] = FREE,
    compress: Compress | None = None,
    calibrate: bool = False,
    classes: int | None = None,
    batch: int = 500,
    train_batch: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Choice:
    """Compress by each recipe; take that with the least 8 · bytes of the file + Σ −log₂ p(training label | input).

    More parameters foretell the labels better and cost more bytes; where the sum is least, what the file says about
    these labels is worth its bytes. The validation set is shown beside it and takes no part in the choice. The choice
    itself costs nothing: whoever decodes reads the file, whichever recipe wrote it.

    Args:
        model: the dense network; not changed.
        recipes: name → recipe.
        data: (inputs [n, …], targets int64 [n] or [n, positions]) whose labels are coded; recipes that train use it.
        validation: the same, of other samples.
        free: what is declared not to be counted.
        compress: (model, recipe) → compressed network; None: `gs.compress` on batches of ``data``, reshuffled from the
            seed each pass.
        calibrate: code labels at the best temperature on ``data`` itself. The sender has these labels, so the code is
            complete once the temperature's 32 bits are added; validation bits at it are not touched by the fit.
        classes: K; None: as many as the network has logits.
        batch: samples at a time where networks are judged.
        train_batch: samples per step where recipes train.
        seed: of batches, and of whatever draws from the global generators; these are put back afterwards.
        progress: where to say how far it is.

    Returns:
        All candidates. One whose recipe, file or judgement fails is listed with its error.

    Raises:
        PlanError: no mapping of recipes, none in it, or all failed.
        DataError: data that cannot be judged.

    Cost: per recipe compressing, writing and reading a file in a temporary folder, and two runs over both sets.

    Example:
        >>> import gossamer as gs
        >>> inputs = torch.eye(4).repeat(2000, 16)
        >>> data = (inputs, torch.arange(4).repeat(2000))
        >>> model = nn.Linear(64, 4)
        >>> _ = nn.init.zeros_(model.bias), model.weight.data.copy_(torch.eye(4).repeat(1, 16))
        >>> recipes = {"whole": [], "tenth": [gs.prune.Magnitude(sparsity=0.9)], "rank": [gs.factorize.SVD(rank=99)]}
        >>> choice = by_description_length(model, recipes, data=data, validation=data)
        >>> choice.best.name, choice.pays, [row.name for row in choice.rows if row.error]
        ('whole', True, ['rank'])

    Source: Rissanen 1978, Modeling by shortest data description; Hinton and van Camp 1993, Keeping neural networks
    simple by minimizing the description length of the weights.
    """
    if not isinstance(recipes, Mapping):
        raise PlanError(f"recipes: found {type(recipes).__name__}, expected a mapping from names to recipes")
    if not recipes:
        raise PlanError("recipes: found none, expected at least one")
    how = progress or NoProgress()
    run = compress or _on_batches(data, train_batch, seed)

    def judged(name: str, file: Path | int, network: nn.Module) -> Candidate:
        sets = {"train": data, "validation": validation}
        described = description_length(
            file, network, sets, calibrate_on=data if calibrate else None, free=free, classes=classes, batch=batch
        )
        train, held = (answers(network, *pair, batch=batch) for pair in sets.values())
        return Candidate(name, described, Accuracy(train.correct, train.count), Accuracy(held.correct, held.count))

    dense = judged("dense", dense_bytes_of(model), model)
    assert dense.description is not None
    uniform_bits = dense.description.sets["train"].uniform_bits
    rows: list[Candidate] = []
    best: tuple[float, Candidate, Compressed] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, recipe) in enumerate(recipes.items()):
            how.update(f"recipes ({name})", number, len(recipes))
            path = Path(folder) / f"{number}.gsm"
            try:
                with seeded(seed, number, repeat=False):
                    run(model, recipe).save(path)
                again = load(path, into=model)
                row = judged(name, path, again.dense())
            except Exception as error:  # any: whatever went wrong is in the table, and the others go on
                said = str(error).strip().splitlines() or [""]
                rows.append(Candidate(name, None, None, None, f"{type(error).__name__}: {said[0]}"))
                continue
            rows.append(row)
            assert row.bits is not None
            if best is None or row.bits < best[0]:
                best = (row.bits, row, again)
    how.update("recipes", len(recipes), len(recipes))
    if best is None:
        raise PlanError(f"recipes: all failed: {'; '.join(f'{row.name}: {row.error}' for row in rows)}")
    read = best[2]
    # The folder is gone: as if it had never been in a file.
    kept = Compressed(read.specs, read.trees, model, notes=read.notes, skipped=read.skipped)
    return Choice(tuple(rows), best[1], kept, dense, uniform_bits)


def _on_batches(data: tuple[Tensor, Tensor], size: int, seed: int) -> Compress:
    def run(model: nn.Module, recipe: Recipe) -> Compressed:
        return compress(model, recipe, data=_Batches(*data, size, seed))  # new for each: all see the same order

    return run


class _Batches:
    """All samples in a new order each pass, the same orders for the same seed."""

    def __init__(self, inputs: Tensor, targets: Tensor, size: int, seed: int) -> None:
        if size < 1:
            raise PlanError(f"train_batch: found {size}, expected at least 1")
        self._inputs, self._targets, self._size = inputs, targets, size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return (len(self._inputs) + self._size - 1) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._inputs), generator=self._generator)
        for start in range(0, len(order), self._size):
            chosen = order[start : start + self._size]
            yield self._inputs[chosen], self._targets[chosen]
