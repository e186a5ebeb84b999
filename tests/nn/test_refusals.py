"""What cannot see live weights refuses layers that hold nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import CompositionError, PlanError


def sparse() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    trained: nn.Module = gs.train.sparsify(model, gs.train.Static(sparsity=0.5))  # type: ignore[attr-defined]
    return trained


def test_lower_and_compress_say_what_to_do_with_sparse_layers() -> None:
    model = sparse()
    with pytest.raises(CompositionError, match=r"lower: found 0, a SparseLinear .*harvest"):
        gs.lower(model, torch.randn(2, 20))  # type: ignore[operator]
    with pytest.raises(CompositionError, match=r"compress: found 0, a SparseLinear .*harvest"):
        gs.compress(model, [gs.share.KMeans(bits=4)])
    harvested = gs.train.harvest(model)  # type: ignore[attr-defined]
    x = torch.randn(2, 20)
    torch.testing.assert_close(harvested.lower(x)(x), model(x), rtol=1e-5, atol=1e-5)


def test_methods_of_the_other_kind_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(20, 30))
    dense = gs.train.from_dense  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"sparsify: found SoftThreshold"):
        gs.train.sparsify(model, dense.SoftThreshold())  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"prepare: found RigL"):
        dense.prepare(model, gs.train.RigL(sparsity=0.5, steps=1000))  # type: ignore[attr-defined]


def test_a_structure_is_not_taken_for_a_method() -> None:
    with pytest.raises(PlanError, match=r"Feedback: prune: found NofM, expected a method"):
        gs.train.from_dense.Feedback(prune=gs.prune.NofM(2, 4))  # type: ignore[attr-defined]
