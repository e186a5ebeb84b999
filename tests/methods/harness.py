"""Run one method on bare tensors, without a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossamer.drive import TreeSource
from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.encoding import Dense, Encoding, Kind, TensorSpec
from gossamer.methods.base import Method


def source_of(weights: Mapping[str, Tensor | Encoding]) -> TreeSource:
    trees = {n: w if isinstance(w, Encoding) else Dense(w) for n, w in weights.items()}
    specs = [TensorSpec(n, t.dense_shape(), t.to_dense().dtype, Kind.LINEAR) for n, t in trees.items()]
    return TreeSource(specs, trees)


def planned_on(method: Method, weights: Mapping[str, Tensor | Encoding]) -> Planned:
    return plan_method(method, source_of(weights))


def result_on(method: Method, weights: Mapping[str, Tensor | Encoding]) -> dict[str, Encoding]:
    source = source_of(weights)
    return apply_plan(plan_method(method, source), source)


def one(method: Method, weight: Tensor | Encoding) -> Encoding:
    return result_on(method, {"w": weight})["w"]
