"""A network with everything that is needed to compress, fine-tune and measure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gossamer.drive.tune import Batches, Loss

__all__ = ["Metric", "Subject"]

Metric = Literal["accuracy", "probe-accuracy", "phoneme-error"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network of the benchmark.

    Args:
        name: for tables.
        factory: makes the architecture, as `gossamer.load` wants it.
        metric: what ``measure`` returns, 0 to 1; of phoneme-error less is better.
        dense: the network with its dense weights in eval mode: read from a checkpoint, or trained from seed 0.
        measure: network → metric on the held-out data.
        batches: seed → training batches (inputs, targets) for fine-tuning; a few thousand samples may be an epoch.
        loss: (outputs, targets) → scalar, for these batches.
        inputs: batch size → example inputs, for latency.
        dense_seconds: what ``dense`` takes on two cores that do nothing else, for the estimate.
        epoch_seconds: of fine-tuning on one pass over ``batches``.
        measure_seconds: of one ``measure``.
        file_seconds: of coding, writing and reading one file.
        latency_seconds: of timing one row.
    """

    name: str
    factory: Callable[[], nn.Module]
    metric: Metric
    dense: Callable[[], nn.Module]
    measure: Callable[[nn.Module], float]
    batches: Callable[[int], Batches]
    loss: Loss
    inputs: Callable[[int], Tensor]
    dense_seconds: float
    epoch_seconds: float
    measure_seconds: float
    file_seconds: float = 1.0
    latency_seconds: float = 3.0

    def lost(self, dense_value: float, value: float) -> float:
        """Percentage points lost against the dense network; negative: gained."""
        better = -1 if self.metric == "phoneme-error" else 1
        return 100 * better * (dense_value - value) + 0.0  # never -0.0
