"""Pruning with calibration data, against references of a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
from gossamer.drive import TreeSource, run
from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Dense, Encoding, Kind, Mask, Masked, TensorSpec
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import Method
from gossamer.methods.prune import (
    Block,
    Columns,
    KernelPattern,
    Magnitude,
    NofM,
    OptimalBrain,
    PerTensor,
    Reconstruct,
    Rows,
    SparseGPT,
    Structure,
    Taylor,
    Unstructured,
    Wanda,
    WoodFisher,
)
from gossamer.methods.prune.compensate import by_row
from gossamer.methods.prune.survivors import conjugate_gradients, exact
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.second_order import damped, fisher_blocks, keep_better, row_errors

STRUCTURES = {
    "weights": Unstructured(),
    "rows": Rows(),
    "columns": Columns(),
    "4x1": Block(4, 1),
    "3x5": Block(3, 5),
    "2:4": NofM(2, 4),
    "2:4-permuted": NofM(2, 4, permute=True),
}


def inputs(n: int, rows: int | None = None, seed: int = 0) -> Tensor:
    """Correlated inputs."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(3 * n + 5 if rows is None else rows, n, generator=rng) @ torch.randn(n, n, generator=rng)


def seen(x: Tensor) -> dict[str, Tensor]:
    return {"gram": x.T @ x, "sq": x.square().sum(0), "count": torch.tensor([float(len(x))])}


