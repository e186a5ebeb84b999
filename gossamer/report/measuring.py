"""What is measured of each network, one function per part of the document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError, GossamerError
from gossamer.measure.answers import answers
from gossamer.measure.corruption import corruptions
from gossamer.measure.description import description_length
from gossamer.measure.exemplars import changed, saliency
from gossamer.measure.generalisation import generalisation
from gossamer.measure.latency import interleaved
from gossamer.measure.modes import evaluating
from gossamer.measure.robustness import QUICK, STANDARD, Attack, Normalized, Transfer, robustness
from gossamer.report.learned import Names
from gossamer.report.samples import Remembered, Samples, pixel_range
from gossamer.report.sights import image_sights, word_sights
from gossamer.report.subjects import DenseSubject, Subject

__all__ = ["Bench", "Effort", "accuracy_of", "changes_of", "corruptions_of", "generalisation_of", "latency_of"]

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
_LISTED, _SEEN = 24, 12
_BATCH = 250

Told = Callable[[str, int, int], None]


@final
@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Args:
        attacks: none at all if empty.
        attacked: examples that are attacked.
        corrupted: examples that are corrupted; 0: none.
        seconds: of timing each file.
    """

    attacks: tuple[Attack, ...] = QUICK
    attacked: int = 200
    corrupted: int = 300
    seconds: float = 0.5

    @classmethod
    def thorough(cls) -> Effort:
        """With attacks and examples to publish figures by."""
        return cls(STANDARD, 1000, 1000, 2.0)

    @classmethod
    def unattacked(cls) -> Effort:
        """No attacks and no corruptions."""
        return cls((), 0, 0)


@final
@dataclass(frozen=True)
class Bench:
    """What all networks are measured with.

    Args:
        test: samples that nothing was fitted to, or None.
        train: samples of training, or None.
        fitted: samples for a temperature, none of which are among the others, or None.
        dense: the network that files come from, or None.
        effort: how much is tried.
        classes: their names.
    """

    test: Samples | None
    train: Samples | None
    fitted: Samples | None
    dense: DenseSubject | None
    effort: Effort
    classes: Names

    def remembering(self, network: nn.Module) -> Remembered:
        """The network, which runs once on samples that several measures ask about."""
        return Remembered(network, [s for s in (self.test, self.train, self.fitted) if s is not None], _BATCH)

    @property
    def images(self) -> bool:
        """Whether inputs are images."""
        return self.test is not None and self.test.images

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        """Black and white per channel, of images."""
        assert self.test is not None and self.images
        return pixel_range(self.test.inputs)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Images from black, 0, to white, 1."""
        low, high = self._range
        return ((inputs - low) / (high - low)).clamp(0, 1)

    def on_pixels(self, network: nn.Module) -> Normalized:
        """A network of such images."""
        low, high = self._range
        width = high - low
        return Normalized(network, (-low / width).flatten().tolist(), (1 / width).flatten().tolist())

    @cached_property
    def transfer(self) -> Transfer | None:
        """Adversarial inputs of the dense network, which all files are asked about."""
        return None if self.dense is None else Transfer(self.on_pixels(self.dense.network))


def accuracy_of(bench: Bench, network: nn.Module) -> dict[str, Any]:
    """Right answers on the test samples. Runs first, so it also says if network and samples do not fit.

    Raises:
        DataError: whatever the network raised, or fewer names of classes than it has outputs.
    """
    assert bench.test is not None
    try:
        found = answers(network, *bench.test.pair, batch=_BATCH).to_json()
    except GossamerError:
        raise
    except Exception as error:  # the network is the user's code, and raises whatever it raises
        inputs, reason = bench.test.inputs, " ".join(f"{type(error).__name__}: {error}".split())[:160]
        given = f"{inputs.dtype} of shape [n, {', '.join(str(s) for s in inputs.shape[1:])}]"
        raise DataError(f"data: found inputs {given}, expected such as the network takes: {reason}") from error
    # Vocabularies are often shorter than the layer that foretells them, and a mapping names what it names.
    if bench.classes and not isinstance(bench.classes, Mapping) and not bench.test.positions:
        with evaluating(network), torch.no_grad():
            outputs = network(bench.test.inputs[:1]).shape[-1]
        if len(bench.classes) < outputs:
            raise DataError(f"classes: found {len(bench.classes)} names, expected one for each of {outputs} outputs")
    return found


def latency_of(bench: Bench, subject: Subject) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time of one forward pass of the lowered network beside the dense one, taking turns; and what runs each layer."""
    assert bench.test is not None and subject.compressed is not None and subject.network is not None
    one = bench.test.inputs[:1].contiguous()
    lowered = subject.compressed.lower(one)
    dense: Callable[[Tensor], Any] = subject.network if bench.dense is None else bench.dense.module
    found = interleaved({"dense": lambda: dense(one), "here": lambda: lowered(one)}, seconds=bench.effort.seconds)
    here, before = found["here"], found["dense"]
    latency = {
        "milliseconds": here.median_ms,
        "low": here.low_ms,
        "high": here.high_ms,
        "dense_milliseconds": before.median_ms,
        "dense_low": before.low_ms,
        "dense_high": before.high_ms,
        "batch": 1,
        "threads": torch.get_num_threads(),
    }
    kernels = [
        {
            "layer": choice.layer,
            "kernel": choice.kernel,
            "milliseconds": choice.ms,
            "dense_milliseconds": choice.dense_ms,
            "why": "; ".join(part for part in (choice.layout, choice.reason) if part),
        }
        for choice in lowered.explain()
    ]
    return latency, kernels


