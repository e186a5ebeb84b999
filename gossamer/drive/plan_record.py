"""Plans in journals: a run that is taken up again does what was decided before."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from gossamer.encoding.serial import flatten, unflatten
from gossamer.methods.base import Plan, Step
from gossamer.store.dtypes import dtype_name, from_bytes, named_dtype, to_bytes

__all__ = ["plan_from_record", "plan_to_record"]

Json = Any


def plan_to_record(plan: Plan) -> Json:
    """A plan as JSON, shared encodings included."""
    flat = flatten(plan.shared)
    leaves = [
        [
            dtype_name(leaf.tensor.dtype),
            list(leaf.tensor.shape),
            base64.b64encode(to_bytes(leaf.tensor).tobytes()).decode(),
        ]
        for leaf in flat.leaves
    ]
    shared = {"kinds": flat.kinds, "nodes": flat.nodes, "roots": flat.roots, "leaves": leaves}
    steps = [[list(s.targets), dict(s.entry)] for s in plan.steps]
    return {"steps": steps, "skipped": dict(plan.skipped), "shared": shared}


def plan_from_record(found: Json) -> Plan:
    """Inverse of `plan_to_record`."""
    shared = found["shared"]
    leaves = []
    for dtype, shape, text in shared["leaves"]:
        raw = np.frombuffer(base64.b64decode(text), np.uint8)
        leaves.append(from_bytes(raw, named_dtype(dtype), tuple(shape)))
    trees = unflatten(shared["kinds"], shared["nodes"], shared["roots"], leaves)
    return Plan(tuple(Step(tuple(t), entry) for t, entry in found["steps"]), trees, found["skipped"])
