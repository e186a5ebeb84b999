"""Hashing against an explicit loop over the weights."""

from __future__ import annotations

import pytest
import torch
from encoding.test_random import splitmix
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on

from gossamer.encoding import Dense, Hashed
from gossamer.encoding.random import key_of
from gossamer.methods.share import Hashing


def by_hand(w: list[float], entries: int, key: int) -> list[float]:
    """Each weight finds its entry and sign; entries are means of sign · w; each weight is read back."""
    words = splitmix(key, len(w))
    entry = [(word >> 32) * entries >> 32 for word in words]
    sign = [-1 if word & 1 else 1 for word in words]
    table = []
    for e in range(entries):
        mine = [s * x for x, s, at in zip(w, sign, entry, strict=True) if at == e]
        table.append(sum(mine) / len(mine) if mine else 0.0)
    return [s * table[at] for s, at in zip(sign, entry, strict=True)]


@settings(max_examples=30)
@given(st.integers(0, 9), st.integers(1, 40), st.floats(0.01, 1.0))
def test_weights_are_those_of_a_loop_over_them(seed: int, count: int, stored: float) -> None:
    w = torch.randn(1, count, generator=torch.Generator().manual_seed(seed))
    tree = one(Hashing(stored=stored, seed=seed), w)
    expected = by_hand(w.flatten().tolist(), max(1, round(stored * count)), key_of(seed, "w"))
    torch.testing.assert_close(tree.to_dense().flatten(), torch.tensor(expected))


def test_no_table_fits_better() -> None:
    torch.manual_seed(0)
    w = torch.randn(20, 30)
    tree = one(Hashing(stored=0.1), w)
    assert isinstance(tree, Hashed)
    table = tree.table.to_dense().clone().requires_grad_()
    (Hashed(Dense(table), tree.weight_shape, tree.key).to_dense() - w).square().sum().backward()
    assert table.grad is not None
    assert float(table.grad.abs().max()) < 1e-4


def test_entries_and_signs_are_used_evenly_and_independently() -> None:
    ones = Hashed(Dense(torch.arange(1.0, 65.0)), (400, 400), key_of(0, "w")).to_dense().flatten()
    counts = torch.stack([torch.bincount(ones[ones * s > 0].abs().long() - 1, minlength=64) for s in (1, -1)])
    expected = 160_000 / 128
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 127 + 5 * (2 * 127) ** 0.5  # mean and five deviations of 127 degrees of freedom


def test_tensors_and_seeds_have_hashes_of_their_own() -> None:
    w = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    result = result_on(Hashing(stored=0.5), {"a": w, "b": w.clone()})
    again = result_on(Hashing(stored=0.5, seed=1), {"a": w})
    found = [result["a"].to_dense(), result["b"].to_dense(), again["a"].to_dense()]
    assert not any(torch.equal(x, y) for i, x in enumerate(found) for y in found[:i])


def test_a_constant_keeps_its_size_and_one_weight_itself() -> None:
    assert one(Hashing(stored=1e-9), torch.tensor([[3.0]])).to_dense().tolist() == [[3.0]]
    zeros = one(Hashing(stored=0.5), torch.zeros(3, 3)).to_dense()
    assert not bool(zeros.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_table_has_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    tree = one(Hashing(stored=0.5), torch.randn(4, 4).to(dtype))
    assert isinstance(tree, Hashed)
    assert tree.table.to_dense().dtype == dtype
    assert tree.size_bits() == 8 * 16


def test_a_tensor_without_weights_is_refused() -> None:
    planned = planned_on(Hashing(stored=0.5), {"empty": torch.zeros(0, 4), "w": torch.ones(2, 2)})
    assert "expected at least one weight" in planned.skipped["empty"]
