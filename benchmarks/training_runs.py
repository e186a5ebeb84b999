"""Whole training runs; ``python -m benchmarks.training_runs`` trains what standard input asks for."""

from __future__ import annotations

import json
import math
import os
import queue
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer.train as sparse
from benchmarks.rows import ROOT, Rows
from benchmarks.training_methods import METHODS
from benchmarks.training_recipes import TRAINED, Recipe
from gossamer.demo.data import Fashion, load_fashion
from gossamer.errors import DataError, GossamerError

__all__ = ["Run", "finished", "reached", "trained", "with_dense"]

_LOOKS = 6  # per epoch, at the test data; not part of the time
_UNSEEN = 0.4  # share of a run before the first look: at a high rate no network is near its goal
_MARGIN = 0.003  # below dense accuracy, at which times are taken


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        network: of `TRAINED`.
        method: of `METHODS`, "dense", or "dense_bf16".
        sparsity: 0 for dense ones.
        seed: of initialisation, order of the data, and topology.
        threads: of torch and of kernels.
        looks: whether test accuracy is followed during the run.
        data: folder with Fashion-MNIST, None: the packaged subset.
        share: of the usual epochs. Dense runs of several shares are schedules, of which the best counts.
    """

    network: str
    method: str
    sparsity: float
    seed: int
    threads: int
    looks: bool
    data: str | None
    share: float = 1.0

    @property
    def key(self) -> str:
        """Name of the kept row."""
        trained = TRAINED[self.network]
        stamp = (trained.dense if self.method.startswith("dense") else trained.sparse).stamp
        setting = f"{self.sparsity}-{self.seed}-{self.threads}-{self.share:g}"
        return f"run-{self.network}-{self.method}-{setting}-{trained.batch}-{stamp}"


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        parts = zip(images.split(1000), labels.split(1000), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    model.train()
    return right / len(labels)


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    rising = max(1, round(recipe.warm * steps))
    if step < rising:
        return recipe.rate * (step + 1) / rising
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def trained(run: Run, data: Fashion, recipe: Recipe | None = None) -> dict[str, Any]:
    """Train, and say how it went.

    Args:
        run: what.
        data: on which.
        recipe: None: that of the network in `TRAINED`.

    Returns:
        accuracy, train_accuracy (of 10,000 training images), seconds of training alone, curve: [seconds, test accuracy]
        a few times per epoch, dense_phase, mean_density, live, weights: of the whole network, with its dense layers.
    """
    torch.set_num_threads(run.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(run.seed)
    how = TRAINED[run.network]
    model = how.make()
    weights = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))
    dense = run.method.startswith("dense")
    recipe = recipe or (how.dense if dense else how.sparse)
    per_epoch = len(data.train) // how.batch
    steps = max(20, round(run.share * per_epoch * recipe.epochs))
    method = None if dense else METHODS[run.method](run.sparsity, steps, run.seed)
    if method is not None:
        model = sparse.sparsify(model, method)
    optimizer = recipe.optimizer(list(model.parameters()), recipe.rate)
    sparsifier = None if method is None else sparse.Sparsifier(model, optimizer, method)
    order = torch.Generator().manual_seed(run.seed)
    bf16 = run.method == "dense_bf16"
    model.train()
    seconds, curve, last = 0.0, [], max(1, per_epoch // _LOOKS)
    places = torch.randperm(len(data.train), generator=order)
    for step in range(steps):
        at = step % per_epoch
        start = time.perf_counter()
        if at == 0 and step:
            places = torch.randperm(len(data.train), generator=order)
        chosen = places[at * how.batch : (at + 1) * how.batch]
        x, y = data.train[chosen], data.train_labels[chosen]
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, recipe)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y, label_smoothing=recipe.smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if sparsifier is not None:
            sparsifier.step()
        seconds += time.perf_counter() - start
        if run.looks and step >= _UNSEEN * steps and ((step + 1) % last == 0 or step + 1 == steps):
            curve.append([round(seconds, 3), _accuracy(model, data.test, data.test_labels)])
    if sparsifier is not None:
        sparsifier.finish()
    dead = sum(layer.topology.size - layer.topology.live for layer in sparse.sparse_layers(model).values())
    return {
        "accuracy": _accuracy(model, data.test, data.test_labels),
        "train_accuracy": _accuracy(model, data.train[:10_000], data.train_labels[:10_000]),
        "total_seconds": round(seconds, 3),
        "steps": steps,
        "curve": curve,
        "dense_phase": 1.0 if method is None else round(method.dense_share(steps), 4),
        "mean_density": 1.0 if method is None else round(method.mean_density(steps), 4),
        "live": weights - dead,
        "weights": weights,
    }


@final
class _Trainer:
    """A process that trains one network after the other, with the data read once."""

    def __init__(self, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "benchmarks.training_runs"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=ROOT
        )

    def __call__(self, run: Run) -> dict[str, Any]:
        """What `trained` says, or why not.

        Raises:
            DataError: it could not be trained.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(run)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise DataError(f"{run.key}: found a process that ended, expected a result")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise DataError(f"{run.key}: {found['error']}")
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def finished(
    runs: list[Run], kept: Rows, end: float, side_by_side: int
) -> tuple[list[tuple[Run, dict[str, Any]]], list[str], dict[str, str]]:
    """Results of the runs that are kept or can be started in time.

    Args:
        runs: in the order of their importance.
        kept: where finished ones are.
        end: monotonic time after which none is started.
        side_by_side: how many at a time.

    Returns:
        Results, keys of those that were not started, and why others failed.
    """
    late: list[str] = []
    failed: dict[str, str] = {}

    if not runs:
        return [], late, failed
    trainers = [_Trainer(runs[0].threads) for _ in range(side_by_side)]
    idle = queue.SimpleQueue[_Trainer]()
    for trainer in trainers:
        idle.put(trainer)

    def trained_by_one(run: Run) -> dict[str, Any]:
        trainer = idle.get()
        try:
            return trainer(run)
        finally:
            idle.put(trainer)

    def one(run: Run) -> dict[str, Any] | None:
        if time.monotonic() > end and not kept.has(run.key):
            late.append(run.key)
            return None
        try:
            found = kept.get(run.key, lambda: trained_by_one(run))
        except DataError as error:
            failed[run.key] = str(error)
            return None
        said = f"{run.network} {run.method} {run.sparsity:.0%} seed {run.seed}"
        print(f"{said}: {found['accuracy']:.2%} in {found['total_seconds']:.1f} s", flush=True)
        return found

    try:
        with ThreadPoolExecutor(side_by_side) as pool:
            results = list(pool.map(one, runs))
    finally:
        for trainer in trainers:
            trainer.close()
    return [(r, f) for r, f in zip(runs, results, strict=True) if f is not None], late, failed


