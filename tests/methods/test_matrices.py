"""Tensor trains, Monarch matrices and low rank + sparse against bounds and brute force."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one, planned_on
from torch import Tensor

from gossamer.encoding import LowRank, Masked, Sum
from gossamer.encoding import Monarch as Blocks
from gossamer.encoding import TensorTrain as Train
from gossamer.methods.factorize import LowRankPlusSparse, Monarch, TensorTrain
from gossamer.methods.factorize.tensor_train import even_factors


def matrix(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random) * torch.linspace(2, 0.1, shape[-1])


def tails(w: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]) -> float:
    """Σ over the bonds of what each unfolding loses: the bound of Oseledets' theorem 2.2."""
    d = len(rows)
    order = [axis for k in range(d) for axis in (k, k + d)]
    chain = w.double().reshape(*rows, *columns).permute(order)
    lost = 0.0
    for k, rank in enumerate(ranks, 1):
        unfolded = chain.reshape(prod(rows[:k]) * prod(columns[:k]), -1)
        lost += float(torch.linalg.svdvals(unfolded)[rank:].square().sum())
    return lost


@given(st.integers(1, 6), st.integers(0, 30))
@settings(deadline=None)
def test_the_error_of_a_train_is_within_the_bound(rank: int, seed: int) -> None:
    w = matrix(12, 30, seed=seed)
    rows, columns = (2, 3, 2), (5, 2, 3)
    tree = one(TensorTrain(rank=rank, rows=rows, columns=columns), w)
    assert isinstance(tree, Train)
    ranks = tuple(c.dense_shape()[3] for c in tree.cores[:-1])
    assert ranks == (min(rank, 10), min(rank, 6))
    error = float((tree.to_dense() - w).double().square().sum())
    bound = tails(w, rows, columns, ranks)
    assert error <= bound * (1 + 1e-4) + 1e-8
    assert error >= bound / 2 * (1 - 1e-4) - 1e-8  # at best the worse of the two bonds


def test_two_cores_at_rank_r_are_the_best_of_the_reordered_matrix() -> None:
    w = matrix(20, 24)
    tree = one(TensorTrain(rank=3, rows=(4, 5), columns=(6, 4)), w)
    error = float((tree.to_dense() - w).double().square().sum())
    assert error == pytest.approx(tails(w, (4, 5), (6, 4), (3,)), rel=1e-4)


@pytest.mark.parametrize("error", [0.2, 0.5, 0.8])
def test_ranks_for_an_error_keep_it(error: float) -> None:
    w = torch.kron(matrix(5, 8), matrix(6, 7, seed=1)) + 0.1 * matrix(30, 56, seed=2)
    planned = planned_on(TensorTrain(error=error), {"w": w})
    entry = planned.plan.steps[0].entry
    tree = one(TensorTrain(error=error), w)
    assert float((tree.to_dense() - w).norm()) <= error * float(w.norm()) * (1 + 1e-5)
    assert [c.dense_shape()[3] for c in tree.cores[:-1]] == entry["ranks"]  # type: ignore[attr-defined]


def test_a_weight_of_low_ranks_is_reproduced_and_they_are_found() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 3, 2), (2, 2, 4, 3), (3, 3, 5, 1))
    cores = [torch.randn(*s, generator=random) for s in shapes]
    w = torch.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(24, 60)
    tree = one(TensorTrain(error=1e-4, rows=(4, 2, 3), columns=(3, 4, 5)), w)
    torch.testing.assert_close(tree.to_dense(), w, rtol=1e-4, atol=1e-4)
    assert [c.dense_shape() for c in tree.cores] == [*shapes]  # type: ignore[attr-defined]


def test_a_train_has_cores_of_one_size_and_zeros_stay_zeros() -> None:
    tree = one(TensorTrain(rank=3), matrix(30, 56))
    sizes = torch.stack([leaf.tensor.square().mean().sqrt() for leaf in tree.leaves()])
    torch.testing.assert_close(sizes, sizes[:1].expand(3))
    assert not bool(one(TensorTrain(error=0.5), torch.zeros(30, 56)).to_dense().any())


def test_one_budget_serves_all_trains_and_is_kept() -> None:
    weights = {"a": matrix(30, 56), "b": matrix(64, 64, seed=1), "c": matrix(12, 20, seed=2)}
    before = 0
    for budget in (400, 1500, 6000):
        steps = planned_on(TensorTrain(budget_bytes=budget), weights).plan.steps
        spent = 0
        for step in steps:
            bonds = [1, *step.entry["ranks"], 1]
            sizes = zip(itertools.pairwise(bonds), step.entry["rows"], step.entry["columns"], strict=True)
            spent += sum(4 * a * m * n * b for (a, b), m, n in sizes)
        assert before < spent <= budget
        before = spent


