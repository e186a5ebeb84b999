"""Product quantization against brute force, against k-means on a line, and against the textbook iteration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on

from gossamer.encoding import Kind, TensorSpec, VectorCodebook
from gossamer.methods.base import Site
from gossamer.methods.share import KMeans, ProductQuantization
from gossamer.methods.vector_means import _means as centre
from gossamer.methods.vector_means import cluster

Array = np.ndarray[Any, Any]


def error(vectors: Array, centroids: Array) -> float:
    return float(np.square(vectors[:, None] - centroids).sum(2).min(1).sum())


def optimal(vectors: Array, k: int) -> float:
    """Smallest error of any assignment to k clusters."""
    best = np.inf
    for labels in itertools.product(range(k), repeat=len(vectors)):
        split = [vectors[[i for i, x in enumerate(labels) if x == c]] for c in range(k)]
        best = min(best, sum(float(np.square(p - p.mean(0)).sum()) for p in split if len(p)))
    return best


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 7))
def test_never_better_than_brute_force_and_at_a_fixed_point(seed: int, k: int, n: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 2))
    centroids, index = cluster(vectors, k, 100, seed)
    found = error(vectors, centroids)
    assert found >= optimal(vectors, min(k, n)) - 1e-9
    np.testing.assert_array_equal(np.square(vectors[:, None] - centroids).sum(2).argmin(1), index)
    for i in range(len(centroids)):
        np.testing.assert_allclose(vectors[index == i].mean(0), centroids[i], atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_clear_clusters_are_found_as_brute_force_finds_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = np.array([[0.0, 0.0], [9.0, 9.0], [-9.0, 9.0]])[[0, 0, 1, 1, 2, 2, 2]] + random.normal(size=(7, 2)) / 9
    centroids, _ = cluster(vectors, 3, 50, seed)
    assert error(vectors, centroids) == pytest.approx(optimal(vectors, 3))


def test_vectors_of_one_weight_are_nearly_as_good_as_k_means_on_a_line() -> None:
    w = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    pq = one(ProductQuantization(dim=1, bits=4), w).to_dense()
    line = one(KMeans(bits=4), w).to_dense()
    assert float((pq - w).square().sum()) <= 1.15 * float((line - w).square().sum())


def test_correlated_weights_cost_less_as_vectors_than_alone() -> None:
    base = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    w = base.repeat_interleave(4, dim=1)  # runs of four equal weights
    runs = one(ProductQuantization(dim=4, bits=8), w)
    alone = one(KMeans(bits=2), w)
    assert runs.size_bits() < 1.2 * alone.size_bits() + 32 * 1024
    assert float((runs.to_dense() - w).square().sum()) < 0.02 * float((alone.to_dense() - w).square().sum())


@given(st.integers(0, 99), st.booleans())
def test_few_different_vectors_are_reproduced_exactly(seed: int, per_subspace: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(8, 3, generator=random)
    w = table[torch.randint(8, (10, 5), generator=random)].flatten(1)
    tree = one(ProductQuantization(dim=3, bits=3, per_subspace=per_subspace), w)
    assert torch.equal(tree.to_dense(), w)


def test_sub_spaces_are_clustered_on_their_own() -> None:
    w = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    tree = one(ProductQuantization(dim=3, bits=3, per_subspace=True), w)
    assert isinstance(tree, VectorCodebook)
    assert tree.table.dense_shape() == (2, 8, 3)
    for space in (0, 1):
        mine, found = w[:, 3 * space : 3 * space + 3], tree.to_dense()[:, 3 * space : 3 * space + 3]
        assert error(mine.double().numpy(), tree.table.to_dense()[space].double().numpy()) == pytest.approx(
            float((found - mine).double().square().sum()), rel=1e-5
        )


def test_a_centroid_that_attracts_nothing_takes_the_place_of_the_farthest_vector() -> None:
    vectors = np.array([[0.0], [1.0], [10.0]])
    centroids = np.array([[0.5], [99.0], [98.0]])
    index, distance = np.zeros(3, dtype=np.int64), np.square(vectors - 0.5).sum(1)
    assert centre(vectors, index, distance, centroids).tolist() == [[11 / 3], [10.0], [0.0]]


def test_more_bits_never_make_it_worse() -> None:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    errors = [float((one(ProductQuantization(dim=4, bits=b), w).to_dense() - w).square().sum()) for b in range(1, 9)]
    assert errors == sorted(errors, reverse=True)


def test_convolutions_are_cut_into_kernels_unless_told_otherwise() -> None:
    w = torch.randn(16, 8, 3, 3)
    kernels, flat = one(ProductQuantization(bits=4), w), one(ProductQuantization(bits=4, kernels=False), w)
    assert isinstance(kernels, VectorCodebook)
    assert isinstance(flat, VectorCodebook)
    assert (kernels.table.dense_shape(), kernels.index.shape) == ((1, 16, 9), (16, 8))
    assert (flat.table.dense_shape(), flat.index.shape) == ((1, 16, 4), (16, 18))


def test_what_does_not_divide_or_pay_is_refused_with_the_sizes() -> None:
    method = ProductQuantization(dim=8, bits=4)
    shapes = {"ragged": (20, 300), "small": (4, 8), "bias": (300,), "fine": (64, 64)}
    refused = {n: method.refuses(Site(TensorSpec(n, s, torch.float32, Kind.LINEAR), "", s)) for n, s in shapes.items()}
    assert "found 300 columns, expected a multiple of dim 8 (dim may be [2, 3, 4, 5, 6, 10" in refused["ragged"]
    assert "found 32 weights, expected more than the 128 numbers" in refused["small"]
    assert "expected a matrix" in refused["bias"]
    assert refused["fine"] == ""
    assert "ragged" in planned_on(method, {n: torch.zeros(s) for n, s in shapes.items()}).skipped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vectors_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    tree = one(ProductQuantization(bits=3), torch.randn(10, 16).to(dtype))
    assert isinstance(tree, VectorCodebook)
    assert tree.table.to_dense().dtype == dtype


def test_a_constant_becomes_one_vector() -> None:
    tree = one(ProductQuantization(bits=2), torch.full((8, 8), 2.5))
    assert isinstance(tree, VectorCodebook)
    assert tree.entries() == 1
    assert torch.equal(tree.to_dense(), torch.full((8, 8), 2.5))
