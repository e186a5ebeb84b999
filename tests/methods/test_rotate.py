"""Rotation: the matrix is orthogonal and mixes in equal parts; quantizing in its frame is quantizing w·Rᵀ."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from contract.test_every_encoding import same_bits
from methods.harness import one
from methods.test_gptq import error, problem, solved
from torch import nn

import gossamer as gs
from gossamer.encoding import Dense, Rotated
from gossamer.encoding.rotated import block_of
from gossamer.errors import CompositionError, FormatError
from gossamer.methods.quantize import GPTQ, Rotate, RoundToNearest


@pytest.mark.parametrize(("columns", "block"), [(1, 1), (6, 2), (576, 64), (1536, 512), (8192, 4096), (7, 1)])
def test_blocks_are_the_largest_powers_of_two_that_divide(columns: int, block: int) -> None:
    assert block_of(columns) == block


@pytest.mark.parametrize("columns", [2, 12, 64, 96])
def test_the_rotation_is_orthogonal_and_every_entry_of_a_block_is_equally_large(columns: int) -> None:
    block = block_of(columns)
    r = Rotated(Dense(torch.eye(columns)), block, 77).to_dense()
    torch.testing.assert_close(r @ r.T, torch.eye(columns), atol=1e-5, rtol=0)
    assert bool(((r.abs() - 1 / math.sqrt(block)).abs().minimum(r.abs()) < 1e-6).all())
    assert bool(((r != 0).sum(1) == block).all())
    other = Rotated(Dense(torch.eye(columns)), block, 78).to_dense()
    assert not torch.equal(r, other) or columns == 2


def test_turning_there_and_back_changes_nothing_and_evidence_turns_with_it() -> None:
    w, gram = problem(0, 5, 24)
    tree = Rotated(Dense(w), 8, 3)
    torch.testing.assert_close(tree.turned(tree.turned_back(w)), w)
    below = tree.hand_down("inner", {"gram": gram, "sum": torch.ones(24), "grad": w, "count": torch.ones(1)})
    r = Rotated(Dense(torch.eye(24)), 8, 3).to_dense()
    torch.testing.assert_close(below["gram"], r @ gram @ r.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(below["sum"], r @ torch.ones(24), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(below["grad"], w @ r.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [0, 3, 16, 8192])
def test_blocks_that_do_not_fit_are_refused(block: int) -> None:
    with pytest.raises(FormatError, match="power of two"):
        Rotated(Dense(torch.zeros(2, 24)), block, 0)


def test_outliers_in_columns_and_single_weights_cost_less_in_the_turned_frame() -> None:
    w, gram = problem(1, 48, 128)
    w = w.clone()
    w[:, 5] *= 30
    w[3, 9] = 60.0
    plain = RoundToNearest(bits=4, group=64, symmetric=False)
    turned = Rotate(inner=plain)
    lost = [float((one(method, w).to_dense() - w).square().sum()) for method in (turned, plain)]
    assert lost[0] < 0.4 * lost[1]
    inner = GPTQ(bits=4, group=64)
    mine = error(w, solved(Rotate(inner=inner), w, gram).to_dense(), gram).sum()
    assert float(mine) < float(error(w, solved(inner, w, gram).to_dense(), gram).sum())


@torch.no_grad()
def test_a_rotated_network_saves_loads_and_lowers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(64, 24)
    data = [(x, torch.zeros(64, dtype=torch.int64))]
    compressed = gs.compress(model, [Rotate(inner=GPTQ(bits=4, group=8))], data=data)
    expected = compressed.dense()(x)
    assert {type(t) for n, t in compressed.trees.items() if n.endswith("weight")} == {Rotated}
    assert 0 < float((expected - model(x)).square().mean() / model(x).square().mean()) < 0.02
    compressed.save(tmp_path / "net.gsm")
    loaded = gs.load(tmp_path / "net.gsm", into=model)
    assert same_bits(loaded.dense()(x), expected)
    torch.testing.assert_close(loaded.lower(x)(x), expected, rtol=1e-3, atol=1e-3)


def test_an_odd_number_of_inputs_is_left_alone_with_the_reason() -> None:
    with pytest.raises(CompositionError, match="even number"):
        one(Rotate(inner=RoundToNearest(bits=4)), torch.randn(4, 7))