def lengths_of(bench: Bench, path: Path, network: nn.Module) -> dict[str, Any]:
    """Description length of the labels of all samples, from the file's bytes."""
    sets = {name: s.pair for name, s in (("train", bench.train), ("test", bench.test)) if s is not None}
    dense = bench.dense
    return description_length(
        path,
        network,
        sets,
        calibrate_on=None if bench.fitted is None else bench.fitted.pair,
        dense=None if dense is None else dense.network,
        dense_bytes=None if dense is None else dense.size,
        batch=_BATCH,
    ).to_json()


def generalisation_of(bench: Bench, network: nn.Module, *, is_dense: bool) -> dict[str, Any]:
    """Training against test, calibration, classes."""
    assert bench.test is not None and bench.train is not None
    dense = None if bench.dense is None or is_dense else bench.dense.network
    return generalisation(network, bench.train.pair, bench.test.pair, dense=dense, batch=_BATCH).to_json()


def robustness_of(bench: Bench, network: nn.Module, *, is_dense: bool, told: Told | None) -> dict[str, Any]:
    """Accuracy under attack, in L∞, pixels from 0 to 1."""
    assert bench.test is not None
    few = bench.test.first(bench.effort.attacked)
    return robustness(
        bench.on_pixels(network),
        bench.pixels(few.inputs),
        few.targets,
        epsilons=EPSILONS,
        attacks=bench.effort.attacks,
        dense=None if is_dense else bench.transfer,
        progress=told,
    ).to_json()


def corruptions_of(bench: Bench, network: nn.Module, told: Told | None) -> dict[str, Any]:
    """Accuracy under common corruptions."""
    assert bench.test is not None
    few = bench.test.first(bench.effort.corrupted)
    return corruptions(bench.on_pixels(network), bench.pixels(few.inputs), few.targets, progress=told).to_json()


def changes_of(bench: Bench, network: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Examples that the dense network answers otherwise, and what they look like."""
    assert bench.test is not None and bench.dense is not None
    inputs, targets = bench.test.pair
    found = changed(bench.dense.network, network, inputs, targets, most=_LISTED, batch=_BATCH).to_json()
    rows: Sequence[dict[str, Any]] = found["rows"][:_SEEN]
    if not rows:
        return found, {}
    if bench.test.positions:
        return found, ({} if inputs.is_floating_point() else word_sights(rows, inputs, bench.classes))
    if not bench.images:
        return found, {}
    chosen = torch.tensor([row["index"] for row in rows])
    few, labels = inputs[chosen], targets[chosen]
    traced = [_traced(asked, few, labels) for asked in (bench.dense.network, network)]
    return found, image_sights(rows, bench.pixels(few), *traced)


def _traced(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor | None:
    """Input gradients, or None of a network without any."""
    try:
        return saliency(network, inputs, targets)
    except (DataError, RuntimeError):  # what torch raises where a graph is cut
        return None


def words_seen(document_rows: Sequence[dict[str, Any]], words: Names) -> dict[int, str]:
    """Of a vocabulary only the words that rows name."""
    numbers = {int(row[key]) for row in document_rows for key in ("true", "dense", "compressed")}
    if isinstance(words, dict):
        return {n: words[n] for n in sorted(numbers) if n in words}
    return {n: words[n] for n in sorted(numbers) if 0 <= n < len(words)}
