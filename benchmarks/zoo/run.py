"""One row of the families benchmark: compress, write, read back, measure; and what a row's figures depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo.subject import Subject
from gossamer.api import Compressed, compress, load
from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import Recipe
from gossamer.drive.tune import Tune
from gossamer.measure.latency import interleaved
from gossamer.measure.ledger import ledger_of
from gossamer.methods.code import Delta
from gossamer.runtime.operators import factorized, operator_of

__all__ = [
    "DENSE_CODE",
    "LATENCY_CODE",
    "ROW_CODE",
    "RecipeFor",
    "epochs",
    "latency",
    "macs",
    "measure_row",
    "methods_code",
    "once",
    "recipe_for",
    "stamp",
]

_COMMON = ("benchmarks/zoo/place.py", "benchmarks/zoo/subject.py", "gossamer/measure/accuracy.py")
DENSE_CODE = (*_COMMON, "gossamer/drive/tune.py")
ROW_CODE = (
    *(f"gossamer/{part}/**/*.py" for part in ("coding", "drive", "encoding", "network", "store")),
    *("gossamer/methods/*.py", "gossamer/measure/ledger.py", "gossamer/api.py", "benchmarks/zoo/run.py", *_COMMON),
)
LATENCY_CODE = ("gossamer/runtime/**/*.py", "gossamer/measure/latency.py")

RecipeFor = Recipe | Callable[[nn.Module], Recipe]


def recipe_for(recipe: RecipeFor, factory: Callable[[], nn.Module]) -> Recipe:
    """A row's recipe; where it is a function, what that gives for the network as its factory makes it."""
    return recipe(factory()) if callable(recipe) else recipe


def stamp(*settings: object) -> str:
    """Hash of settings: a row is kept as long as neither the code nor its own recipe changes."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:10]


def methods_code(recipe: Recipe) -> tuple[str, ...]:
    """The folders of the methods in a recipe, those inside of stages included."""
    folders = set()
    for part in _parts(list(recipe)):
        module = type(part).__module__.split(".")
        if module[:2] == ["gossamer", "methods"] and len(module) > 3:
            folders.add(f"gossamer/methods/{module[2]}/**/*.py")
    return tuple(sorted(folders))


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


def epochs(recipe: Recipe) -> int:
    """Passes over the training data."""
    return sum(part.epochs for part in _parts(list(recipe)) if isinstance(part, Tune))


def once(recipe: Recipe) -> Recipe:
    """The same with every training run cut to one pass."""
    return [_once(entry) for entry in recipe]


def _once(entry: Any) -> Any:
    if isinstance(entry, Tune):
        return replace(entry, epochs=1)
    if isinstance(entry, Gradual):
        return replace(entry, tune=replace(entry.tune, epochs=1))
    return entry


def measure_row(
    subject: Subject, dense: nn.Module, recipe: Recipe, path: Path, *, delta: bool = False
) -> dict[str, Any]:
    """Run a recipe, leave the file at ``path``, and measure what is read back from it.

    Args:
        subject: the network.
        dense: with its dense weights.
        recipe: how.
        path: of the file.
        delta: store the result as its difference to the dense network.
    """
    if delta:
        recipe = [*recipe, Delta(reference=dense.state_dict())]
    start = time.perf_counter()
    torch.manual_seed(0)
    small = compress(dense, recipe, data=subject.batches(100), loss=subject.loss)
    small.save(path)
    seconds = time.perf_counter() - start
    del small
    again = load(path, into=subject.factory, reference=dense.state_dict())
    value = subject.measure(again.dense())
    ledger = ledger_of(path, zstd=False)
    return {
        "file_bytes": ledger.file_bytes,
        "dense_bytes": ledger.dense_bytes,
        "value": value,
        "macs": macs(_in_factors(again), subject.inputs(1)),
        "dense_macs": macs(dense, subject.inputs(1)),
        "seconds": seconds,
    }


def macs(network: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-adds of one forward pass, zeros included."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(inputs)
    flops: int = counter.get_total_flops()
    return flops // 2


def _in_factors(small: Compressed) -> nn.Module:
    """The network with factorized layers as their small operators."""
    network = small.dense()
    for spec in small.specs:
        owner, _, kind = spec.name.rpartition(".")
        if kind == "weight" and owner and factorized(small.trees[spec.name]):
            made = operator_of(small.trees[spec.name], network.get_submodule(owner))
            if made is not None:
                network.set_submodule(owner, made)
    return network.eval()


def latency(subject: Subject, dense: nn.Module, path: Path, *, seconds: float) -> dict[str, float]:
    """Milliseconds of the dense network and of the reloaded, lowered one, timed in turn, at batch 1 and 64."""
    again = load(path, into=subject.factory, reference=dense.state_dict())
    found = {}
    for batch, suffix in ((1, ""), (64, "_64")):
        inputs = subject.inputs(batch)
        lowered = again.lower(inputs)
        times = interleaved({"dense": _call(dense, inputs), "lowered": _call(lowered, inputs)}, seconds=seconds)
        found[f"latency_ms{suffix}"] = times["lowered"].median_ms
        found[f"dense_latency_ms{suffix}"] = times["dense"].median_ms
    return found


def _call(network: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    return lambda: network(inputs)
