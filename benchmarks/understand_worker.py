"""Tasks of `benchmarks.understand`: words with slashes between, as ``dense/LeNet-5/3`` or ``attacked/ResNet/0/4-bit``.

What is trained and compressed is kept as files by a hash of the code that decides it; files are coded anew where they
are measured, so that their bytes are those of the coders at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gossamer as gs
from benchmarks.rows import ROOT, code_hash
from benchmarks.understand_attacks import EPSILONS
from benchmarks.understand_networks import BATCH, NETWORKS, VARIANTS, Network, dense_of, pixels, recipe_of, small
from gossamer.demo.data import Fashion, Shuffled
from gossamer.errors import DataError
from gossamer.measure import APGD, FGSM, PGD, Square, Worst
from gossamer.measure.description import FREE
from gossamer.report.samples import Remembered, Samples
from gossamer.store import write_safetensors

__all__ = ["Place", "RowOf", "answer", "row_of"]

CODE_OF_DENSE = ("benchmarks/understand_networks.py", "gossamer/demo/data.py")
CODE_OF_FILES = (
    *CODE_OF_DENSE,
    *("gossamer/drive/gradual.py", "gossamer/drive/tune.py", "gossamer/methods/prune/magnitude.py"),
    *("gossamer/methods/quantize/rtn.py", "gossamer/methods/share/kmeans.py", "gossamer/methods/factorize/svd.py"),
)
_FIRST = PGD(steps=10)
ATTACKS = (
    FGSM(),
    _FIRST,
    Worst("APGD", (APGD("ce", steps=15, warm=_FIRST), APGD("targeted", steps=6, targets=3))),
    Square(queries=40),
)
"""As many steps as 80 networks allow in half an hour; `understand_attacks` races them at more."""
SEEDS, POPULATION = 5, 10
BATCH_OF_MEASURES = 500


class Place:
    """Data and the files of networks.

    Args:
        data: folder of Fashion-MNIST.
        quick: few images, one epoch.
    """

    def __init__(self, data: Path, *, quick: bool) -> None:
        self.quick, self.fashion = quick, pixels(data, quick=quick)
        self._folder = ROOT / "benchmarks" / "out" / ("understand_files_quick" if quick else "understand_files")

    @property
    def images(self) -> int:
        """How many are attacked."""
        return 200 if self.quick else 1_000

    def _file(self, name: str, code: Sequence[str]) -> Path:
        folder = self._folder / code_hash(*code)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def train(self, network: Network, seed: int) -> dict[str, Any]:
        """Make sure that the dense network is there."""
        weights, states = self._dense_files(network, seed)
        begin = time.process_time()
        if not states.is_file():
            model, found = dense_of(network, self.fashion, seed, epochs=1 if self.quick else network.epochs)
            write_safetensors(weights, model.state_dict())
            write_safetensors(states, {f"{i:02}/{n}": t for i, s in enumerate(found) for n, t in s.items()})
        return {"seconds": time.process_time() - begin}

    def _dense_files(self, network: Network, seed: int) -> tuple[Path, Path]:
        name = f"{network.name}-{seed}"
        return self._file(f"{name}.safetensors", CODE_OF_DENSE), self._file(f"{name}.states", CODE_OF_DENSE)

    def dense_file(self, network: Network, seed: int) -> Path:
        """Of the trained weights."""
        return self._dense_files(network, seed)[0]

    def dense(self, network: Network, seed: int) -> nn.Module:
        """The trained network."""
        model = network.factory()
        model.load_state_dict(load_file(self.dense_file(network, seed)))
        return model.eval()

    def states(self, network: Network, seed: int) -> Iterator[dict[str, Tensor]]:
        """What the weights were after every half epoch."""
        kept = load_file(self._dense_files(network, seed)[1])
        for i in range(1 + max(int(n[:2]) for n in kept)):
            yield {n[3:]: t for n, t in kept.items() if n.startswith(f"{i:02}/")}

    def compress(self, network: Network, seed: int, variant: str) -> dict[str, Any]:
        """Make sure that the file of a variant is there; of "dense" the same network without loss."""
        path = self._compressed_file(network, seed, variant)
        begin = time.process_time()
        if not path.is_file():
            torch.manual_seed(seed)
            data = Shuffled(self.fashion.train, self.fashion.train_labels, BATCH, seed + 1_000, flip=True)
            dense = self.dense(network, seed)
            recipe = recipe_of(variant, epochs=1 if self.quick else network.heal)
            gs.compress(dense, recipe, data=data).save(path)
        return {"seconds": time.process_time() - begin}

    def _compressed_file(self, network: Network, seed: int, variant: str) -> Path:
        return self._file(f"{network.name}-{seed}-{variant.replace(' ', '_')}.gsm", CODE_OF_FILES)

    def coded(self, network: Network, seed: int, variant: str) -> Path:
        """The file as the coders at hand write it."""
        path = self._compressed_file(network, seed, variant)
        again = path.with_name(f"{path.stem}-coded.gsm")
        gs.load(path, into=network.factory).save(again)
        return again

    def network(self, network: Network, seed: int, variant: str) -> nn.Module:
        """Read back from the file."""
        if variant == "dense":
            return self.dense(network, seed)
        return gs.load(self._compressed_file(network, seed, variant), into=network.factory).dense().eval()

    def predictions(self, network: Network, seed: int, variant: str, inputs: Tensor) -> Tensor:
        """Classes, [n]."""
        with torch.no_grad():
            model = self.network(network, seed, variant)
            return torch.cat([model(part).argmax(1) for part in inputs.split(500)])


def _accounted(place: Place, network: Network, seed: int) -> list[dict[str, Any]]:
    """Description length and generalisation of every file of a seed, the dense network's first."""
    data = place.fashion
    samples = (Samples(data.train, data.train_labels), Samples(data.test, data.test_labels))
    dense = Remembered(place.dense(network, seed), samples, BATCH_OF_MEASURES)
    rows = []
    for variant in VARIANTS:
        model = dense
        if variant != "dense":
            model = Remembered(place.network(network, seed, variant), samples, BATCH_OF_MEASURES)
        rows.append({"variant": variant, **_accounted_file(place, network, seed, variant, model, dense)})
    return rows