@given(st.integers(1, 400), st.integers(1, 4))
def test_even_factors_have_the_smallest_sum(number: int, count: int) -> None:
    found = even_factors(number, count)
    assert len(found) == count
    assert prod(found) == number

    def splits(n: int, k: int) -> list[tuple[int, ...]]:
        if k == 1:
            return [(n,)]
        return [(f, *rest) for f in range(1, n + 1) if n % f == 0 for rest in splits(n // f, k - 1)]

    if number <= 60:
        assert sum(found) == min(sum(s) for s in splits(number, count))
    if count > 2:
        assert max(found[1:-1]) <= min(found[0], found[-1])


def test_shapes_that_rows_and_columns_do_not_fit_are_left_with_the_reason() -> None:
    method = TensorTrain(rank=2, rows=(4, 5), columns=(6, 4))
    planned = planned_on(method, {"fits": matrix(20, 24), "other": matrix(24, 20)})
    assert [s.targets for s in planned.plan.steps] == [("fits",)]
    assert planned.skipped["other"] == "found shape (24, 20), rows and columns multiply to (20, 24)"
    prime = planned_on(TensorTrain(rank=4), {"prime": matrix(31, 37), "fits": matrix(60, 64)})
    assert "31·1·1 rows and 37·1·1 columns would take" in prime.skipped["prime"]


def test_every_monarch_block_is_the_best_of_rank_one() -> None:
    w = matrix(12, 20)
    tree = one(Monarch(blocks=(3, 4)), w)
    assert isinstance(tree, Blocks)
    made = tree.to_dense()
    for i, j in itertools.product(range(3), range(4)):
        block, fit = (x[4 * i : 4 * i + 4, 5 * j : 5 * j + 5].double() for x in (w, made))
        assert int(torch.linalg.matrix_rank(fit, rtol=1e-5)) == 1
        best = torch.linalg.svdvals(block)[1:].square().sum().sqrt()  # Eckart and Young
        assert float((block - fit).norm()) == pytest.approx(float(best), rel=1e-5)
        # Direct search over angles: no rank-1 matrix of the block's own rows comes closer.
        random = torch.Generator().manual_seed(7)
        left = torch.randn(2000, 4, 1, generator=random, dtype=torch.float64)
        right = left.transpose(1, 2) @ block / left.square().sum(1, keepdim=True)
        assert float((block - left @ right).flatten(1).norm(dim=1).min()) >= float(best) * (1 - 1e-9)


def test_a_monarch_matrix_is_reproduced_and_its_factors_share_the_scale() -> None:
    random = torch.Generator().manual_seed(0)
    w = torch.einsum(
        "lsk,klb->lskb", torch.randn(4, 5, 3, generator=random), torch.randn(3, 4, 6, generator=random)
    ).reshape(20, 18)
    tree = one(Monarch(blocks=(4, 3)), w)
    assert isinstance(tree, Blocks)
    torch.testing.assert_close(tree.to_dense(), w, rtol=1e-4, atol=1e-4)
    left, right = tree.left.to_dense(), tree.right.to_dense()
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=2).T, rtol=1e-4, atol=1e-5)


def test_monarch_leaves_sizes_that_are_no_multiple() -> None:
    planned = planned_on(Monarch(blocks=4), {"fits": matrix(16, 20), "odd": matrix(18, 20), "tiny": matrix(4, 4)})
    assert [s.targets for s in planned.plan.steps] == [("fits",)]
    assert planned.skipped["odd"] == "found shape (18, 20), expected multiples of 4 rows and 4 columns"
    assert planned.skipped["tiny"] == "4 by 4 blocks would take 32 numbers, the weight itself has 16"


def test_low_rank_plus_sparse_recovers_what_was_made_so() -> None:
    random = torch.Generator().manual_seed(0)
    thin = torch.randn(40, 2, generator=random) @ torch.randn(2, 30, generator=random)
    spikes = torch.zeros(1200)
    spikes[torch.randperm(1200, generator=random)[:36]] = 8.0
    w = thin + spikes.view(40, 30)
    tree = one(LowRankPlusSparse(rank=2, density=0.03, rounds=30), w)
    torch.testing.assert_close(tree.to_dense(), w, rtol=1e-3, atol=1e-2)
    assert isinstance(tree, Sum)
    masked = tree.terms[1]
    assert isinstance(masked, Masked)
    assert torch.equal(masked.where.mask().view(-1), spikes != 0)


@pytest.mark.parametrize("shape", [(20, 30), (12, 4, 3, 3)])
def test_more_rounds_never_fit_worse_and_the_sparse_term_is_the_largest_rest(shape: tuple[int, ...]) -> None:
    w = matrix(*shape)
    errors = []
    for rounds in (1, 2, 4, 8):
        tree = one(LowRankPlusSparse(rank=2, density=0.1, rounds=rounds), w)
        assert isinstance(tree, Sum)
        errors.append(float((tree.to_dense() - w).norm()))
        low, sparse = tree.terms
        assert isinstance(low, LowRank)
        assert isinstance(sparse, Masked)
        rest = (w - low.to_dense()).abs().view(-1)
        live = sparse.where.mask().view(-1)
        assert int(live.sum()) == round(0.1 * w.numel())
        assert float(rest[live].min()) >= float(rest[~live].max()) - 1e-6
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))


def test_low_rank_plus_sparse_skips_what_would_grow() -> None:
    planned = planned_on(LowRankPlusSparse(rank=4, density=0.2), {"large": matrix(40, 40), "small": matrix(8, 8)})
    assert [s.targets for s in planned.plan.steps] == [("large",)]
    assert planned.skipped["small"] == ("rank 4 and 13 live weights would take 316 bytes, the weight itself has 256")
