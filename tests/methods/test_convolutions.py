"""Tucker-2 and CP of convolutions against small references and brute force over ranks."""

from __future__ import annotations

import threading
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import source_of
from torch import Tensor

from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.drive.source import TreeSource
from gossamer.encoding import CP as Factors
from gossamer.encoding import Dense, Encoding, Kind, TensorSpec, Tucker
from gossamer.errors import CompositionError
from gossamer.methods.base import Method
from gossamer.methods.factorize import CP, Tucker2


def convolution(*shape: int, seed: int = 0) -> Tensor:
    """A weight whose channels matter less and less."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=random)
    for dim in (0, 1):
        mixed = torch.linalg.qr(torch.randn(shape[dim], shape[dim], generator=random))[0]
        mixed = mixed * 0.7 ** torch.arange(shape[dim])
        w = torch.tensordot(mixed, w, dims=([1], [dim])).movedim(0, dim)
    return w.contiguous()


def planned_on(method: Method, weights: dict[str, Tensor]) -> Planned:
    specs = [TensorSpec(n, tuple(w.shape), w.dtype, Kind.CONV) for n, w in weights.items()]
    return plan_method(method, TreeSource(specs, {n: Dense(w) for n, w in weights.items()}))


def one(method: Method, w: Tensor) -> Encoding:
    planned = planned_on(method, {"w": w})
    return apply_plan(planned, source_of({"w": w}))["w"]


def numbers(shape: tuple[int, ...], r0: int, r1: int) -> int:
    return shape[0] * r0 + shape[1] * r1 + prod(shape[2:]) * r0 * r1


def truncated(w: Tensor, r0: int, r1: int) -> float:
    """Energy that the truncated higher-order SVD keeps, by projecting on leading singular vectors."""
    w = w.double()
    u0, u1 = (
        torch.linalg.svd(w.movedim(dim, 0).flatten(1), full_matrices=False)[0][:, :rank]
        for dim, rank in ((0, r0), (1, r1))
    )
    return float(torch.einsum("oi...,oa,ib->ab...", w, u0, u1).square().sum())


def every_pair(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    kernel = prod(shape[2:])
    pairs = [(a, b) for a in range(1, shape[0] + 1) for b in range(1, shape[1] + 1)]
    return [(a, b) for a, b in pairs if a <= b * kernel and b <= a * kernel and numbers(shape, a, b) < prod(shape)]


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (8, 6, 3), (4, 9, 2, 1)])
def test_energy_takes_the_cheapest_ranks_that_hold_it(shape: tuple[int, ...]) -> None:
    w = convolution(*shape)
    total = float(w.double().square().sum())
    for energy in (0.3, 0.6, 0.9):
        holding = [p for p in every_pair(shape) if truncated(w, *p) >= energy * total]
        r0, r1 = planned_on(Tucker2(energy=energy), {"w": w}).plan.steps[0].entry["ranks"]
        assert numbers(shape, r0, r1) == min(numbers(shape, *p) for p in holding)
        kept = 1 - float((one(Tucker2(energy=energy), w).to_dense() - w).double().square().sum()) / total
        assert kept >= energy - 1e-6


@pytest.mark.parametrize("macs", [0.2, 0.5, 0.8])
def test_macs_take_the_best_ranks_that_cost_no_more(macs: float) -> None:
    w = convolution(7, 6, 3, 3)
    affordable = [p for p in every_pair(w.shape) if numbers(w.shape, *p) <= macs * w.numel()]
    r0, r1 = planned_on(Tucker2(macs=macs), {"w": w}).plan.steps[0].entry["ranks"]
    assert numbers(w.shape, r0, r1) <= macs * w.numel()
    assert truncated(w, r0, r1) == pytest.approx(max(truncated(w, *p) for p in affordable))


def test_one_budget_serves_all_layers_and_is_kept() -> None:
    weights = {"a": convolution(8, 6, 3, 3), "b": convolution(6, 8, 3, 3, seed=1), "c": convolution(4, 4, 3, seed=2)}
    before = 0.0
    for budget in (200, 700, 1500, 3000):
        steps = planned_on(Tucker2(budget_bytes=budget), weights).plan.steps
        chosen = {s.targets[0]: s.entry["ranks"] for s in steps}
        assert sum(4 * numbers(weights[k].shape, *r) for k, r in chosen.items()) <= budget
        kept = sum(truncated(weights[k], *r) / float(weights[k].square().sum()) for k, r in chosen.items())
        assert kept > before
        before = kept


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_iterating_never_keeps_less_than_the_truncation(seed: int, r0: int, r1: int) -> None:
    w = convolution(5, 6, 3, 2, seed=seed)
    tree = one(Tucker2(ranks=(r0, r1)), w)
    assert isinstance(tree, Tucker)
    r0, r1 = tree.core.dense_shape()[:2]
    error = float((tree.to_dense() - w).double().square().sum())
    assert error <= float(w.double().square().sum()) - truncated(w, r0, r1) + 1e-5


def test_full_tucker_ranks_reproduce_a_weight_of_that_rank_and_zeros_stay_zeros() -> None:
    random = torch.Generator().manual_seed(0)
    core = torch.randn(3, 2, 3, 3, generator=random)
    w = torch.einsum("abyx,oa,ib->oiyx", core, torch.randn(9, 3, generator=random), torch.randn(8, 2, generator=random))
    torch.testing.assert_close(one(Tucker2(ranks=(3, 2)), w).to_dense(), w, rtol=1e-4, atol=1e-4)
    assert not bool(one(Tucker2(energy=0.5), torch.zeros(9, 8, 3, 3)).to_dense().any())


def test_tucker_parts_have_one_size_and_positive_columns() -> None:
    tree = one(Tucker2(ranks=(3, 2)), convolution(9, 8, 3, 3))
    assert isinstance(tree, Tucker)
    sizes = torch.stack([leaf.tensor.square().mean().sqrt() for leaf in tree.leaves()])
    torch.testing.assert_close(sizes, sizes[:1].expand(3))
    for leaf in list(tree.leaves())[1:]:
        assert bool((leaf.tensor[leaf.tensor.abs().argmax(0), torch.arange(leaf.tensor.shape[1])] > 0).all())


def test_ranks_are_clipped_to_what_a_layer_has() -> None:
    planned = planned_on(Tucker2(ranks=(90, 2)), {"w": convolution(40, 8, 3)})
    assert planned.plan.steps[0].entry["ranks"] == [6, 2]


@pytest.mark.parametrize("shape", [(7, 6, 3, 3), (9, 8, 3)])
def test_cp_finds_a_weight_that_is_a_sum_of_few_outer_products(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(1)
    true = [torch.randn(n, 2, generator=random) for n in shape]
    w = Factors(tuple(map(Dense, true))).to_dense()
    tree = one(CP(rank=2), w)
    assert isinstance(tree, Factors)
    torch.testing.assert_close(tree.to_dense(), w, rtol=1e-2, atol=1e-2 * float(w.abs().max()))


def test_cp_of_rank_one_is_as_good_as_alternating_by_hand() -> None:
    w = convolution(6, 5, 3, 3).double()
    a, b, c, d = (torch.ones(n, dtype=torch.float64) for n in w.shape)
    for _ in range(200):
        a = torch.einsum("oiyx,i,y,x->o", w, b, c, d) / (b @ b * (c @ c) * (d @ d))
        b = torch.einsum("oiyx,o,y,x->i", w, a, c, d) / (a @ a * (c @ c) * (d @ d))
        c = torch.einsum("oiyx,o,i,x->y", w, a, b, d) / (a @ a * (b @ b) * (d @ d))
        d = torch.einsum("oiyx,o,i,y->x", w, a, b, c) / (a @ a * (b @ b) * (c @ c))
    by_hand = float((torch.einsum("o,i,y,x->oiyx", a, b, c, d) - w).norm())
    assert float((one(CP(rank=1), w).to_dense() - w).norm()) <= by_hand * 1.02


def test_cp_components_are_balanced_ordered_and_signed() -> None:
    tree = one(CP(rank=4), convolution(9, 8, 3, 3))
    assert isinstance(tree, Factors)
    factors = [leaf.tensor for leaf in tree.leaves()]
    sizes = torch.stack([f.square().mean(0).sqrt() for f in factors])
    torch.testing.assert_close(sizes, sizes[:1].expand(4, 4), rtol=1e-4, atol=1e-6)
    assert bool((sizes[0].diff() <= 1e-6).all())
    for f in factors[1:]:
        assert bool((f[f.abs().argmax(0), torch.arange(4)] > 0).all())


def test_cp_at_a_share_of_multiply_adds_takes_the_largest_rank() -> None:
    shape = (9, 8, 3, 3)
    planned = planned_on(CP(macs=0.5), {"w": convolution(*shape)})
    rank = planned.plan.steps[0].entry["rank"]
    assert rank * sum(shape) <= 0.5 * prod(shape) < (rank + 1) * sum(shape)


def test_a_cp_rank_beyond_the_dimensions_starts_the_same_whatever_the_global_generator() -> None:
    w = convolution(6, 5, 3, 3)
    made = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(one(CP(rank=9), w).to_dense())
    assert torch.equal(*made)


def test_decompositions_leave_the_callers_choice_of_tensorly_backend_alone() -> None:
    tensorly = pytest.importorskip("tensorly")
    seen: list[str] = []

    def caller() -> None:
        tensorly.set_backend("pytorch", local_threadsafe=True)
        one(Tucker2(ranks=(2, 2)), convolution(6, 5, 3, 3))
        seen.append(tensorly.get_backend())

    before = tensorly.get_backend()
    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert seen == ["pytorch"]
    assert tensorly.get_backend() == before


@pytest.mark.parametrize("method", [Tucker2(ranks=(3, 3)), CP(rank=6)])
def test_layers_that_would_grow_stay_and_the_plan_says_so(method: Method) -> None:
    planned = planned_on(method, {"large": convolution(12, 10, 3, 3), "small": convolution(3, 3, 2, 1)})
    assert [s.targets for s in planned.plan.steps] == [("large",)]
    assert "numbers, the weight itself has 18" in planned.skipped["small"]


@pytest.mark.parametrize("method", [Tucker2(macs=0.001), Tucker2(energy=1.0), CP(macs=0.001)])
def test_a_wish_that_no_ranks_grant_is_named(method: Method) -> None:
    with pytest.raises(CompositionError, match=r"found no ranks with|rank 1 would take"):
        planned_on(method, {"w": torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))})
