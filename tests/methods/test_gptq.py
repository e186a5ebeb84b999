"""GPTQ against column-by-column updates with explicit inverses, brute force, plain rounding and bad Gram matrices."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from contract.test_every_encoding import same_bits, same_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import source_of
from torch import Tensor, nn

import gossamer as gs
from gossamer.drive import TreeSource
from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Affine, Dense, Encoding, Kind, Mask, Masked, TensorSpec
from gossamer.errors import DataError
from gossamer.methods.base import Method
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import AWQ, GPTQ, RoundToNearest
from gossamer.methods.quantize.grid import Grid, descend, fitted, refit
from gossamer.methods.second_order import damped

PLAIN = {"candidates": 1, "rounds": 0, "sweeps": 0}


def solved(method: Method, weight: Tensor | Encoding, gram: Tensor | None, **more: Tensor) -> Encoding:
    source = source_of({"w": weight})
    statistics = more if gram is None else {"gram": gram, **more}
    return apply_plan(plan_method(method, source, {"w": statistics}), source)["w"]


def problem(seed: int, rows: int, columns: int, samples: int = 200) -> tuple[Tensor, Tensor]:
    """A weight, and the Gram matrix of inputs that depend on each other and differ in size."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=random) * torch.rand(columns, generator=random)
    x = torch.randn(samples, columns, generator=random) @ mix
    return torch.randn(rows, columns, generator=random), x.T @ x


def error(weight: Tensor, found: Tensor, gram: Tensor) -> Tensor:
    off = (weight - found).double()
    return ((off @ gram.double()) * off).sum(1)