def weights(rows: int, n: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


def pruned(
    method: Method, given: Mapping[str, Tensor | Encoding], evidence: Mapping[str, Mapping[str, Tensor]]
) -> dict:
    trees = {n: w if isinstance(w, Encoding) else Dense(w) for n, w in given.items()}
    specs = [TensorSpec(n, t.dense_shape(), t.to_dense().dtype, Kind.LINEAR) for n, t in trees.items()]
    source = TreeSource(specs, trees)
    return apply_plan(plan_method(method, source, evidence), source)


def one(method: Method, weight: Tensor | Encoding, x: Tensor) -> Encoding:
    return cast(Encoding, pruned(method, {"w": weight}, {"w": seen(x)})["w"])


def loss(weight: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """Per row."""
    return (x.double() @ (weight - other).double().T).square().sum(0)


# -- Wanda -----------------------------------------------------------------------------------------------


def test_wanda_keeps_the_largest_products_of_each_row() -> None:
    w, x = weights(6, 20), inputs(20)
    found = one(Wanda(sparsity=0.3), w, x).to_dense()
    score = w.abs() * x.norm(dim=0)
    for row, kept in zip(score, found != 0, strict=True):
        assert set(kept.nonzero().flatten().tolist()) == set(row.argsort(descending=True)[:14].tolist())
    assert torch.equal(found[found != 0], w[found != 0])


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 6), n=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_rows_share_a_number_evenly_and_exactly(rows: int, n: int, share: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (rows, n), generator=rng).float()
    scores[torch.rand(rows, n, generator=rng) < 0.4] = -torch.inf
    live = (~scores.isinf()).sum(1)
    keep = round(share * int(live.sum()))
    kept = by_row(scores, keep)
    counts = kept.sum(1)
    assert int(counts.sum()) == keep
    assert not bool((kept & scores.isinf()).any())
    assert all(c == int(n) or c >= int(counts.max()) - 1 for c, n in zip(counts.tolist(), live, strict=True))


# -- SparseGPT -------------------------------------------------------------------------------------------


def sequential(w: Tensor, h: Tensor, keep_in_block: int, block: int) -> Tensor:
    """The same choice, with the free columns solved for anew at every column."""
    w, n, mask = w.double().clone(), w.shape[1], torch.zeros(w.shape, dtype=torch.bool)
    for j in range(n):
        if j % block == 0:
            price = torch.stack([1 / torch.linalg.inv(h[k:, k:])[0, 0] for k in range(j, j + block)])
            score = w[:, j : j + block].square() * price
            order = score.flatten().argsort(descending=True)[:keep_in_block]
            chosen = torch.zeros(score.numel(), dtype=torch.bool)
            chosen[order] = True
            mask[:, j : j + block] = chosen.view(score.shape)
        error = torch.where(mask[:, j], 0.0, w[:, j])
        w[:, j] -= error
        rest = slice(j + 1, n)
        w[:, rest] += error[:, None] * torch.linalg.solve(h[rest, rest], h[rest, j])
    return w


def test_sparsegpt_is_the_sequential_reference() -> None:
    w, x = weights(4, 12), inputs(12)
    h = damped((x.T @ x).double(), 0.01)
    found = one(SparseGPT(sparsity=0.5, block=4), w, x).to_dense().double()
    expected = sequential(w, h, 8, 4)
    plain = torch.where(expected != 0, w, 0.0)
    assert torch.allclose(found, expected, atol=1e-4) or bool((loss(w, found, x) <= loss(w, plain, x)).all())
    same = ((found - expected).abs() < 1e-4).all(1)
    assert int(same.sum()) >= 3  # a row may have been better off uncompensated


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_sparsegpt_is_exact_in_number_structured_and_never_worse_than_wanda_on_the_same_counts(
    name: str, sparsity: float
) -> None:
    structure = STRUCTURES[name]
    w, x = weights(12, 40), inputs(40)
    method = SparseGPT(structure=structure) if isinstance(structure, NofM) else SparseGPT(
        sparsity=sparsity, structure=structure, block=8
    )  # fmt: skip
    made = one(method, w, x)
    found = made.to_dense()
    inner = made if isinstance(made, Masked) else made.at("/inner")
    assert isinstance(inner, Masked)
    if isinstance(structure, NofM):
        assert int(inner.where.mask().sum()) == w.numel() // 2
    else:
        units = structure.units((12, 40))
        assert int(structure.score(found.abs().masked_fill(found == 0, -torch.inf), rms=False).isinf().sum()) == round(
            units * sparsity
        )
    if structure == Unstructured():
        for row, out, dense in zip((found != 0).sum(1).tolist(), found, w, strict=True):
            score = dense.abs() * x.norm(dim=0)
            kept = torch.zeros(40).scatter(0, score.argsort(descending=True)[:row], 1.0)
            error = loss(dense[None], out[None], x) - loss(dense[None], (dense * kept)[None], x)
            assert float(error) <= 1e-3 * float(loss(dense[None], 0 * dense[None], x))


@pytest.mark.parametrize("name", STRUCTURES)
def test_compensation_pays(name: str) -> None:
    w, x = weights(12, 40), inputs(40)
    structure = STRUCTURES[name]
    settings = {} if isinstance(structure, NofM) else {"sparsity": 0.5}
    ours = one(SparseGPT(structure=structure, **settings), w, x).to_dense()  # type: ignore[arg-type]
    plain = one(Wanda(structure=structure, **settings), w, x).to_dense()  # type: ignore[arg-type]
    limit = 1.0 if isinstance(structure, Rows) else 0.9  # a row that is gone leaves nobody to make up for it
    assert float(loss(w, ours, x).sum()) <= limit * float(loss(w, plain, x).sum())


def test_what_is_dead_stays_dead_and_counts() -> None:
    w, x = weights(8, 24), inputs(24)
    first = one(Magnitude(sparsity=0.4), w, x)
    assert isinstance(first, Masked)
    for method in (SparseGPT(sparsity=0.7, block=8), Wanda(sparsity=0.7), OptimalBrain(sparsity=0.7)):
        found = one(method, first, x)
        assert isinstance(found, Masked)
        assert not bool((found.where.mask() & ~first.where.mask()).any())
        assert found.where.positions().numel() == w.numel() - round(0.7 * w.numel())


def test_blocks_over_a_free_mask_are_an_intersection() -> None:
    w, x = weights(8, 24), inputs(24)
    first = one(Magnitude(sparsity=0.4), w, x)
    assert isinstance(first, Masked)
    found = one(SparseGPT(sparsity=0.5, structure=Block(4, 1), block=8), first, x)
    assert isinstance(found, Masked)
    assert isinstance(found.where, Mask)
    kept = found.where.mask()
    assert not bool((kept & ~first.where.mask()).any())
    units = kept.view(2, 4, 24).any(1)
    assert int(units.sum()) == 24
    assert torch.equal(kept, first.where.mask() & units.repeat_interleave(4, 0))


# -- Optimal Brain ---------------------------------------------------------------------------------------


def surgeon(w: Tensor, h: Tensor, keep: int) -> Tensor:
    """Remove the cheapest weight of one row, with the inverse of what is left computed anew each time."""
    w, live = w.double().clone(), list(range(len(w)))
    while len(live) > keep:
        inverse = torch.linalg.inv(h[live][:, live])
        p = int((w[live].square() / inverse.diagonal()).argmin())
        w[live] -= w[live[p]] / inverse[p, p] * inverse[:, p]
        w[live.pop(p)] = 0.0
    return w


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), n=st.integers(2, 10), seed=st.integers(0, 999))
def test_optimal_brain_is_the_exact_greedy_solution(rows: int, n: int, seed: int) -> None:
    w, x = weights(rows, n, seed), inputs(n, seed=seed)
    h = damped((x.T @ x).double(), 0.01)
    found = one(OptimalBrain(sparsity=0.5, per_row=True), w, x).to_dense()
    counts = (found != 0).sum(1).tolist()
    for row, dense, keep in zip(found, w, counts, strict=True):
        expected = surgeon(dense, h, keep)
        kept = torch.where(expected != 0, dense, 0.0)
        better = loss(dense[None], kept[None], x) < loss(dense[None], expected[None], x)
        assert torch.allclose(row.double(), kept.double() if better else expected, atol=1e-3)


