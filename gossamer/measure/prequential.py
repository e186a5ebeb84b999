"""Prequential code: labels are sent in blocks, each under a network trained on those sent before it."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.label_code import label_bits, total
from gossamer.measure.logits import LabelledLogits, check_count, check_labels
from gossamer.measure.seeded import seeded

__all__ = ["Block", "Fit", "Prequential", "prequential"]

Fit = Callable[[nn.Module | None, Tensor, Tensor], nn.Module]
"""(the network so far, or None at first; inputs; targets) → a network trained on these."""


@dataclass(frozen=True)
class Block:
    """Samples that were sent together.

    Args:
        start: number of the first.
        end: number after the last.
        bits: of their labels.
    """

    start: int
    end: int
    bits: float

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {"from": self.start, "to": self.end, "bits": self.bits}


@final
@dataclass(frozen=True)
class Prequential:
    """The code length of labels under a way of training.

    Args:
        blocks: in order.
        classes: of labels.
        labels: how many.
    """

    blocks: tuple[Block, ...]
    classes: int
    labels: int

    @property
    def bits(self) -> float:
        """Of all labels; the blocks' bits summed without error, rounded once."""
        return math.fsum(block.bits for block in self.blocks)

    @property
    def uniform_bits(self) -> float:
        """What the labels take without a network."""
        return self.labels * math.log2(self.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of the blocks' bits, every double as eight bytes, the lowest first."""
        return hashlib.sha256(struct.pack(f"<{len(self.blocks)}d", *(block.bits for block in self.blocks))).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "bits": self.bits,
            "blocks": [block.to_json() for block in self.blocks],
            "uniform_bits": self.uniform_bits,
            "sum": self.digest,
        }


def prequential(
    fit: Fit,
    inputs: Tensor,
    targets: Tensor,
    *,
    classes: int,
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    batch: int = 500,
) -> Prequential:
    """Σ over blocks of −log₂ p(labels of the block | their inputs, all samples before): no weights are ever sent.

    Whoever receives it trains as the sender did. The first block is uniform, log₂ K bits a label. What is learnt saves
    bits afterwards, what is learnt late has cost them. Only `fit` (architecture, settings, seed) is declared free.

    Args:
        fit: (network or None, inputs, targets) → network. Called once per further block with all samples before it; the
            network is None at first, then what it returned last, to train on or to ignore. It may draw from the global
            generators of PyTorch, NumPy and Python, which start anew from the seed at each call and are put back after.
        inputs: [n, …], in the order in which they are sent. Shuffle them if they are sorted.
        targets: int64 [n] or [n, positions].
        classes: K.
        blocks: sizes that add up to n; None: 2 K, then as many as there were before, each time.
        seed: of all training.
        batch: samples at a time.

    Raises:
        DataError: sizes that do not add up, targets that are no classes, a `fit` that returns no network, logits that
            are not finite or of another number of classes.

    Cost: one training run per block. Exact: the same to the last bit where training is, on as many threads.

    Example:
        >>> def fit(network, inputs, targets):  # the classes' shares so far, whatever the input
        ...     network = nn.Linear(1, 2)
        ...     nn.init.zeros_(network.weight)
        ...     network.bias.data = torch.bincount(targets, minlength=2).add(0.5).log()
        ...     return network
        >>> found = prequential(fit, torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64), classes=2, blocks=(1, 3, 4))
        >>> [round(block.bits, 2) for block in found.blocks], found.uniform_bits
        ([1.0, 1.25, 0.61], 8.0)

    Source: Dawid 1984, Statistical theory: the prequential approach; Blier and Ollivier 2018, arXiv 1802.07044,
    section 2.4.
    """
    check_count(classes, name="samples")
    check_labels(inputs, targets, name="samples", classes=classes)
    ends = _ends(len(inputs), classes, blocks)
    labels = targets[0].numel()
    done = [Block(0, ends[0], ends[0] * labels * math.log2(classes))]
    network: nn.Module | None = None
    for number, (start, end) in enumerate(pairwise(ends), 1):
        name = f"block {number} (samples {start} to {end - 1})"
        with seeded(seed, number):
            network = fit(network, inputs[:start], targets[:start])
        if not callable(network):
            raise DataError(f"{name}: found {type(network).__name__} from fit, expected a network")
        pairs = LabelledLogits(network, inputs[start:end], targets[start:end], name=name, batch=batch, classes=classes)
        done.append(Block(start, end, total(torch.cat([label_bits(z, y) for z, y in pairs]))))
    return Prequential(tuple(done), classes, targets.numel())


def _ends(samples: int, classes: int, blocks: Sequence[int] | None) -> list[int]:
    if blocks is None:
        ends = [min(samples, 2 * classes)]
        while ends[-1] < samples:
            ends.append(min(samples, 2 * ends[-1]))
        return ends
    if not isinstance(blocks, Sequence):
        raise DataError(f"blocks: found {type(blocks).__name__}, expected a sequence of sizes")
    if not blocks or any(not isinstance(n, Integral) or n < 1 for n in blocks) or sum(blocks) != samples:
        raise DataError(
            f"blocks: found sizes {tuple(blocks)} for {samples} samples, expected positive integers that add up"
        )
    ends = [0]
    for size in blocks:
        ends.append(ends[-1] + size)
    return ends[1:]
