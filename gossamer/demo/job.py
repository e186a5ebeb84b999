"""One row: compress, write, forget everything, read the file back, measure what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gossamer.api import Compressed, compress, load
from gossamer.demo.data import Fashion, Shuffled
from gossamer.demo.recipes import Classic, Job
from gossamer.drive.progress import NoProgress, Progress
from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, ledger_of

__all__ = ["Result", "latencies", "run_job"]


@dataclass(frozen=True)
class Result:
    """What one recipe brought, all of it from the reloaded file.

    Args:
        network: name.
        job: what was done.
        ledger: of the file.
        before: of the dense network.
        after: of the reloaded one.
        latency: batch size → (dense, compressed).
        seconds: of compressing, fine-tuning included.
        kernels: layer → what runs it.
    """

    network: str
    job: Job
    ledger: Ledger
    before: Accuracy
    after: Accuracy
    latency: dict[int, tuple[Timing, Timing]]
    seconds: float
    kernels: dict[str, str]

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy lost; negative: gained."""
        return 100 * (self.before.value - self.after.value)


def run_job(
    classic: Classic,
    job: Job,
    dense: nn.Module,
    before: Accuracy,
    data: Fashion,
    *,
    seed: int,
    path: Path,
    batches: tuple[int, ...] = (1, 64),
    latency_seconds: float = 0.5,
    progress: Progress | None = None,
) -> Result:
    """Run one recipe and measure the file that it leaves at ``path``."""
    start = time.perf_counter()
    training = Shuffled(data.train, data.train_labels, classic.batch, seed + 100, flip=classic.flip)
    small = compress(dense, job.recipe, data=training, progress=progress or NoProgress())
    small.save(path)
    seconds = time.perf_counter() - start
    del small
    again = load(path, into=classic.factory)
    after = accuracy(again.dense(), data.test, data.test_labels)
    latency, kernels = latencies(dense, again, data, batches, latency_seconds)
    return Result(classic.name, job, ledger_of(path, zstd=False), before, after, latency, seconds, kernels)


def latencies(
    dense: nn.Module, again: Compressed, data: Fashion, batches: tuple[int, ...], seconds: float
) -> tuple[dict[int, tuple[Timing, Timing]], dict[str, str]]:
    """Time the dense and the reloaded, lowered network in turn.

    Returns:
        Batch size → (dense, lowered), and layer → what runs it at the last batch size.
    """
    latency: dict[int, tuple[Timing, Timing]] = {}
    kernels: dict[str, str] = {}
    for batch in batches:
        inputs = data.test[:batch].contiguous()
        lowered = again.lower(inputs)
        calls = {"dense": _call(dense, inputs), "lowered": _call(lowered, inputs)}
        times = interleaved(calls, seconds=seconds)
        latency[batch] = (times["dense"], times["lowered"])
        kernels = {c.layer: c.kernel for c in lowered.explain()}
    return latency, kernels


def _call(network: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    return lambda: network(inputs)