def by_inverses(weight: Tensor, gram: Tensor, damp: float, grid: Affine, keep: Tensor) -> Tensor:
    """Column by column from the first on; the rest makes up by the inverse of what is left of the Gram matrix."""
    w, n = weight.double().clone(), weight.shape[1]
    scale = grid.scale.to_dense().double().view(len(w), -1).repeat_interleave(grid.group_size, 1)[:, :n]
    assert isinstance(grid.zero_point, Tensor)
    zero = grid.zero_point.double().view(len(w), -1).repeat_interleave(grid.group_size, 1)[:, :n]
    h = gram.double() + damp * gram.double().diagonal().mean() * torch.eye(n).double()
    for j in range(n):
        inverse = torch.linalg.inv(h[j:, j:])
        q = (torch.round(w[:, j] / scale[:, j]) + zero[:, j]).clamp(0, 2**grid.bits - 1)
        off = w[:, j] - (q - zero[:, j]) * scale[:, j] * keep[:, j]
        w[:, j:] -= off[:, None] * inverse[0] / inverse[0, 0]
    return w


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("columns", [1, 5, 150])
def test_it_is_the_column_by_column_reference_with_explicit_inverses(masked: bool, columns: int) -> None:
    w, gram = problem(columns, 6, columns)
    method = GPTQ(bits=3, group=4, act_order=False, damp=0.02, **PLAIN)
    keep = torch.rand(6, columns, generator=torch.Generator().manual_seed(1)) < (0.6 if masked else 2.0)
    where = Mask.of(keep)
    tree = Masked(where, Dense(w.reshape(-1)[where.positions().long()])) if masked else Dense(w)
    grid = RoundToNearest(bits=3, group=4, symmetric=False).encode(
        plan_method(RoundToNearest(), source_of({"w": w})).sites["w"], tree, {}, {}
    )
    inner = grid.value if isinstance(grid, Masked) else grid
    assert isinstance(inner, Affine)
    target = tree.to_dense()
    expected = by_inverses(target, gram, 0.02, inner, keep.double())
    better = error(target, expected, gram) <= error(target, grid.to_dense(), gram)
    expected = torch.where(better[:, None], expected, grid.to_dense().double())
    torch.testing.assert_close(solved(method, tree, gram).to_dense().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_no_result_beats_brute_force_over_all_codes_and_descent_comes_near_it(seed: int) -> None:
    w, gram = problem(seed, 5, 3)
    tree = solved(GPTQ(bits=2, group="channel", damp=0.0, sweeps=5), w, gram)
    assert isinstance(tree, Affine)
    assert isinstance(tree.zero_point, Tensor)
    found = error(w, tree.to_dense(), gram)
    scale, zero = tree.scale.to_dense()[:, None], tree.zero_point.float()[:, None]
    codes = torch.tensor(list(itertools.product(range(4), repeat=3))).float()
    best = torch.stack([error(w, (c - zero) * scale, gram) for c in codes]).amin(0)
    assert bool((found >= best * (1 - 1e-6)).all())
    rounded = error(
        w,
        RoundToNearest(bits=2, symmetric=False)
        .encode(plan_method(RoundToNearest(), source_of({"w": w})).sites["w"], Dense(w), {}, {})
        .to_dense(),
        gram,
    )
    assert float(found.sum()) <= float(best.sum()) + 0.5 * float((rounded - best).clamp_min(0).sum())


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    bits=st.integers(2, 8),
    group=st.sampled_from(["tensor", "channel", 3, 16]),
    symmetric=st.booleans(),
    pruned=st.booleans(),
    samples=st.sampled_from([1, 5, 100]),
)
@settings(max_examples=60, deadline=None)
def test_no_row_is_worse_than_rounded_to_nearest_and_zeros_stay(
    seed: int, rows: int, columns: int, bits: int, group: int, symmetric: bool, pruned: bool, samples: int
) -> None:
    w, gram = problem(seed, rows, columns, samples)
    tree: Encoding = Dense(w)
    if pruned:
        where = Mask.of(torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
        tree = Masked(where, Dense(w.reshape(-1)[where.positions().long()]))
    plain = RoundToNearest(bits=bits, group=group, symmetric=symmetric)  # type: ignore[arg-type]
    method = GPTQ(bits=bits, group=group, symmetric=symmetric)  # type: ignore[arg-type]
    made = solved(method, tree, gram)
    made.validate()
    target = tree.to_dense()
    mine, theirs = (error(target, m.to_dense(), gram) for m in (made, solved(plain, tree, None)))
    slack = 1e-5 * error(target, torch.zeros_like(target), gram) + 1e-9
    if group == "tensor":
        assert float(mine.sum()) <= float(theirs.sum() + slack.sum())
    else:
        assert bool((mine <= theirs + slack).all())
    if isinstance(made, Masked):
        assert isinstance(tree, Masked)
        assert not bool(made.to_dense()[~tree.where.mask()].any())


def test_with_inputs_that_depend_on_each_other_it_loses_much_less_than_rounding() -> None:
    w, gram = problem(3, 64, 96)
    for bits, share in ((2, 0.45), (3, 0.4), (4, 0.45)):
        mine = error(w, solved(GPTQ(bits=bits, group=32), w, gram).to_dense(), gram).sum()
        classic = error(w, solved(GPTQ(bits=bits, group=32, **PLAIN), w, gram).to_dense(), gram).sum()
        plain = error(w, solved(RoundToNearest(bits=bits, group=32, symmetric=False), w, None).to_dense(), gram).sum()
        assert float(mine) < share * float(plain)
        assert float(mine) < 0.95 * float(classic)


@given(seed=st.integers(0, 1000), pruned=st.booleans())
@settings(max_examples=20, deadline=None)
def test_neither_descent_nor_new_scales_raise_the_error_and_both_stay_on_the_grid(seed: int, pruned: bool) -> None:
    w, gram = problem(seed, 7, 20)
    w, solid = w.double(), damped(gram.double(), 0.01)
    keep = (torch.rand(7, 20, generator=torch.Generator().manual_seed(seed)) < 0.6).double() if pruned else None
    live = w if keep is None else w * keep
    grid = fitted(
        w,
        torch.ones(20),
        keep,
        size=6,
        bits=3,
        symmetric=False,
        shared=False,
        candidates=5,
        store=lambda s: s.clamp_min(1e-3),
    )
    start = grid.values(grid.steps(live))
    for block in (1, 7, 64):
        down = descend(w, solid, start, grid, keep, passes=2, block=block)
        assert bool((error(w, down, solid) <= error(w, start, solid) * (1 + 1e-9)).all())
        torch.testing.assert_close(grid.values(grid.steps(down)), down)
        assert keep is None or not bool(down[keep == 0].any())
    again = refit(w, solid, down, grid, lambda s: s.float().double())
    assert bool((error(w, again.values(grid.steps(down)), solid) <= error(w, down, solid) * (1 + 1e-9)).all())


def test_new_scales_are_the_least_squares_solution() -> None:
    w, gram = problem(5, 4, 12)
    w, solid = w.double(), damped(gram.double(), 0.01)
    grid = Grid(torch.full((2, 4), 0.4).double(), torch.full((2, 4), 4.0).double(), 6, 3)
    steps = grid.steps(w)
    root = torch.linalg.cholesky(solid).T  # ‖root·(w − ŵ)‖² is the error
    new = refit(w, solid, grid.values(steps), grid, lambda s: s)
    for r in range(4):
        parts = torch.stack([steps[r] * (torch.arange(12) // 6 == g) for g in range(2)], 1)
        best = torch.linalg.lstsq(root @ parts, (root @ w[r])[:, None]).solution[:, 0]
        torch.testing.assert_close(new.scale[:, r], best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group", ["tensor", "channel", 4])
@pytest.mark.parametrize(
    "gram",
    [
        torch.zeros(8, 8),
        torch.ones(8, 8),
        torch.diag(torch.tensor([0.0, 1.0, 0.0, 1e-30, 1e6, 1.0, 0.0, 1.0])),
        torch.outer(torch.arange(8.0), torch.arange(8.0)),
    ],
    ids=["nothing", "rank one", "dead and huge", "one sample"],
)
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_degenerate_gram_matrices_give_finite_weights_no_worse_than_rounding(
    gram: Tensor, group: int, damp: float
) -> None:
    w = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    made = solved(GPTQ(bits=4, group=group, damp=damp), w, gram).to_dense()
    plain = solved(RoundToNearest(bits=4, group=group, symmetric=False), w, None).to_dense()
    assert bool(made.isfinite().all())
    assert float(error(w, made, gram).sum()) <= float(error(w, plain, gram).sum()) * (1 + 1e-5) + 1e-5
    dead = gram.diagonal() == 0
    if bool(dead.any()):  # what no sample shows stays near what it was
        assert float((made - w)[:, dead].abs().max()) < 1.0


def test_rows_of_a_grouped_convolution_have_gram_matrices_of_their_own() -> None:
    torch.manual_seed(0)
    grams = torch.stack([problem(s, 1, 9)[1] for s in range(4)])
    w = torch.randn(8, 1, 3, 3)
    made = solved(GPTQ(bits=3, group="channel"), w, grams).to_dense()
    for i in range(4):
        alone = solved(GPTQ(bits=3, group="channel"), w[2 * i : 2 * i + 2], grams[i]).to_dense()
        torch.testing.assert_close(made[2 * i : 2 * i + 2], alone)


def test_squares_of_inputs_decide_the_ranges_where_there_is_no_gram_matrix() -> None:
    w, _ = problem(0, 6, 16)
    sq = torch.rand(16, generator=torch.Generator().manual_seed(2)) ** 4
    mine = error(w, solved(GPTQ(bits=3, group=8), w, None, sq=sq).to_dense(), sq.diag()).sum()
    plain = error(w, solved(RoundToNearest(bits=3, group=8, symmetric=False), w, None).to_dense(), sq.diag()).sum()
    assert float(mine) < 0.9 * float(plain)


def test_a_layer_that_no_data_reach_is_named_in_a_warning_and_embeddings_are_not() -> None:
    w = torch.randn(6, 8)
    with pytest.warns(UserWarning, match="w: found no statistics of its inputs"):
        solved(GPTQ(bits=4, group=8), w, None)
    table = TreeSource([TensorSpec("w", (6, 8), torch.float32, Kind.EMBEDDING)], {"w": Dense(w)})
    made = apply_plan(plan_method(GPTQ(bits=3, group=8), table, {}), table)["w"].to_dense()
    plain = solved(RoundToNearest(bits=3, group=8, symmetric=False), w, None).to_dense()
    assert float((made - w).square().sum()) <= float((plain - w).square().sum())


def test_too_few_rows_are_said_and_bad_evidence_is_refused() -> None:
    w, gram = problem(0, 4, 16, samples=5)
    with pytest.warns(UserWarning, match="found 5 rows of calibration data for 16 inputs"):
        solved(GPTQ(bits=4), w, gram, count=torch.tensor([5.0]))
    with pytest.raises(DataError, match="'gram' evidence of shape"):
        solved(GPTQ(bits=4), w, gram[:5, :5])
    with pytest.raises(DataError, match="not finite"):
        solved(GPTQ(bits=4), w, gram * float("nan"))


def test_many_rows_are_worked_on_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    w, gram = problem(1, 23, 16)
    for method in (GPTQ(bits=3, group=8), GPTQ(bits=3, group="tensor")):
        once = solved(method, w, gram)
        monkeypatch.setattr("gossamer.methods.quantize.gptq._PIECE", 64)
        torch.testing.assert_close(solved(method, w, gram).to_dense(), once.to_dense())
        monkeypatch.undo()


def test_the_same_evidence_gives_the_same_bits() -> None:
    w, gram = problem(7, 33, 70)
    assert same_trees({"w": solved(GPTQ(bits=3), w, gram)}, {"w": solved(GPTQ(bits=3), w, gram)})


@torch.no_grad()
def test_a_network_is_pruned_and_quantized_by_one_recipe_and_reads_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    x = torch.randn(300, 8) @ torch.randn(8, 20)
    data = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(50)]
    pruned = gs.compress(model, [Magnitude(sparsity=0.5)], data=data).dense()(x)
    off = {}
    for name, last in (("gptq", GPTQ(bits=3, group=10)), ("rtn", RoundToNearest(bits=3, group=10, symmetric=False))):
        made = gs.compress(model, [Magnitude(sparsity=0.5), last], data=data)
        tree = made.trees["0.weight"]
        assert isinstance(tree, Masked)
        assert float((tree.to_dense() == 0).float().mean()) >= 0.5
        off[name] = float((made.dense()(x) - pruned).square().mean())
        made.save(tmp_path / "net.gsm")
        read = gs.load(tmp_path / "net.gsm", into=model)
        assert same_bits(read.dense()(x), made.dense()(x))
        torch.testing.assert_close(read.lower(x)(x), made.dense()(x), rtol=1e-3, atol=1e-3)
    assert off["gptq"] < 0.8 * off["rtn"]


def test_a_method_of_this_kind_can_be_written_in_a_recipe_file() -> None:
    recipe = [gs.quantize.Rotate(inner=GPTQ(bits=3, group=64), seed=2), AWQ(bits=4), gs.quantize.HQQ(bits=3)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert replace(GPTQ(bits=3), bits=4) == GPTQ(bits=4)


def test_a_run_without_descent_is_one_pass_of_the_method() -> None:
    assert GPTQ(bits=4, sweeps=0).passes == 1 == GPTQ(bits=4, sweeps=3).passes


def test_every_setting_can_be_written_down() -> None:
    recipe = [GPTQ(bits=3, candidates=4, sweeps=2)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
