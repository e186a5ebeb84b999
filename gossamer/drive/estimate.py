"""What a run over a checkpoint will take, before a weight is read: each stage tried on made-up weights, then scaled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.recipe import Recipe
from gossamer.drive.source import Source, TreeSource
from gossamer.drive.stream import IN_FLIGHT, THREADS, methods_of
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Dense
from gossamer.errors import GossamerError
from gossamer.methods.base import Method
from gossamer.store.pieces import code_tensor

__all__ = ["Estimate", "StageEstimate", "estimate"]

_SAMPLE = 1 << 20
_ROUNDS = 2  # of observing; those that need more are rare
_COPIES = 2.5  # of a float32 tensor that are in memory while it is worked on, measured


@dataclass(frozen=True)
class StageEstimate:
    """One method, or the coding at the end.

    Args:
        name: of the method.
        tensors: it matches, by names and shapes of the checkpoint where earlier methods make no new weights.
        passes: over the checkpoint in which it works: its own rounds of observing, one for each of a later one, and
            one to apply.
        seconds: on two cores, from a sample of 2²⁰ normal numbers.
    """

    name: str
    tensors: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What to expect.

    Args:
        stages: in order.
        seconds: of all, reading from a fast disk included.
        memory_bytes: above what importing takes.
        file_bytes: of the output, for normally distributed weights.
    """

    stages: tuple[StageEstimate, ...]
    seconds: float
    memory_bytes: int
    file_bytes: int


def estimate(source: Source, recipe: Recipe, bind: Callable[[Method], Method]) -> Estimate:
    """Check a recipe against a checkpoint and say what it will take.

    Raises:
        PlanError: an entry that cannot be streamed.
        CompositionError: a method that will match nothing.
    """
    listed = source.specs()
    methods = methods_of(recipe, listed, bind)
    matched = [
        [s for s in listed if method.find(s, skeleton_of(source.outlined(s.name))).paths] or list(listed)
        for method in methods
    ]
    largest = max((s for s in matched[0]) if methods else listed, key=lambda s: s.elements)
    spec = replace(largest, shape=_sample_shape(largest), output_first=(), gates=1)
    numbers = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).mul(0.02)
    tree: Encoding = Dense(numbers.to(spec.dtype) if spec.dtype.is_floating_point else numbers)
    observed, applied = [], []
    for method in methods:
        on = TreeSource((spec,), {spec.name: tree})
        try:
            begin = time.perf_counter()
            planned = plan_method(method, on)
            middle = time.perf_counter()
            tree = apply_plan(planned, on)[spec.name]
            applied.append(time.perf_counter() - middle)
            observed.append(middle - begin)
        except GossamerError:  # not on this sample: counted as free
            observed.append(0.0)
            applied.append(0.0)
    begin = time.perf_counter()
    coded = sum(len(p.data) for p in code_tensor(spec.name, tree, {}).parts)
    coding = time.perf_counter() - begin
    total = sum(s.elements for s in listed)
    scale = total / max(1, spec.elements) / THREADS
    stages = []
    for i, method in enumerate(methods):
        later = sum(_ROUNDS for m in methods[i + 1 :] if m.observes)
        mine = _ROUNDS if method.observes else 0
        seconds = (observed[i] + applied[i] * (1 + later)) * scale
        stages.append(StageEstimate(type(method).__name__, len(matched[i]), mine + later + 1, seconds))
    stages.append(StageEstimate("coding", len(listed), 1, coding * scale))
    dense = sum(s.nbytes for s in listed)
    most = 4 * max((s.elements for s in listed), default=0)
    memory = int(_COPIES * max(most, min(IN_FLIGHT, 4 * total)))
    size = int(coded / max(1, spec.elements) * total) + (1 << 12)
    return Estimate(tuple(stages), sum(s.seconds for s in stages), memory, min(size, dense + (1 << 20)))


def _sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The tensor's shape with fewer rows, so that it has about 2²⁰ elements."""
    row = max(1, prod(spec.shape[1:]))
    return (max(1, min(spec.shape[0], _SAMPLE // row)), *spec.shape[1:]) if spec.shape else ()
