"""Description length: what labels take when the network that foretells them is sent first."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.label_code import label_bits, total
from gossamer.measure.logits import LabelledLogits, check_pair
from gossamer.measure.modes import Network
from gossamer.measure.temperature import TEMPERATURE_BITS, Temperature, temperature_of

__all__ = ["FREE", "DescribedSet", "DescriptionLength", "description_length", "pays_from"]

FREE = (
    "the inputs: labels are coded given them",
    "the architecture: the network's source code",
    "the decoder: Gossamer, PyTorch",
)
"""What is declared free unless something else is said."""


@dataclass(frozen=True)
class DescribedSet:
    """The labels of one set.

    Args:
        labels: how many.
        label_bits: under the network.
        label_bits_calibrated: the same at the fitted temperature; None without one.
        uniform_bits: labels · log₂ classes.
        dense_label_bits: under the dense network; None without one.
        dense_label_bits_calibrated: at the dense network's own temperature.
        calibrated_on: how many of the samples also are among those of which the temperature was fitted (by all bits of
            their inputs).
    """

    labels: int
    label_bits: float
    label_bits_calibrated: float | None
    uniform_bits: float
    dense_label_bits: float | None
    dense_label_bits_calibrated: float | None
    calibrated_on: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return dict(vars(self))


@final
@dataclass(frozen=True)
class DescriptionLength:
    """A two-part code and what it is compared with.

    Args:
        file_bytes: of the network.
        classes: of labels.
        sets: by name.
        temperature: of the network, or None.
        dense_temperature: of the dense one, or None.
        dense_bytes: of the dense network's file, or None.
        free: what is not counted.
    """

    file_bytes: int
    classes: int
    sets: Mapping[str, DescribedSet]
    temperature: Temperature | None
    dense_temperature: Temperature | None
    dense_bytes: int | None
    free: tuple[str, ...]

    @property
    def model_bits(self) -> int:
        """The file's bytes times eight."""
        return 8 * self.file_bytes

    @property
    def two_part_bits(self) -> dict[str, float]:
        """Per set: the model's bits and the labels'."""
        return self._two_part(self.model_bits, "label_bits")

    @property
    def two_part_bits_calibrated(self) -> dict[str, float] | None:
        """Per set: the model's bits, the temperature's 32 and the labels'; None without a temperature."""
        if self.temperature is None:
            return None
        return self._two_part(self.model_bits + TEMPERATURE_BITS, "label_bits_calibrated")

    @property
    def dense_two_part_bits(self) -> dict[str, float] | None:
        """Per set, of the dense network; None without it or its bytes."""
        if self.dense_bytes is None:
            return None
        return self._two_part(8 * self.dense_bytes, "dense_label_bits") or None

    @property
    def dense_two_part_bits_calibrated(self) -> dict[str, float] | None:
        """The same with the dense network's own temperature; None without one."""
        if self.dense_bytes is None or self.dense_temperature is None:
            return None
        return self._two_part(8 * self.dense_bytes + TEMPERATURE_BITS, "dense_label_bits_calibrated")

    @property
    def pays_from(self) -> dict[str, int | None]:
        """Per set: with how many samples alike the file costs less than it saves; None: with no number."""
        return self._pays(self.model_bits, "label_bits")

    @property
    def pays_from_calibrated(self) -> dict[str, int | None] | None:
        """The same with the temperature, its bits counted; None without one."""
        if self.temperature is None:
            return None
        return self._pays(self.model_bits + TEMPERATURE_BITS, "label_bits_calibrated")

    @property
    def dense_pays_from(self) -> dict[str, int | None] | None:
        """The same of the dense network; None without it or its bytes."""
        if self.dense_bytes is None:
            return None
        return self._pays(8 * self.dense_bytes, "dense_label_bits") or None

    def _column(self, name: str) -> dict[str, float]:
        """A number of each set, of those that have it."""
        found = {n: getattr(s, name) for n, s in self.sets.items()}
        return {n: bits for n, bits in found.items() if bits is not None}

    def _two_part(self, model: int, name: str) -> dict[str, float]:
        return {n: model + bits for n, bits in self._column(name).items()}

    def _pays(self, model: int, name: str) -> dict[str, int | None]:
        labels = {n: s.labels for n, s in self.sets.items()}
        return {n: pays_from(model, bits, labels[n], self.classes) for n, bits in self._column(name).items()}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "model_bits": self.model_bits,
            "file_bytes": self.file_bytes,
            "dense_bytes": self.dense_bytes,
            "classes": self.classes,
            "free": list(self.free),
            "temperature": None if self.temperature is None else self.temperature.value,
            "dense_temperature": None if self.dense_temperature is None else self.dense_temperature.value,
            "calibration": None
            if self.temperature is None
            else {"labels": self.temperature.labels, "bits": TEMPERATURE_BITS, "note": self.temperature.note},
            "sets": {name: s.to_json() for name, s in self.sets.items()},
            "two_part_bits": self.two_part_bits,
            "two_part_bits_calibrated": self.two_part_bits_calibrated,
            "dense_two_part_bits": self.dense_two_part_bits,
            "dense_two_part_bits_calibrated": self.dense_two_part_bits_calibrated,
            "pays_from": self.pays_from,
            "pays_from_calibrated": self.pays_from_calibrated,
            "dense_pays_from": self.dense_pays_from,
        }


