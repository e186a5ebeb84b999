"""Methods that count a weight by its inputs: better on them than without, and never worse, against plain references."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on, seen
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive import run
from gossamer.encoding import Dense, LowRank, Masked, Sum, TensorSpec, Tucker
from gossamer.encoding.spec import Kind
from gossamer.errors import DataError
from gossamer.methods.base import Method, Site
from gossamer.methods.factorize import LowRankPlusSparse, Monarch, Tucker2
from gossamer.methods.share import Denil, ProductQuantization, Tie
from gossamer.methods.share.seen_vectors import refined, seen_error


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, size: int, seed: int = 0) -> Tensor:
    return matrix(rows, size, seed=seed + 100) @ matrix(size, size, seed=seed + 200) * torch.linspace(2, 0.05, size)


def lost(made: Tensor, w: Tensor, x: Tensor) -> float:
    """On the outputs."""
    return float(torch.linalg.norm((made - w).flatten(1).double() @ x.double().T))


PAIRS: dict[str, tuple[Method, Method]] = {
    "low rank + sparse, scaled": (
        LowRankPlusSparse(rank=2, density=0.1, inputs="scaled"),
        LowRankPlusSparse(rank=2, density=0.1),
    ),
    "low rank + sparse, gram": (
        LowRankPlusSparse(rank=2, density=0.1, inputs="gram"),
        LowRankPlusSparse(rank=2, density=0.1),
    ),
    "monarch": (Monarch(blocks=4, inputs="gram"), Monarch(blocks=4)),
    "product": (ProductQuantization(dim=4, bits=3, inputs="gram"), ProductQuantization(dim=4, bits=3)),
    "denil": (
        Denil(stored=0.5, kernel="covariance", groups=1),
        Denil(stored=0.5, kernel="weights", groups=1),
    ),
}


@pytest.mark.parametrize(("counted", "plain"), PAIRS.values(), ids=PAIRS.keys())
def test_outputs_are_nearer_when_inputs_count(counted: Method, plain: Method) -> None:
    assert counted.needs & {"gram", "sq"}
    assert not plain.needs
    better = 0
    for seed in range(4):
        w, x = matrix(24, 16, seed=seed), inputs(200, 16, seed)
        errors = [lost(one(m, w, seen(x)).to_dense(), w, x) for m in (counted, plain)]
        better += errors[0] < 0.98 * errors[1]
    assert better >= 3


@given(st.integers(0, 500), st.sampled_from(["scaled", "gram"]))
def test_low_rank_plus_sparse_is_never_worse_on_its_own_inputs_than_without_them(seed: int, how: str) -> None:
    w, x = matrix(9, 8, seed=seed), inputs(30, 8, seed)
    if how == "scaled":  # it takes inputs as independent
        x = torch.diag(x.square().sum(0).sqrt())
    found = one(LowRankPlusSparse(rank=1, density=0.1, rounds=3, inputs=how, damping=1e-9), w, seen(x))  # type: ignore[arg-type]
    plain = one(LowRankPlusSparse(rank=1, density=0.1, rounds=3), w)
    assert lost(found.to_dense(), w, x) <= lost(plain.to_dense(), w, x) * (1 + 1e-5)
    assert isinstance(found, Sum)
    sparse = found.terms[1]
    assert isinstance(sparse, Masked)
    assert sparse.where.positions().numel() == 7


@given(st.integers(0, 500))
def test_a_monarch_matrix_is_never_worse_on_the_inputs_than_the_nearest_in_frobenius_norm(seed: int) -> None:
    w, x = matrix(12, 12, seed=seed), inputs(50, 12, seed)
    found, plain = (one(Monarch(blocks=3, inputs=i, damping=1e-9), w, seen(x)) for i in ("gram", "equal"))  # type: ignore[arg-type]
    assert lost(found.to_dense(), w, x) <= lost(plain.to_dense(), w, x) * (1 + 1e-5)


def convolved(w: Tensor, x: Tensor, made: Tensor) -> float:
    return float(torch.linalg.norm(F.conv2d(x, made - w, padding=1).double()))


@given(st.integers(0, 200))
def test_tucker_is_never_worse_on_the_inputs_and_at_full_ranks_exact(seed: int) -> None:
    w, noise = matrix(8, 6, 3, 3, seed=seed), matrix(4, 6, 6, 6, seed=seed + 1)
    x = torch.einsum("ij,njhw->nihw", matrix(6, 6, seed=seed + 2) * torch.linspace(2, 0.1, 6), noise)
    unfolded = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    site = Site(TensorSpec("w", (8, 6, 3, 3), torch.float32, Kind.CONV), "", (8, 6, 3, 3))

    def made(ranks: tuple[int, int], how: Literal["gram", "equal"]) -> Tensor:
        method = Tucker2(ranks=ranks, inputs=how, damping=1e-9)
        tree = method.apply([site], {"w": Dense(w)}, {"ranks": ranks}, {}, {"w": seen(unfolded)})["w"]
        assert isinstance(tree, Tucker)
        return tree.to_dense()

    assert convolved(w, x, made((4, 3), "gram")) <= convolved(w, x, made((4, 3), "equal")) * (1 + 1e-5)
    torch.testing.assert_close(made((8, 6), "gram"), w, rtol=1e-4, atol=1e-4)


def test_tucker_ranks_follow_the_channels_that_inputs_use() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 16, 3, padding=1), torch.randn(4, 8, 6, 6)
    x[:, 2:] *= 1e-3
    seen_ranks, plain_ranks = (
        run(conv, [Tucker2(energy=0.7, inputs=i)], data=[x]).trees["weight"].core.dense_shape()  # type: ignore[arg-type,attr-defined]
        for i in ("gram", "equal")
    )
    assert seen_ranks[1] <= 2
    assert plain_ranks[1] > 2


@given(st.integers(0, 500), st.integers(1, 4), st.integers(1, 3))
def test_vectors_that_inputs_see_are_never_further_than_those_of_plain_k_means(seed: int, places: int, k: int) -> None:
    random = np.random.default_rng(seed)
    vectors, roots = random.normal(size=(6, places, 2)), np.tril(random.normal(size=(places, 2, 2)))
    roots[:, [0, 1], [0, 1]] = np.abs(roots[:, [0, 1], [0, 1]]) + 0.1
    centroids = vectors.reshape(-1, 2)[:k].copy()
    index = np.square(vectors[:, :, None] - centroids).sum(3).argmin(2)
    before = seen_error(vectors, centroids[index], roots)
    found, chosen = refined(vectors, centroids, index, roots, 20)
    after = seen_error(vectors, found[chosen], roots)
    assert after <= before
    # by the textbook: no vector is nearer to another centroid, no centroid has a better place
    seen_by = np.einsum("rpkd,pde->rpke", vectors[:, :, None] - found, roots)
    distances = np.square(seen_by).sum(3)
    assert after <= distances.min(2).sum() * (1 + 1e-9) or after < before
    for c in range(len(found)):
        moved = found.copy()
        moved[c] += 1e-3
        assert seen_error(vectors, moved[chosen], roots) >= after - 1e-2 * before


def test_a_centroid_is_the_weighted_least_squares_answer_to_its_vectors() -> None:
    random = np.random.default_rng(0)
    vectors, roots = random.normal(size=(5, 3, 2)), np.tril(random.normal(size=(3, 2, 2))) + np.eye(2)
    found, _ = refined(vectors, np.zeros((1, 2)), np.zeros((5, 3), dtype=np.int64), roots, 1)
    rows = np.concatenate([roots[j].T for _ in range(5) for j in range(3)])
    targets = np.concatenate([roots[j].T @ vectors[r, j] for r in range(5) for j in range(3)])
    np.testing.assert_allclose(found[0], np.linalg.lstsq(rows, targets, rcond=None)[0])


@pytest.mark.parametrize("rank", [0, 2])
def test_ties_are_the_best_on_the_inputs_of_both_layers(rank: int) -> None:
    a, b = matrix(9, 7), matrix(9, 7, seed=1)
    x, y = inputs(60, 7), inputs(60, 7, 5)
    evidence = {"a": seen(x), "b": seen(y)}
    result = result_on(Tie(pairs=(("a", "b"),), rank=rank, inputs="gram", damping=1e-9), {"a": a, "b": b}, evidence)
    if rank == 0:
        assert result["a"] is result["b"]
        stacked, targets = torch.cat([x, y]).double(), torch.cat([x @ a.T, y @ b.T]).double()
        best = torch.linalg.lstsq(stacked, targets).solution.T
        torch.testing.assert_close(result["a"].to_dense().double(), best, atol=1e-3, rtol=1e-3)
        return
    assert torch.equal(result["a"].to_dense(), a)
    values = torch.linalg.svdvals(y.double() @ (b - a).double().T)
    assert lost(result["b"].to_dense(), b, y) == pytest.approx(float(values[rank:].square().sum().sqrt()), rel=1e-3)
    tied = result["b"]
    assert isinstance(tied, Sum)
    assert isinstance(tied.terms[1], LowRank)


def test_equal_layers_stay_bit_for_bit_whatever_their_inputs() -> None:
    a = matrix(6, 6)
    evidence = {"a": seen(inputs(20, 6)), "b": seen(inputs(20, 6, 3))}
    result = result_on(Tie(pairs=(("a", "b"),), inputs="gram"), {"a": a, "b": a.clone()}, evidence)
    assert torch.equal(result["b"].to_dense(), a)


@pytest.mark.parametrize(
    "method",
    [
        LowRankPlusSparse(rank=2, density=0.1, inputs="gram"),
        LowRankPlusSparse(rank=2, density=0.1, inputs="scaled"),
        Monarch(blocks=4, inputs="gram"),
        ProductQuantization(dim=4, bits=3, inputs="gram"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_layer_that_no_data_reach_stays_and_the_plan_says_so(method: Method) -> None:
    weights = {"a": matrix(24, 16), "b": matrix(24, 16, seed=1)}
    planned = planned_on(method, weights, {"a": seen(inputs(30, 16))})
    assert [s.targets for s in planned.plan.steps] == [("a",)]
    assert planned.skipped["b"] == "found no inputs of it in the data"


def test_a_tie_whose_layer_no_data_reach_is_refused_by_name() -> None:
    weights = {"a": matrix(24, 16), "b": matrix(24, 16, seed=1)}
    with pytest.raises(DataError, match="b: found no statistics of its inputs"):
        result_on(Tie(pairs=(("a", "b"),), inputs="gram"), weights, {"a": seen(inputs(30, 16))})


@pytest.mark.parametrize("method", [m for m, _ in PAIRS.values()], ids=PAIRS.keys())
def test_inputs_of_which_nothing_is_known_but_zeros_do_no_harm(method: Method) -> None:
    w = matrix(24, 16)
    made = one(method, w, seen(torch.zeros(3, 16))).to_dense()
    assert bool(made.isfinite().all())