def _accounted_file(
    place: Place, network: Network, seed: int, variant: str, model: nn.Module, dense: nn.Module
) -> dict[str, Any]:
    data = place.fashion
    dense_bytes = place.dense_file(network, seed).stat().st_size
    file = place.dense_file(network, seed) if variant == "dense" else place.coded(network, seed, variant)
    half = len(data.test) // 2
    train = (data.train, data.train_labels)
    lengths = gs.measure.description_length(
        file,
        model,
        {"train": train, "test": (data.test[half:], data.test_labels[half:])},
        calibrate_on=(data.test[:half], data.test_labels[:half]),
        dense=None if variant == "dense" else dense,
        dense_bytes=None if variant == "dense" else dense_bytes,
        free=(*FREE, "the order of the classes"),
        classes=10,
        batch=BATCH_OF_MEASURES,
    )
    general = gs.measure.generalisation(
        model,
        train,
        (data.test, data.test_labels),
        dense=None if variant == "dense" else dense,
        classes=10,
        batch=BATCH_OF_MEASURES,
    )
    return {
        "file_bytes": file.stat().st_size,
        "dense_bytes": dense_bytes,
        "description_length": lengths.to_json(),
        "generalisation": general.to_json(),
    }


def _attacked(place: Place, network: Network, seed: int, variant: str) -> dict[str, Any]:
    """Robustness in L∞."""
    data = small(place.fashion, 1, place.images)
    model, carried = place.network(network, seed, variant), _carried(place, network, seed)
    begin = time.process_time()
    robust = gs.measure.robustness(
        model,
        data.test,
        data.test_labels,
        epsilons=EPSILONS,
        attacks=ATTACKS,
        dense=None if variant == "dense" else carried,
        seed=seed,
    )
    return {"robustness": robust.to_json(), "attack_seconds": time.process_time() - begin}


@lru_cache(maxsize=2)  # variants of a seed come one after the other, two networks by turns
def _carried(place: Place, network: Network, seed: int) -> gs.measure.Transfer:
    """The dense network, attacked once."""
    return gs.measure.Transfer(place.dense(network, seed))


def _damaged(place: Place, network: Network, seed: int) -> list[dict[str, Any]]:
    """Every variant of a seed on corrupted images."""
    data = small(place.fashion, 1, place.images)
    models = [place.network(network, seed, variant) for variant in VARIANTS]
    found = gs.measure.corruptions_of_each(models, data.test, data.test_labels, seed=seed)
    return [{"variant": v, "corruptions": f.to_json()} for v, f in zip(VARIANTS, found, strict=True)]


def _vog(place: Place, network: Network, seed: int) -> dict[str, Any]:
    """Both logits over the states of training, on test images."""
    data, final = place.fashion, place.dense(network, seed)
    rows = {}
    for logit in ("predicted", "true"):
        found = gs.measure.vog(place.states(network, seed), final, data.test, data.test_labels, logit=logit, classes=10)
        rows[logit] = found.to_json()
    return rows