def description_length(
    file: str | Path | bytes | int,
    model: Network,
    sets: Mapping[str, tuple[Tensor, Tensor]],
    *,
    calibrate_on: tuple[Tensor, Tensor] | None = None,
    dense: Network | None = None,
    dense_bytes: int | None = None,
    free: tuple[str, ...] = FREE,
    classes: int | None = None,
    batch: int = 500,
) -> DescriptionLength:
    """The two-part code of labels: L = 8 · bytes of the network's file + Σ −log₂ p(label | input).

    An arithmetic coder gets within two bits of it. Against it stand labels sent uniform, n log₂ K bits, and the dense
    network. The file pays from the smallest n with L < n log₂ K, were all samples as those of the set.

    Args:
        file: the network's file, its content, or its number of bytes.
        model: the network as it was read from this file: inputs → logits [n, classes] or [n, positions, classes].
            Run in eval mode, then put back.
        sets: name → (inputs [n, …], targets int64 [n] or [n, positions]).
        calibrate_on: (inputs, targets) on which to fit a temperature per network, or None. 32 bits are added for it.
            For the truth about new samples it shares none with the sets; how many it shares is in `calibrated_on`.
        dense: the network to compare with.
        dense_bytes: of its file.
        free: what is declared not to be counted.
        classes: K; None: as many as the network has logits.
        batch: samples at a time.

    Raises:
        DataError: no such file, no sets, an empty one, targets that are no classes, logits that are not finite or of
            different numbers of classes.

    Cost: each network runs once on each set. Exact: `model_bits` is an integer; label bits are summed without error and
    are the same to the last bit whenever logits are.

    Example:
        >>> targets = torch.arange(8).repeat(100)
        >>> logits = 9.0 * torch.eye(8)[targets]
        >>> found = description_length(100, lambda x: x, {"train": (logits, targets)})
        >>> found.model_bits, round(found.sets["train"].label_bits, 3), found.pays_from["train"]
        (800, 0.997, 267)

    Source: Rissanen 1978, Modeling by shortest data description; Grünwald 2007, The minimum description length
    principle, chapter 5. Of networks: Blier and Ollivier 2018, arXiv 1802.07044.
    """
    file_bytes = _bytes(file, "file")
    if dense_bytes is not None:
        _bytes(dense_bytes, "dense_bytes")
    if not isinstance(sets, Mapping):
        raise DataError(f"sets: found {type(sets).__name__}, expected a mapping from names to (inputs, targets)")
    if not sets:
        raise DataError("sets: found none, expected at least one of inputs and targets")
    if isinstance(free, str):
        raise DataError(f"free: found {free!r}, expected a tuple of strings")
    own = _Coder(model, "", classes, calibrate_on, batch)
    described = {name: own.coded(name, pair) for name, pair in sets.items()}
    other = None if dense is None else _Coder(dense, "dense network, ", own.classes, calibrate_on, batch)
    compared = {} if other is None else {name: other.coded(name, pair) for name, pair in sets.items()}
    shared = _Seen(calibrate_on[0]) if calibrate_on is not None else None
    assert own.classes is not None
    rows = {}
    for name, (labels, bits, calibrated_bits) in described.items():
        _, dense_bits, dense_calibrated = compared.get(name, (0, None, None))
        rows[name] = DescribedSet(
            labels,
            bits,
            calibrated_bits,
            labels * math.log2(own.classes),
            dense_bits,
            dense_calibrated,
            0 if shared is None else shared.count(sets[name][0]),
        )
    dense_temperature = None if other is None else other.temperature
    return DescriptionLength(
        file_bytes, own.classes, rows, own.temperature, dense_temperature, dense_bytes, tuple(free)
    )