def test_optimal_brain_is_nearer_than_sparsegpt_and_that_than_wanda() -> None:
    w, x = weights(16, 32), inputs(32)
    errors = [
        float(loss(w, one(m, w, x).to_dense(), x).sum())
        for m in (OptimalBrain(sparsity=0.5), SparseGPT(sparsity=0.5, block=8), Wanda(sparsity=0.5))
    ]
    assert errors == sorted(errors)


def test_optimal_brain_keeps_n_of_m_greedily() -> None:
    w, x = weights(3, 16), inputs(16)
    found = one(OptimalBrain(structure=NofM(1, 4)), w, x)
    assert isinstance(found, Masked)
    assert bool((found.where.mask().view(3, 4, 4).sum(2) == 1).all())
    free = found.where.mask()
    h = damped((x.T @ x).double(), 0.01)
    assert torch.allclose(found.to_dense().double(), exact(w.double(), free, h), atol=1e-4)


@pytest.mark.parametrize("structure", [Rows(), Block(4, 1), KernelPattern(2, 2), NofM(2, 4, permute=True)])
def test_optimal_brain_says_which_structures_it_takes(structure: Structure) -> None:
    settings = {} if structure.complete else {"sparsity": 0.5}
    with pytest.raises(PlanError, match="expected Unstructured"):
        OptimalBrain(structure=structure, **settings)  # type: ignore[arg-type]


# -- survivors -------------------------------------------------------------------------------------------


