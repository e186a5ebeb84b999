"""Whitened SVD: the optimum of ‖(w − u·v)·Xᵀ‖, ranks under a budget, rows of the identity that are not stored."""

from __future__ import annotations

import itertools

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on, seen
from torch import Tensor, nn

from gossamer.drive import run
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Dense, Interpolation, LowRank
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.factorize import SVD, WhitenedSVD
from gossamer.methods.factorize.spanning import spanning_rows
from gossamer.methods.quantize import RoundToNearest
from gossamer.runtime.operators import operator_of


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, size: int, seed: int = 0) -> Tensor:
    return matrix(rows, size, seed=seed + 100) @ matrix(size, size, seed=seed + 200) * torch.linspace(2, 0.05, size)


@given(st.booleans(), st.sampled_from([(10, 14), (14, 10), (12, 12)]), st.integers(1, 4), st.integers(0, 1000))
def test_no_product_of_its_rank_is_nearer_on_the_inputs(
    identity: bool, shape: tuple[int, int], rank: int, seed: int
) -> None:
    w, x = matrix(*shape, seed=seed), inputs(200, shape[1], seed)
    tree = one(WhitenedSVD(rank=rank, identity=identity, damping=1e-9), w, seen(x))
    assert isinstance(tree, LowRank)
    assert tree.rank == rank
    outputs = w.double() @ x.double().T
    least = torch.linalg.svdvals(outputs)[rank:].square().sum().sqrt()
    error = torch.linalg.norm((tree.to_dense() - w).double() @ x.double().T)
    assert float(error) == pytest.approx(float(least), rel=1e-3)
    plain = torch.linalg.norm((one(SVD(rank=rank), w).to_dense() - w).double() @ x.double().T)
    assert float(error) <= float(plain) * (1 + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("identity", [False, True])
def test_in_half_precision_the_left_factor_answers_to_the_rounded_right_one(dtype: torch.dtype, identity: bool) -> None:
    w, x = matrix(24, 20).to(dtype), inputs(300, 20)
    tree = one(WhitenedSVD(rank=6, identity=identity), w, seen(x))
    assert isinstance(tree, LowRank)
    v = tree.v.to_dense().double()
    assert tree.v.to_dense().dtype == dtype
    left = tree.u.rest.to_dense() if isinstance(tree.u, Interpolation) else tree.u.to_dense()
    rows = tree.u.others() if isinstance(tree.u, Interpolation) else torch.arange(24)
    best = torch.linalg.lstsq(x.double() @ v.T, x.double() @ w[rows].double().T).solution.T
    torch.testing.assert_close(left.double(), best, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


def test_with_rows_of_the_identity_it_is_the_same_product_in_fewer_numbers() -> None:
    w, evidence = matrix(30, 20), seen(inputs(200, 20))
    full, fewer = (one(WhitenedSVD(rank=8, identity=i), w, evidence) for i in (False, True))
    torch.testing.assert_close(fewer.to_dense(), full.to_dense(), rtol=1e-4, atol=1e-4)
    assert full.size_bits() == 32 * 8 * (30 + 20)
    assert fewer.size_bits() == 32 * 8 * (30 + 20 - 8) + 30
    assert isinstance(fewer, LowRank)
    assert isinstance(fewer.u, Interpolation)
    torch.testing.assert_close(fewer.u.to_dense()[fewer.u.rows.mask()], torch.eye(8))
    assert float(fewer.u.to_dense().abs().max()) <= 1.5


@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 10_000))
def test_spanning_rows_give_all_others_with_small_coefficients(rank: int, more: int, seed: int) -> None:
    u = torch.linalg.qr(matrix(rank + more, rank, seed=seed).double())[0]
    rows, others = spanning_rows(u)
    assert rows.tolist() == sorted(set(rows.tolist()))
    rest = [i for i in range(rank + more) if i not in rows.tolist()]
    torch.testing.assert_close(others @ u[rows], u[rest])
    assert more == 0 or float(others.abs().max()) <= 1.5


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("kind", ["zero", "rank one", "one input", "no sample"])
def test_degenerate_weights_and_inputs_give_finite_factors(identity: bool, kind: str) -> None:
    w, x = matrix(12, 9), inputs(50, 9)
    if kind == "zero":
        w = torch.zeros(12, 9)
    elif kind == "rank one":
        w = torch.outer(w[:, 0], w[0])
    elif kind == "one input":
        x = x * (torch.arange(9) == 3)
    else:
        x = torch.zeros(1, 9)
    tree = one(WhitenedSVD(rank=3, identity=identity), w, seen(x))
    assert all(bool(leaf.tensor.isfinite().all()) for leaf in tree.leaves() if leaf.tensor.is_floating_point())
    error = torch.linalg.norm((tree.to_dense() - w) @ x.T)
    assert float(error) <= 1e-3 * float(torch.linalg.norm(w @ x.T)) + 1e-6