@dataclass(frozen=True)
class _Dense:
    """The dense runs of a network; each share of the epochs is a schedule."""

    schedules: list[list[tuple[Run, dict[str, Any]]]]

    @property
    def best(self) -> list[tuple[Run, dict[str, Any]]]:
        """Of the schedule with the highest mean accuracy at the end."""
        return max(self.schedules, key=lambda runs: statistics.mean(f["accuracy"] for _, f in runs))

    def reaching(self, goal: float) -> tuple[list[tuple[Run, dict[str, Any]]], float] | None:
        """The schedule that reaches an accuracy first, and when: the median over seeds; None: none does."""
        times = [statistics.median(_or_never(reached(f, goal)) for _, f in runs) for runs in self.schedules]
        first = min(range(len(times)), key=times.__getitem__)
        return None if math.isinf(times[first]) else (self.schedules[first], times[first])


def _dense(results: list[tuple[Run, dict[str, Any]]], like: Run) -> _Dense | None:
    schedules: dict[float, list[tuple[Run, dict[str, Any]]]] = {}
    for run, found in results:
        if run.method == "dense" and (run.network, run.looks) == (like.network, like.looks):
            schedules.setdefault(run.share, []).append((run, found))
    return _Dense(list(schedules.values())) if schedules else None


def with_dense(results: list[tuple[Run, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of the issue: each sparse run beside the dense ones of its network.

    ``dense_accuracy`` is that of the dense schedule that ends best: of the same seed where there is one, else the mean.
    Where accuracies were followed, ``seconds`` and ``dense_seconds`` are times at which each first reached ``goal``,
    that schedule's mean accuracy less 0.3 points (null: never); the dense time is that of the schedule that gets there
    first, the median over its seeds, of ``dense_steps`` in all. Else they are times of whole runs.
    """
    rows = []
    bf16 = [f for r, f in results if r.method == "dense_bf16"]
    for run, found in results:
        dense = None if run.method.startswith("dense") else _dense(results, run)
        if dense is None:
            continue
        best = [f for _, f in dense.best]
        own = next((f for r, f in dense.best if r.seed == run.seed), None)
        row = {
            "network": run.network,
            "method": run.method,
            "sparsity": run.sparsity,
            "seed": run.seed,
            "accuracy": found["accuracy"],
            "train_accuracy": found["train_accuracy"],
            "seconds": found["total_seconds"],
            "total_seconds": found["total_seconds"],
            "steps": found["steps"],
            "dense_phase": found["dense_phase"],
            "mean_density": found["mean_density"],
            "live": found["live"],
            "weights": found["weights"],
            "threads": run.threads,
        }
        for key in ("accuracy", "train_accuracy"):
            row[f"dense_{key}"] = own[key] if own else statistics.mean(f[key] for f in best)
        total = round(statistics.median(f["total_seconds"] for f in best), 3)
        row["dense_total_seconds"] = row["dense_seconds"] = total
        row["dense_steps"] = best[0]["steps"]
        if run.looks:
            row |= _times(run, found, dense, bf16)
        rows.append(row)
    return rows


def _times(run: Run, found: dict[str, Any], dense: _Dense, bf16: list[dict[str, Any]]) -> dict[str, Any]:
    """When the goal was reached."""
    goal = statistics.mean(f["accuracy"] for _, f in dense.best) - _MARGIN
    first = dense.reaching(goal)
    step = statistics.median(_per_step(f) for _, f in dense.best)
    return {
        "goal": goal,
        "seconds": reached(found, goal),
        "dense_seconds": None if first is None else round(first[1], 3),
        "dense_steps": None if first is None else first[0][0][1]["steps"],
        "step_ratio": round(_per_step(found) / step, 3),
        "dense_bf16_seconds": next((reached(f, goal) for f in bf16), None),
        "dense_bf16_step_ratio": next((_per_step(f) / step for f in bf16), None),
    }


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _per_step(found: dict[str, Any]) -> float:
    return float(found["total_seconds"]) / int(found["steps"])


def reached(found: dict[str, Any], goal: float) -> float | None:
    """Seconds of training after which a look first found that accuracy; None: never."""
    return next((seconds for seconds, accuracy in found["curve"] if accuracy >= goal), None)


def main() -> None:
    """Runs from standard input, a line each, a line of JSON back."""
    data: dict[str | None, Fashion] = {}
    for line in sys.stdin:
        run = Run(**json.loads(line))
        try:
            if run.data not in data:
                data[run.data] = load_fashion(run.data)
            answer = trained(run, data[run.data])
        except GossamerError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
