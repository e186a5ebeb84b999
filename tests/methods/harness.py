"""Run one method on bare tensors, without a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.drive import TreeSource
from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.encoding import Dense, Encoding, Kind, TensorSpec
from gossamer.methods.base import Evidence, Method


def source_of(weights: Mapping[str, Tensor | Encoding]) -> TreeSource:
    trees = {n: w if isinstance(w, Encoding) else Dense(w) for n, w in weights.items()}
    specs = [TensorSpec(n, t.dense_shape(), t.to_dense().dtype, Kind.LINEAR) for n, t in trees.items()]
    return TreeSource(specs, trees)


def planned_on(
    method: Method, weights: Mapping[str, Tensor | Encoding], evidence: Mapping[str, Evidence] | None = None
) -> Planned:
    return plan_method(method, source_of(weights), evidence)


def result_on(
    method: Method, weights: Mapping[str, Tensor | Encoding], evidence: Mapping[str, Evidence] | None = None
) -> dict[str, Encoding]:
    source = source_of(weights)
    return apply_plan(plan_method(method, source, evidence), source)


def one(method: Method, weight: Tensor | Encoding, evidence: Evidence | None = None) -> Encoding:
    return result_on(method, {"w": weight}, None if evidence is None else {"w": evidence})["w"]


def seen(inputs: Tensor) -> Evidence:
    """Statistics of a layer's inputs [rows, in]."""
    x = inputs.float()
    return {"count": torch.tensor([float(len(x))]), "sum": x.sum(0), "sq": x.square().sum(0), "gram": x.T @ x}
