"""Accuracy on images that something happened to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.corruption.kinds import Corruption
from gossamer.measure.modes import Network
from gossamer.measure.robustness.attack import check_classes, check_examples
from gossamer.measure.robustness.chance import keys_of
from gossamer.measure.robustness.probe import Probe, parts, undisturbed

__all__ = ["Corrupted", "Corruptions", "corruptions", "corruptions_of_each"]


@final
@dataclass(frozen=True)
class Corrupted:
    """One corruption at one severity.

    Args:
        corruption: which.
        severity: 1 to 5.
        accuracy: share of right answers.
    """

    corruption: Corruption
    severity: int
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"corruption": self.corruption.value, "severity": self.severity, "accuracy": self.accuracy}


@final
@dataclass(frozen=True)
class Corruptions:
    """Accuracy under common corruptions.

    Args:
        clean: accuracy on the images as they are.
        rows: per corruption and severity.
    """

    clean: float
    rows: tuple[Corrupted, ...]

    def mean(self, severity: int) -> float:
        """Over the corruptions."""
        found = [r.accuracy for r in self.rows if r.severity == severity]
        if not found:
            raise DataError(f"found no rows of severity {severity}")
        return sum(found) / len(found)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, as reports keep them."""
        severities = sorted({r.severity for r in self.rows})
        mean = {str(s): self.mean(s) for s in severities}
        return {"clean": self.clean, "rows": [r.to_json() for r in self.rows], "mean": mean}


def corruptions(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    kinds: Sequence[Corruption] = tuple(Corruption),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
    batch: int = 500,
    progress: Callable[[str, int, int], None] | None = None,
) -> Corruptions:
    """Accuracy on corrupted images.

    Args:
        model: images → logits [n, classes]; in eval mode meanwhile.
        inputs: float32 or float64 [n, channels, height, width] in [0, 1], any number of channels.
        targets: int64 [n].
        kinds: corruptions.
        severities: each 1 to 5.
        seed: of noise; every image has its own, the same for every network.
        batch: images at a time.
        progress: called with (what, done, total).

    Raises:
        DataError: images out of [0, 1] or of another shape, targets that are no classes, unknown severities.

    Cost: one evaluation per image, kind and severity, and the corruption, mostly less than that.

    Example:
        >>> import torch
        >>> bright = lambda x: torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.5)], 1)
        >>> grey, right = torch.full((2, 1, 8, 8), 0.6), torch.tensor([0, 0])
        >>> found = corruptions(bright, grey, right, kinds=[Corruption.BRIGHTNESS], severities=[5])
        >>> found.clean, found.mean(5)
        (1.0, 1.0)

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """
    return corruptions_of_each(
        [model], inputs, targets, kinds=kinds, severities=severities, seed=seed, batch=batch, progress=progress
    )[0]


def corruptions_of_each(
    models: Sequence[Network],
    inputs: Tensor,
    targets: Tensor,
    *,
    kinds: Sequence[Corruption] = tuple(Corruption),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
    batch: int = 500,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Corruptions]:
    """`corruptions` of several networks, every image corrupted once: the same figures, sooner.

    Args:
        models: a list of networks, each images → logits [n, classes].
        inputs: as `corruptions` takes them; likewise all that follow.
        targets: int64 [n].
        kinds: corruptions.
        severities: each 1 to 5.
        seed: of noise.
        batch: images at a time.
        progress: called with (what, done, total).

    Returns:
        One per network, in order.

    Raises:
        DataError: as `corruptions`.

    Example:
        >>> import torch
        >>> bright = lambda x: torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.5)], 1)
        >>> grey, right = torch.full((2, 1, 8, 8), 0.6), torch.tensor([0, 0])
        >>> found = corruptions_of_each([bright, lambda x: -bright(x)], grey, right, severities=[5])
        >>> [f.clean for f in found]
        [1.0, 0.0]
    """
    check_examples(inputs, targets, (0.0, 1.0))
    if inputs.dim() != 4:
        raise DataError(f"inputs: found shape {tuple(inputs.shape)}, expected images [n, channels, height, width]")
    if not kinds or not severities or any(s not in (1, 2, 3, 4, 5) for s in severities):
        raise DataError(f"found {len(kinds)} kinds, severities {list(severities)}, expected some of each, from 1 to 5")
    if any(not isinstance(kind, Corruption) for kind in kinds):
        raise DataError(f"kinds: found {list(kinds)!r}, expected members of Corruption")
    given: object = models
    if not isinstance(given, (list, tuple)):
        raise DataError(f"models: found {type(given).__name__}, expected a list of networks")
    with undisturbed(*models):
        probes, count, done = [Probe(model, inputs) for model in models], len(inputs), 0

        def shares(change: Callable[[Tensor], Tensor]) -> list[float]:
            """Of each network's right answers to the images that come of these numbers."""
            right = [0] * len(probes)
            for numbers in parts(count, batch):
                images = change(numbers)
                for i, probe in enumerate(probes):
                    logits = probe.logits(images.clone() if len(probes) > 1 else images)  # networks may overwrite them
                    check_classes(targets, logits.shape[1])
                    right[i] += int((logits.argmax(1) == targets[numbers]).sum())
            return [r / count for r in right]

        found: list[tuple[Corruption, int, list[float]]] = []
        for kind in kinds:
            for severity in severities:
                if progress is not None:
                    progress(f"{kind.value} {severity}", done, len(kinds) * len(severities))
                done += 1

                def changed(numbers: Tensor, kind: Corruption = kind, severity: int = severity) -> Tensor:
                    return kind.of(inputs[numbers], severity, keys_of(seed, kind.value, numbers))

                found.append((kind, severity, shares(changed)))
        clean = shares(lambda numbers: inputs[numbers])
    return [Corruptions(clean[i], tuple(Corrupted(k, s, right[i]) for k, s, right in found)) for i in range(len(clean))]