def test_exact_survivors_are_those_of_lstsq() -> None:
    w, x = weights(7, 15).double(), inputs(15, 60).double()
    mask = torch.rand(7, 15, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[3] = False
    found = exact(w, mask, x.T @ x)
    for row, dense, free in zip(found, w, mask, strict=True):
        best = torch.linalg.lstsq(x[:, free], (x @ dense)[:, None]).solution[:, 0]
        assert torch.allclose(row[free], best, rtol=1e-6, atol=1e-8)
        assert not bool(row[~free].any())


def test_conjugate_gradients_reach_the_exact_solution_and_never_move_away() -> None:
    w, x = weights(9, 30).double(), inputs(30, 200).double()
    mask = torch.rand(9, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    h, start = damped(x.T @ x, 0.01), torch.where(mask, w, 0.0)
    errors = [row_errors(w - conjugate_gradients(w, start, mask, h, steps), h) for steps in (1, 4, 16, 200)]
    errors.insert(0, row_errors(w - start, h))
    assert all(bool((b <= a * (1 + 1e-9)).all()) for a, b in pairwise(errors))
    best = row_errors(w - exact(w, mask, h), h)
    assert torch.allclose(errors[-1], best, rtol=1e-4)


def test_reconstruct_gives_any_pruning_its_best_values() -> None:
    layer, x = nn.Linear(20, 6, bias=False), inputs(20)
    w = layer.weight.detach()
    before = one(Magnitude(sparsity=0.5), w, x)
    bound = Reconstruct().bind(nn.ModuleDict({"w": layer}), None)
    tree = pruned(bound, {"w.weight": before}, {"w.weight": seen(x)})["w.weight"]
    assert isinstance(before, Masked)
    assert isinstance(tree, Masked)
    assert tree.where is before.where
    expected = exact(w.double(), before.where.mask(), damped((x.T @ x).double(), 0.01))
    assert torch.allclose(tree.to_dense().double(), expected, atol=1e-4)
    assert bool((loss(w, tree.to_dense(), x) <= loss(w, before.to_dense(), x)).all())


def test_reconstruct_leaves_alone_what_has_no_original_and_says_so() -> None:
    x = inputs(20)
    before = one(Magnitude(sparsity=0.5), weights(6, 20), x)
    with pytest.raises(PlanError, match="expected to be bound"):
        pruned(Reconstruct(), {"w": before}, {"w": seen(x)})
    bound = Reconstruct().bind(nn.ModuleDict({"w": nn.Linear(20, 5)}), None)
    with pytest.raises(CompositionError, match="found no dense weight of the same place"):
        pruned(bound, {"w.weight": before}, {"w.weight": seen(x)})


# -- degenerate data and budgets -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SparseGPT(sparsity=0.5), OptimalBrain(sparsity=0.5), Wanda(sparsity=0.5)])
def test_inputs_that_never_fire_no_inputs_at_all_and_zero_rows_are_survived(method: Method) -> None:
    w = weights(6, 16)
    w[2] = 0
    for x in (inputs(16), torch.zeros(40, 16)):
        x[:, 5] = 0
        found = one(method, w, x).to_dense()
        assert bool(found.isfinite().all())
        assert bool((found[2] == 0).all())
        assert int((one(method, w, x).at("/value").dense_shape())[0]) == 48


@pytest.mark.parametrize("method", [SparseGPT(sparsity=0.5), OptimalBrain(sparsity=0.5)])
def test_fewer_rows_than_inputs_are_regularised_with_a_warning(method: Method) -> None:
    w, x = weights(6, 16), inputs(16, 7)
    with pytest.warns(UserWarning, match="w: found 7 rows of calibration data for 16 inputs, expected at least 16"):
        found = one(method, w, x).to_dense()
    assert bool(found.isfinite().all())
    assert float(found.norm()) < 3 * float(w.norm())


def test_layers_that_no_sample_reaches_are_left_alone_and_listed() -> None:
    w, x = weights(6, 16), inputs(16)
    trees = {"a": Dense(w), "b": Dense(w.clone())}
    specs = [TensorSpec(n, (6, 16), torch.float32, Kind.LINEAR) for n in trees]
    source = TreeSource(specs, trees)
    planned = plan_method(SparseGPT(sparsity=0.5, scope="global"), source, {"a": seen(x)})
    assert [s.targets for s in planned.plan.steps] == [("a",)]
    assert "no sample reaches it" in planned.skipped["b"]
    with pytest.warns(UserWarning, match="SparseGPT: b stays as it is: found no gram of it"):
        found = apply_plan(plan_method(SparseGPT(sparsity=0.5), source, {"a": seen(x)}), source)
    assert isinstance(found["a"], Masked)
    assert found["b"] is trees["b"]
    with pytest.raises(DataError, match="not finite"):
        one(SparseGPT(sparsity=0.5), w, x * torch.nan)


def test_a_global_budget_is_met_exactly_and_spares_what_matters() -> None:
    w, x = weights(6, 16), inputs(16)
    layers = {"needed": w, "idle": w.clone()}
    evidence = {
        "needed": {**seen(x), "grad_sq": torch.ones(6, 16)},
        "idle": {**seen(x), "grad_sq": 1e-3 * torch.ones(6, 16)},
    }
    for method in (
        SparseGPT(sparsity=0.5, scope="global", weighted="loss"),
        Wanda(sparsity=0.5, scope="global", weighted="loss"),
        OptimalBrain(sparsity=0.5, scope="global", weighted="loss"),
    ):
        live = {n: t.where.positions().numel() for n, t in pruned(method, layers, evidence).items()}
        assert sum(live.values()) == 96
        assert live["needed"] > 72


def test_a_sparsity_per_tensor_is_met_exactly_and_takes_no_budget() -> None:
    w, x = weights(6, 16), inputs(16)
    table = PerTensor((("a", 0.25), ("b", 0.75)))
    found = pruned(SparseGPT(scope=table), {"a": w, "b": w.clone()}, {"a": seen(x), "b": seen(x)})
    assert [found[n].where.positions().numel() for n in "ab"] == [72, 24]
    assert SparseGPT(scope=table).at(0.5).scope == table.scaled(0.875)  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="beside PerTensor"):
        SparseGPT(sparsity=0.5, scope=table)
    with pytest.raises(PlanError, match="found no sparsity of 'c'"):
        pruned(SparseGPT(scope=table), {"c": w}, {"c": seen(x)})


def test_a_grouped_convolution_has_a_gram_matrix_per_group() -> None:
    w, x, y = weights(6, 8), inputs(8), inputs(8, seed=9)
    grams = torch.stack([x.T @ x, y.T @ y])
    whole = pruned(OptimalBrain(sparsity=0.5, per_row=True), {"w": w}, {"w": {"gram": grams}})["w"].to_dense()
    top = one(OptimalBrain(sparsity=0.5, per_row=True), w[:3], x).to_dense()
    low = one(OptimalBrain(sparsity=0.5, per_row=True), w[3:], y).to_dense()
    assert torch.allclose(whole, torch.cat([top, low]), atol=1e-5)
    assert int((pruned(SparseGPT(sparsity=0.5), {"w": w}, {"w": {"gram": grams}})["w"].to_dense() != 0).sum()) == 24


def test_rows_of_a_grouped_convolution_are_scored_by_the_inputs_of_their_group() -> None:
    w, x, y = weights(6, 8), inputs(8), inputs(8, seed=9)
    squares = torch.stack([x.square().sum(0), y.square().sum(0)])
    whole = pruned(Wanda(sparsity=0.5), {"w": w}, {"w": {"sq": squares}})["w"].to_dense()
    top = pruned(Wanda(sparsity=0.5), {"w": w[:3]}, {"w": {"sq": squares[0]}})["w"].to_dense()
    low = pruned(Wanda(sparsity=0.5), {"w": w[3:]}, {"w": {"sq": squares[1]}})["w"].to_dense()
    assert torch.equal(whole, torch.cat([top, low]))


def test_what_is_not_a_number_is_never_kept() -> None:
    w, x = weights(2, 4), inputs(4)
    broken = w.clone()
    broken[0] = float("nan")
    assert keep_better(w, (x.T @ x).double(), broken, torch.zeros_like(w)).tolist()[0]


# -- with a network ---------------------------------------------------------------------------------------------------


def batches(n: int = 20) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(4)
    return [(torch.randn(8, 3, 6, 6, generator=rng), torch.randint(0, 4, (8,), generator=rng)) for _ in range(n)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def change(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((a(x) - b(x)).square().sum()) for x, _ in batches())


def test_recipes_with_data_run_from_layers_to_network_and_through_yaml() -> None:
    model, data = net(), batches()
    recipes: dict[str, list[Any]] = {
        "magnitude": [Magnitude(sparsity=0.5, skip="fc2.*")],
        "reconstructed": [Magnitude(sparsity=0.5, skip="fc2.*"), Reconstruct()],
        "wanda": [Wanda(sparsity=0.5, skip="fc2.*")],
        "sparsegpt": [SparseGPT(sparsity=0.5, skip="fc2.*"), RoundToNearest(bits=8)],
        "per tensor": [SparseGPT(scope=PerTensor((("conv.weight", 0.2), ("fc1.weight", 0.6))), skip="fc2.*")],
    }
    error = {}
    for name, recipe in recipes.items():
        assert load_text(dump_recipe(recipe)) == recipe
        error[name] = change(model, gs.compress(model, recipe, data=data).dense())
    assert error["reconstructed"] < error["magnitude"]
    assert error["sparsegpt"] < error["wanda"]


def load_text(text: str) -> list[Any]:
    return list(parse_recipe(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "method",
    [
        WoodFisher(sparsity=0.5, scope="global"),
        SparseGPT(sparsity=0.5, scope="global", weighted="loss"),
        Taylor(sparsity=0.5),
        Taylor(sparsity=0.5, form="fisher", scope="global"),
    ],
)
def test_gradients_of_the_data_decide(method: Method) -> None:
    small = gs.compress(net(), [method], data=batches())
    found = small.dense()
    weights = [m.weight for m in found.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    total = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == pytest.approx(total / 2, abs=2)


def test_woodfisher_survivors_are_the_optimum_for_mask_and_fisher() -> None:
    w, g = weights(3, 40), torch.randn(50, 3, 40, generator=torch.Generator().manual_seed(5))
    fisher = sum((fisher_blocks(x) for x in g), torch.zeros(()))
    found = pruned(WoodFisher(sparsity=0.5), {"w": w}, {"w": {"fisher": fisher}})["w"]
    assert isinstance(found, Masked)
    out, mask = found.to_dense().double(), found.where.mask()
    mean = float((g * g).sum()) / w.numel()
    for row in range(3):
        for cut in (slice(0, 32), slice(32, 40)):
            f = (g[:, row, cut].T @ g[:, row, cut]).double() + 0.01 * mean * torch.eye(cut.stop - cut.start)
            free = mask[row, cut]
            best = torch.linalg.solve(f[free][:, free], (f @ w[row, cut].double())[free])
            assert torch.allclose(out[row, cut][free], best, atol=1e-4)


def test_an_allocation_over_the_dense_network_meets_the_budget_in_blocks() -> None:
    model, data = net(), batches()
    table = gs.allocate(model, SparseGPT(sparsity=0.5, scope="global"), data)
    assert {name for name, _ in table.sparsities} == {"conv.weight", "fc1.weight", "fc2.weight"}
    state = run(model, [SparseGPT(scope=table, only=n) for n, _ in table.sparsities], data=data)
    live = sum(t.where.positions().numel() for t in state.trees.values() if isinstance(t, Masked))
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert live == total - round(total * 0.5)


def test_normalisations_are_those_of_the_pruned_network() -> None:
    model, data = net(), batches()
    small = gs.compress(model, [Magnitude(sparsity=0.7, only="conv.weight"), gs.ReestimateNorms()], data=data).dense()
    seen_by_norm: list[Tensor] = []
    assert isinstance(small, Net)
    small.norm.register_forward_hook(lambda m, i, o: seen_by_norm.append(i[0]))
    for x, _ in data:
        small(x)
    stacked = torch.stack([x.mean((0, 2, 3)) for x in seen_by_norm]).mean(0)
    assert small.norm.running_mean is not None
    assert torch.allclose(small.norm.running_mean, stacked, atol=1e-5)
    same = gs.compress(nn.Linear(4, 4), [gs.ReestimateNorms()], data=[(torch.randn(2, 4), torch.zeros(2))])
    assert same.dense() is not None
    with pytest.raises(PlanError, match="batches: found 0"):
        gs.ReestimateNorms(batches=0)