def _pie(place: Place, network: Network) -> list[dict[str, Any]]:
    """Populations: dense, another dense one as control, and compressed at each sparsity."""
    data = place.fashion
    count = 2 if place.quick else POPULATION

    def said(variant: str, first: int) -> list[Tensor]:
        return [place.predictions(network, s, variant, data.test) for s in range(first, first + count)]

    # What is compressed are the networks of the control, so that both comparisons are with independent networks.
    dense, control = said("dense", count), said("dense", 0)
    rows = []
    for variant in (v for v in VARIANTS if v.endswith("sparse")):
        found = gs.measure.pie(dense, said(variant, 0), control, data.test, data.test_labels)
        rows.append({"variant": variant, **found.to_json()})
    return rows


def _prequential(place: Place, network: Network, seed: int) -> dict[str, Any]:
    """Labels of all training images in doubling blocks, each foretold by a network trained on those before; and whether
    a second run over the first 5,120 gives the same bits to the last one."""

    def fit(before: nn.Module | None, inputs: Tensor, targets: Tensor) -> nn.Module:
        del before  # trained anew: a warm start does worse on what comes next
        few = Fashion(inputs, targets, inputs[:1], targets[:1], full=False)
        steps = max(1, len(inputs) // BATCH)
        return dense_of(network, few, seed, epochs=max(2 if place.quick else network.epochs, min(100, 400 // steps)))[0]

    def coded(count: int) -> Any:
        order = torch.randperm(len(place.fashion.train), generator=torch.Generator().manual_seed(seed))[:count]
        return gs.measure.prequential(
            fit, place.fashion.train[order], place.fashion.train_labels[order], classes=10, seed=seed
        )

    again = 640 if place.quick else 5_120
    whole = coded(len(place.fashion.train))
    return {
        **whole.to_json(),
        "again": again,
        "same_bits": coded(again).to_json()["sum"] == coded(again).to_json()["sum"],
    }


def _searched(place: Place, network: Network, seed: int) -> dict[str, Any]:
    """The file with the least description length of the training labels, beside accuracy on other images."""
    data = place.fashion
    recipes = {v: recipe_of(v, epochs=1 if place.quick else network.heal) for v in VARIANTS[1:]}

    def made(model: nn.Module, recipe: object) -> gs.Compressed:
        del model  # the same network, the same recipe: the file is there
        variant = next(v for v, r in recipes.items() if r is recipe)
        return gs.load(place.coded(network, seed, variant), into=network.factory)

    choice = gs.search.by_description_length(
        place.dense(network, seed),
        recipes,
        data=(data.train, data.train_labels),
        validation=(data.test, data.test_labels),
        compress=made,
        classes=10,
    )
    return choice.to_json()


def row_of(place: Place, network: Network, kind: str, rest: list[str]) -> dict[str, Any]:
    """The row of a task."""
    if kind == "pie":
        return {"variants": _pie(place, network)}
    seed = int(rest[0])
    if kind == "dense":
        return place.train(network, seed)
    if kind == "file":
        return place.compress(network, seed, rest[1])
    if kind == "accounted":
        return {"variants": _accounted(place, network, seed)}
    if kind == "attacked":
        return _attacked(place, network, seed, rest[1])
    if kind == "damaged":
        return {"variants": _damaged(place, network, seed)}
    if kind == "vog":
        return _vog(place, network, seed)
    if kind == "prequential":
        return _prequential(place, network, seed)
    if kind == "search":
        return _searched(place, network, seed)
    raise DataError(f"task: found {kind!r}, expected one that this worker knows")


RowOf = Callable[[Place, Network, str, list[str]], dict[str, Any]]
"""(data and files, network, kind, what else the task says) → row."""

_place = lru_cache(maxsize=1)(Place)  # read once per process


def answer(row_of: RowOf, data: Path, task: str, quick: bool) -> dict[str, Any]:
    """The row of a task, made on one thread, with what it took.

    Args:
        row_of: knows this kind of task.
        data: folder of Fashion-MNIST.
        task: KIND/NETWORK/….
        quick: few images.
    """
    torch.set_num_threads(1)
    place, begin = _place(data, quick=quick), time.process_time()
    kind, name, *rest = task.split("/")
    row = row_of(place, next(n for n in NETWORKS if n.name == name), kind, rest)
    return {"cpu_seconds": time.process_time() - begin, "row": row}