def test_energy_is_that_of_the_outputs() -> None:
    w, x = matrix(40, 30), inputs(500, 30)
    values = torch.linalg.svdvals(w.double() @ x.double().T).square()
    for energy in (0.5, 0.9, 0.99):
        expected = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
        planned = planned_on(WhitenedSVD(energy=energy, damping=1e-9), {"w": w}, {"w": seen(x)})
        assert planned.plan.steps[0].entry["rank"] == expected


@pytest.mark.parametrize("identity", [False, True])
def test_a_uniform_density_is_the_highest_rank_that_every_layer_can_pay(identity: bool) -> None:
    weights = {"a": matrix(30, 20), "b": matrix(16, 40, seed=1)}
    evidence = {k: seen(inputs(100, w.shape[1])) for k, w in weights.items()}
    method = WhitenedSVD(density=0.6, scope="uniform", identity=identity)
    ranks = {s.targets[0]: s.entry["rank"] for s in planned_on(method, weights, evidence).plan.steps}
    for name, w in weights.items():
        (m, n), r = w.shape, ranks[name]
        numbers = [q * (m + n - q * identity) * 4 + identity * -(-m // 8) for q in (r, r + 1)]
        assert numbers[0] <= 0.6 * m * n * 4 < numbers[1]


@given(st.integers(0, 200), st.sampled_from([0.5, 0.65, 0.8]))
def test_a_global_budget_is_spent_where_the_outputs_gain_most(seed: int, density: float) -> None:
    weights = {"a": matrix(4, 5, seed=seed), "b": matrix(5, 4, seed=seed + 1), "c": matrix(4, 4, seed=seed + 2)}
    evidence = {k: seen(inputs(60, w.shape[1], seed + i)) for i, (k, w) in enumerate(weights.items())}
    budget = int(density * sum(w.numel() * 4 for w in weights.values()))

    def cost(w: Tensor, rank: int) -> int:
        m, n = w.shape
        return min(rank * (m + n - rank) * 4 + 1, m * n * 4) if rank < min(m, n) else m * n * 4

    def lost(name: str, rank: int) -> float:
        values = torch.linalg.svdvals(weights[name].double() @ torch.linalg.cholesky(damped(evidence[name]["gram"])))
        return float(values[rank:].square().sum() / values.square().sum())

    def damped(gram: Tensor) -> Tensor:
        gram = gram.double() / gram.double().diagonal().mean()
        return gram + 1e-4 * torch.eye(len(gram))

    result = result_on(WhitenedSVD(budget_bytes=budget), weights, evidence)
    ranks = {k: result[k].rank if k in result else min(w.shape) for k, w in weights.items()}  # type: ignore[attr-defined]
    assert sum(cost(w, ranks[k]) for k, w in weights.items()) <= budget
    mine = sum(lost(k, r) for k, r in ranks.items())
    # Greedy is optimal up to the last purchase: nothing that costs as much less than one rank of each is better.
    most = max(cost(w, 1) for w in weights.values())
    for choice in itertools.product(*(range(1, min(w.shape) + 1) for w in weights.values())):
        if sum(cost(w, r) for w, r in zip(weights.values(), choice, strict=True)) <= budget - most:
            assert mine <= sum(lost(k, r) for k, r in zip(weights, choice, strict=True)) + 1e-9


def test_a_budget_for_everything_or_for_nothing_is_refused() -> None:
    w, evidence = {"w": matrix(20, 20)}, {"w": seen(inputs(50, 20))}
    with pytest.raises(CompositionError, match="found bytes for the whole weight"):
        planned_on(WhitenedSVD(budget_bytes=1600), w, evidence)
    with pytest.raises(PlanError, match="expected at least 159, rank 1 everywhere"):
        planned_on(WhitenedSVD(budget_bytes=100), w, evidence)


def test_outputs_on_which_the_loss_depends_more_are_kept_better_and_layers_share_one_unit() -> None:
    torch.manual_seed(0)
    w, evidence = matrix(12, 10), dict(seen(inputs(100, 10)))
    evidence["grad_sq"] = torch.ones(12, 10)
    evidence["grad_sq"][4:] = 1e-6
    loud = one(WhitenedSVD(rank=4, outputs="fisher"), w, evidence).to_dense()
    torch.testing.assert_close(loud[:4], w[:4], atol=0.05, rtol=0)
    quiet = {**evidence, "grad_sq": evidence["grad_sq"] * 1e-4}
    method = WhitenedSVD(density=0.7, outputs="fisher")
    planned = planned_on(method, {"loud": w, "quiet": w.clone()}, {"loud": evidence, "quiet": quiet})
    ranks = {s.targets[0]: s.entry["rank"] for s in planned.plan.steps}
    assert ranks.get("loud", 10) > ranks["quiet"]
    with pytest.raises(DataError, match="w: found no gradients"):
        one(method, w, seen(inputs(100, 10)))


def test_ranks_of_layers_by_name_go_through_a_recipe_file() -> None:
    method = WhitenedSVD(rank=(("a*", 3), ("b", 2)))
    assert parse_recipe(yaml.safe_load(dump_recipe([method]))) == [method]
    weights = {n: matrix(12, 12, seed=i) for i, n in enumerate(("a1", "b", "c"))}
    planned = planned_on(method, weights, {n: seen(inputs(40, 12)) for n in weights})
    assert {s.targets[0]: s.entry["rank"] for s in planned.plan.steps} == {"a1": 3, "b": 2}
    assert "no pattern" in planned.skipped["c"]


def test_layers_that_the_data_do_not_reach_stay_and_the_plan_says_so() -> None:
    weights = {"a": matrix(12, 12), "b": matrix(12, 12)}
    planned = planned_on(WhitenedSVD(rank=2), weights, {"a": seen(inputs(40, 12))})
    assert [s.targets for s in planned.plan.steps] == [("a",)]
    assert "found no inputs of it" in planned.skipped["b"]


def test_real_layers_run_as_two_products_and_the_stored_rows_are_copied() -> None:
    torch.manual_seed(0)
    for layer, x in (
        (nn.Linear(32, 40), torch.randn(64, 32)),
        (nn.Conv2d(4, 24, 3, padding=1), torch.randn(3, 4, 9, 9)),
    ):
        state = run(layer, [WhitenedSVD(rank=5)], data=[x])
        tree = state.trees["weight"]
        assert isinstance(tree, LowRank)
        operator = operator_of(tree, layer)
        assert operator is not None
        assert sum(p.numel() for p in operator.parameters()) < sum(p.numel() for p in layer.parameters())
        torch.testing.assert_close(operator(x), state.network().eval()(x), rtol=1e-4, atol=1e-4)
        sum_of_outputs = operator(x).sum()
        sum_of_outputs.backward()
        assert all(p.grad is not None for p in operator.parameters())


def test_the_factors_can_be_quantized() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 40), torch.randn(64, 32)
    tree = run(layer, [WhitenedSVD(rank=8), RoundToNearest(bits=8)], data=[x]).trees["weight"]
    plain = run(layer, [WhitenedSVD(rank=8)], data=[x]).trees["weight"]
    assert not any(isinstance(node, Dense) and node.array.numel() > 50 for _, node in tree.nodes())
    torch.testing.assert_close(tree.to_dense(), plain.to_dense(), atol=0.02, rtol=0)