def pays_from(model_bits: int, bits: float, labels: int, classes: int) -> int | None:
    """The smallest N with model_bits + N · bits / labels < N · log₂ classes; None if there is none.

    Args:
        model_bits: of the file.
        bits: of the labels under it.
        labels: how many these are.
        classes: of labels.

    Exact for the doubles given.

    Example:
        >>> pays_from(80, 100.0, 100, 4), pays_from(80, 200.0, 100, 4)
        (81, None)
    """
    saved = Fraction(math.log2(classes)) - Fraction(bits) / labels
    return math.floor(model_bits / saved) + 1 if saved > 0 else None


class _Coder:
    """A network with its temperature, which counts bits."""

    def __init__(
        self,
        model: Network,
        prefix: str,
        classes: int | None,
        calibrate_on: tuple[Tensor, Tensor] | None,
        batch: int,
    ) -> None:
        self._model, self._prefix, self._batch, self.classes = model, prefix, batch, classes
        self.temperature: Temperature | None = None
        if calibrate_on is not None:
            pairs = self._pairs("calibrate_on", calibrate_on)
            self.temperature = temperature_of(pairs)
            self.classes = pairs.classes

    def _pairs(self, name: str, data: tuple[Tensor, Tensor]) -> LabelledLogits:
        where = f"{self._prefix}{name}"
        inputs, targets = check_pair(data, name=where)
        return LabelledLogits(self._model, inputs, targets, name=where, batch=self._batch, classes=self.classes)

    def coded(self, name: str, data: tuple[Tensor, Tensor]) -> tuple[int, float, float | None]:
        """Labels, their bits, and their bits at the temperature."""
        pairs = self._pairs(name, data)
        plain, warm = [], []
        for logits, labels in pairs:
            plain.append(label_bits(logits, labels))
            if self.temperature is not None:
                warm.append(label_bits(logits, labels, self.temperature.value))
        self.classes = pairs.classes
        return pairs.labels, total(torch.cat(plain)), total(torch.cat(warm)) if warm else None


class _Seen:
    """Samples by a digest of all their bits."""

    def __init__(self, inputs: Tensor) -> None:
        self._known = set(_digests(inputs))

    def count(self, inputs: Tensor) -> int:
        """How many of these are known."""
        return sum(digest in self._known for digest in _digests(inputs))


def _digests(inputs: Tensor) -> list[bytes]:
    flat = inputs.detach().cpu().reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
    kind = str(inputs.dtype).encode()
    return [hashlib.blake2b(row.tobytes(), digest_size=16, key=kind).digest() for row in flat]


def _bytes(file: object, what: str) -> int:
    if isinstance(file, (str, Path)):
        path = Path(file)
        if not path.is_file():
            raise DataError(f"{path}: found no file, expected the network's")
        return path.stat().st_size
    if isinstance(file, bytes):
        return len(file)
    if isinstance(file, bool) or not isinstance(file, int) or file < 0:
        raise DataError(f"{what}: found {file!r}, expected a path or a number of bytes")
    return file
