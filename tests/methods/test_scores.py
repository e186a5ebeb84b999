"""Scores, allocations and budgets: exact counts everywhere, each score against its definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one, planned_on, source_of
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.encoding import Dense, Encoding, Kind, Masked, TensorSpec
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Site
from gossamer.methods.prune import (
    Block,
    Budgeted,
    Columns,
    HardThreshold,
    KernelPattern,
    LatencyTable,
    Magnitude,
    Movement,
    NofM,
    Random,
    Rows,
    Scored,
    Sensitivity,
    Structure,
    Taylor,
    Unstructured,
)
from gossamer.methods.prune.allocate import erdos_renyi
from gossamer.methods.prune.random import uniform
from gossamer.methods.prune.ranking import Pieces, best, rank
from gossamer.methods.prune.usage import uses_of

SHAPES = {"a": (4, 6), "b": (3, 2, 2, 2), "c": (5, 3)}
CURVES = Sensitivity(tuple((n, ((0.5, 0.1 * i), (1.0, 1.0 + i))) for i, n in enumerate(SHAPES)))
values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -2.0, 3.5])  # many ties


def site_of(name: str, shape: tuple[int, ...]) -> Site:
    return Site(TensorSpec(name, shape, torch.float32, Kind.LINEAR), "", shape)


def gathered(evidence: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: dict.fromkeys(("grad", "grad_sq", "movement"), found) for name, found in evidence.items()}


def pruned(method: Scored, weights: Mapping[str, Tensor | Encoding], evidence: Mapping[str, Tensor]) -> dict[str, Any]:
    """Results without the refusal of layers that die altogether."""
    source = source_of(weights)
    everything = gathered(evidence)
    planned = plan_method(method, source, everything)
    steps = {step.targets[0]: int(step.entry["keep"]) for step in planned.plan.steps}
    return {
        key: method.select(site, source.read(key), steps[key], everything[key]) for key, site in planned.sites.items()
    }


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    return {
        name: torch.tensor(draw(st.lists(values, min_size=n.numel(), max_size=n.numel()))).view(n.shape)
        for name, n in ((name, torch.empty(shape)) for name, shape in SHAPES.items())
    }


SCORES = {
    "magnitude": Magnitude,
    "random": lambda **k: Random(seed=1, **k),
    "taylor": Taylor,
    "fisher": lambda **k: Taylor(form="fisher", **k),
    "movement": Movement,
}
SCOPES = ["uniform", "global", "lamp", "er", "erk", CURVES]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scope", SCOPES, ids=lambda s: s if isinstance(s, str) else "sensitivity")
@settings(max_examples=12, deadline=None)
@given(weights=tensors(), evidence=tensors(), sparsity=st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.9, 1.0]))
def test_single_weights_are_kept_in_exactly_the_number_asked_for(
    score: str, scope: Any, weights: dict[str, Tensor], evidence: dict[str, Tensor], sparsity: float
) -> None:
    if score == "movement" and scope == "lamp":
        return
    method = SCORES[score](sparsity=sparsity, scope=scope)
    result = pruned(method, weights, evidence)
    live = {name: tree.where.positions().numel() for name, tree in result.items()}
    if scope == "uniform":
        assert live == {n: w.numel() - round(sparsity * w.numel()) for n, w in weights.items()}
    else:
        total = sum(w.numel() for w in weights.values())
        assert sum(live.values()) == total - round(sparsity * total)
    for name, tree in result.items():
        assert torch.equal(tree.to_dense(), torch.where(tree.where.mask(), weights[name], 0))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("structure", [Rows(), Columns(), Block(2, 2)], ids=lambda s: type(s).__name__)
@settings(max_examples=8, deadline=None)
@given(weights=tensors(), evidence=tensors(), sparsity=st.sampled_from([0.0, 0.3, 0.6, 1.0]), data=st.data())
def test_structures_stay_within_the_budget_by_less_than_a_unit_of_each_tensor(
    score: str,
    structure: Structure,
    weights: dict[str, Tensor],
    evidence: dict[str, Tensor],
    sparsity: float,
    data: st.DataObject,
) -> None:
    scope = data.draw(st.sampled_from(["uniform", "global", "er", "erk", CURVES]))
    method = SCORES[score](sparsity=sparsity, scope=scope, structure=structure)
    plan = planned_entries(method, weights, evidence)
    units = {n: structure.units(s) for n, s in SHAPES.items()}
    assert all(0 <= plan[n] <= units[n] for n in plan)
    if scope == "uniform":
        assert plan == {n: units[n] - round(units[n] * sparsity) for n in units}
        return
    total = sum(structure.total(s) for s in SHAPES.values())
    spent = sum(plan[n] * structure.size(s) for n, s in SHAPES.items())
    allowed = total - round(total * sparsity)
    assert allowed - sum(structure.size(s) for s in SHAPES.values()) < spent <= allowed


def planned_entries(method: Budgeted, weights: Mapping[str, Tensor], evidence: Mapping[str, Tensor]) -> dict[str, int]:
    planned = plan_method(method, source_of(weights), gathered(evidence))
    return {step.targets[0]: int(step.entry["keep"]) for step in planned.plan.steps}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scope", ["uniform", "global", "erk"])
@settings(max_examples=8, deadline=None)
@given(weights=tensors(), evidence=tensors())
def test_what_is_dead_stays_dead(
    score: str, scope: Any, weights: dict[str, Tensor], evidence: dict[str, Tensor]
) -> None:
    once = pruned(Random(seed=7, sparsity=0.5), weights, evidence)
    twice = pruned(SCORES[score](sparsity=0.6, scope=scope), once, evidence)
    for name, tree in twice.items():
        assert not bool((tree.where.mask() & ~once[name].where.mask()).any())


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=40), st.integers(0, 40))
def test_scores_of_either_sign_are_ranked_exactly(scores: list[float], keep: int) -> None:
    found = best(Pieces.of(torch.tensor(scores)), keep).nonzero().squeeze(1).tolist()
    assert found == sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])
    ranks = rank(torch.tensor(scores)).tolist()
    assert all(
        (a < b) == (x < y) for a, x in zip(ranks, scores, strict=True) for b, y in zip(ranks, scores, strict=True)
    )


def test_dead_scores_are_never_chosen_and_no_scores_give_no_choice() -> None:
    scores = torch.tensor([-torch.inf, -3.0, -torch.inf, 2.0])
    assert best(Pieces.of(scores), 4).tolist() == [False, True, False, True]
    assert best(Pieces.of(torch.zeros(0)), 3).tolist() == []


@given(weights=tensors(), evidence=tensors(), sparsity=st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=20, deadline=None)
def test_global_movement_keeps_the_best_of_all_also_below_zero(
    weights: dict[str, Tensor], evidence: dict[str, Tensor], sparsity: float
) -> None:
    result = pruned(Movement(sparsity=sparsity, scope="global"), weights, evidence)
    flat = [x for e in evidence.values() for x in e.flatten().tolist()]
    kept = [m for tree in result.values() for m in tree.where.mask().flatten().tolist()]
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[: len(flat) - round(sparsity * len(flat))]
    assert [i for i, k in enumerate(kept) if k] == sorted(order)


def small_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(12, 5)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), x, torch.arange(12) % 3


@pytest.mark.parametrize("form", ["first", "fisher"])
def test_taylor_keeps_what_autograd_says_matters(form: Any) -> None:
    net, x, y = small_net()
    weight = net[0].weight
    grads = [
        torch.autograd.grad(F.cross_entropy(net(a), b), weight)[0] for a, b in zip(x.split(4), y.split(4), strict=True)
    ]
    evidence = {"grad": sum(grads), "grad_sq": sum(g * g for g in grads)}
    w = weight.detach()
    expected = (w * sum(grads)).abs() if form == "first" else w * w * sum(g * g for g in grads)
    source = source_of({"w": w})
    method = Taylor(sparsity=0.6, form=form)
    tree = apply_plan(plan_method(method, source, {"w": evidence}), source)["w"]  # type: ignore[dict-item]
    assert isinstance(tree, Masked)
    assert sorted(expected.flatten().topk(8).indices.tolist()) == tree.where.positions().tolist()
    # To first order the score is the change of the loss when the weight alone moves towards zero.
    if form == "first":
        step = torch.zeros_like(w)
        step[1, 2] = 1e-3 * w[1, 2]
        with torch.no_grad():
            before = sum(F.cross_entropy(net(a), b) for a, b in zip(x.split(4), y.split(4), strict=True))
            weight -= step
            after = sum(F.cross_entropy(net(a), b) for a, b in zip(x.split(4), y.split(4), strict=True))
        assert float((before - after).abs() / 1e-3) == pytest.approx(float(expected[1, 2]), rel=2e-2)


@pytest.mark.parametrize("method", [Taylor(sparsity=0.5), Movement(sparsity=0.5)], ids=lambda m: type(m).__name__)
def test_a_score_without_its_evidence_is_refused_by_name(method: Budgeted) -> None:
    with pytest.raises(DataError, match=f"w: found no '{next(iter(method.needs))}' evidence"):
        one(method, torch.randn(3, 4))


@pytest.mark.parametrize("bad", [{"grad": torch.ones(5)}, {"grad": torch.full((3, 4), float("nan"))}])
def test_evidence_that_does_not_fit_is_refused(bad: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match="w: found"):
        Taylor(sparsity=0.5).select(site_of("w", (3, 4)), Dense(torch.randn(3, 4)), 3, bad)


def test_random_is_the_same_whatever_else_drew_numbers_and_differs_by_seed_and_name() -> None:
    w = torch.ones(20, 30)
    first = one(Random(sparsity=0.5, seed=4), w)
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(first.to_dense(), one(Random(sparsity=0.5, seed=4), w).to_dense())
    assert not torch.equal(first.to_dense(), one(Random(sparsity=0.5, seed=5), w).to_dense())
    a, b = uniform(4, "a", torch.arange(9).numpy()), uniform(4, "b", torch.arange(9).numpy())
    assert not torch.equal(a, b)
    assert torch.equal(uniform(4, "a", torch.arange(5, 9).numpy()), a[5:])
    draws = uniform(0, "many", torch.arange(1 << 16).numpy()).double()
    assert 0 <= float(draws.min()) <= float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 5 * (1 / 12) ** 0.5 / 256  # five standard errors
    harder = one(Random(sparsity=0.8, seed=4), w)
    assert not bool(((harder.to_dense() != 0) & (first.to_dense() == 0)).any())


@given(st.lists(values, min_size=12, max_size=12), st.sampled_from([0.0, 0.5, 0.7, 1.0, 2.0]), st.booleans())
def test_hard_threshold_keeps_exactly_what_reaches_it(numbers: list[float], threshold: float, relative: bool) -> None:
    w = torch.tensor(numbers).view(3, 4)
    cut = threshold * (float(w.double().std(correction=0)) if relative else 1.0)
    method = HardThreshold(threshold=threshold, relative=relative)
    tree = pruned(method, {"w": w}, {"w": w})["w"]
    assert torch.equal(tree.where.mask(), w.abs().double() >= cut)


def test_a_hard_threshold_between_two_floats_is_not_rounded_down() -> None:
    w = torch.tensor([[0.1, 0.3]])  # 0.1 as float32 is a hair above the decimal 0.1
    assert one(HardThreshold(threshold=0.1), w).to_dense().count_nonzero() == 2
    assert one(HardThreshold(threshold=float(w[0, 0]) + 1e-12), w).to_dense().count_nonzero() == 1


def test_erk_densities_are_the_capped_and_rescaled_formula() -> None:
    shapes = {"conv1": (8, 3, 3, 3), "conv2": (16, 8, 3, 3), "fc": (10, 400), "out": (5, 10)}
    weights = {n: torch.randn(s) for n, s in shapes.items()}
    for kernel, scope in ((True, "erk"), (False, "er")):
        keep = planned_entries(Magnitude(sparsity=0.6, scope=scope), weights, weights)  # type: ignore[arg-type]
        sizes = {n: w.numel() for n, w in weights.items()}
        wanted = sum(sizes.values()) - round(0.6 * sum(sizes.values()))
        assert sum(keep.values()) == wanted
        full: set[str] = set()
        while True:  # the loop of the paper's code, in other words: cap what would exceed 1, raise the rest
            rest = wanted - sum(sizes[n] for n in full)
            raw = {n: erdos_renyi(s, kernel=kernel) for n, s in shapes.items() if n not in full}
            scale = rest / sum(raw[n] * sizes[n] for n in raw)
            over = {n for n in raw if scale * raw[n] > 1}
            if not over:
                break
            full |= over
        assert full  # the case is in the test
        for n in shapes:
            expected = sizes[n] if n in full else scale * raw[n] * sizes[n]
            assert abs(keep[n] - expected) < 1
    assert erdos_renyi((16, 8, 3, 3), kernel=True) == pytest.approx((16 + 8 + 3 + 3) / (16 * 8 * 9))
    assert erdos_renyi((16, 8, 3, 3), kernel=False) == pytest.approx((16 + 8) / (16 * 8))


def test_lamp_keeps_what_the_formula_ranks_highest() -> None:
    torch.manual_seed(2)
    weights = {"a": torch.randn(6, 7), "b": torch.randn(3, 4) * 0.1, "c": torch.randn(20, 9)}
    scores = {}
    for n, w in weights.items():
        flat = w.flatten().double()
        scores[n] = [float(x * x / flat[flat.abs() >= x.abs()].square().sum()) for x in flat]
    every = sorted((-s, n) for n, found in scores.items() for s in found)
    total = len(every)
    expected = {n: sum(1 for _, m in every[: total - round(0.8 * total)] if m == n) for n in weights}
    assert planned_entries(Magnitude(sparsity=0.8, scope="lamp"), weights, weights) == expected


def test_sensitivity_spends_where_the_loss_rises_least_per_weight() -> None:
    weights = {"flat": torch.randn(10, 10), "steep": torch.randn(10, 10)}
    curves = Sensitivity((("flat", ((0.5, 0.1), (1.0, 2.0))), ("steep", ((0.5, 1.0), (1.0, 9.0)))))
    keep = {}
    for sparsity in (0.2, 0.25, 0.5, 0.6):
        keep[sparsity] = planned_entries(Magnitude(sparsity=sparsity, scope=curves), weights, weights)
    # Slopes per weight: flat 0.002 then 0.038, steep 0.02 then 0.16: flat to 50, steep to 50, flat to 0.
    assert keep[0.2] == {"flat": 60, "steep": 100}
    assert keep[0.25] == {"flat": 50, "steep": 100}
    assert keep[0.5] == {"flat": 50, "steep": 50}
    assert keep[0.6] == {"flat": 30, "steep": 50}


@given(st.lists(st.lists(st.floats(0, 4), min_size=3, max_size=3), min_size=2, max_size=2), st.integers(0, 12))
@settings(max_examples=30, deadline=None)
def test_sensitivity_is_no_worse_than_any_division_of_convex_curves(rises: list[list[float]], removed: int) -> None:
    curves = []
    for name, rise in zip("ab", rises, strict=True):
        slopes = sorted(rise)  # convex
        curves.append((name, tuple((i / 3, sum(slopes[:i])) for i in range(4))))
    scope = Sensitivity(tuple(curves))  # type: ignore[arg-type]
    weights = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    keep = planned_entries(Magnitude(sparsity=removed / 12, scope=scope), weights, weights)

    def loss(name: str, gone: int) -> float:
        points = dict(curves)[name]
        i = min(gone // 2, 2)
        return points[i][1] + (gone / 2 - i) * (points[i + 1][1] - points[i][1])

    found = loss("a", 6 - keep["a"]) + loss("b", 6 - keep["b"])
    least = min(loss("a", k) + loss("b", removed - k) for k in range(7) if 0 <= removed - k <= 6)
    assert sum(keep.values()) == 12 - removed
    assert found == pytest.approx(least, abs=1e-6)


def test_sensitivity_asked_for_more_than_was_measured_says_so() -> None:
    curves = Sensitivity((("w", ((0.5, 0.1), (0.7, 2.0))),))
    with pytest.raises(PlanError, match=r"up to sparsity 0\.7"):
        planned_on(Magnitude(sparsity=0.9, scope=curves), {"w": torch.randn(5, 8)})
    with pytest.raises(PlanError, match="no curve of 'v'"):
        planned_on(Magnitude(sparsity=0.5, scope=curves), {"v": torch.randn(5, 8)})


@pytest.mark.parametrize("scope", ["uniform", "global", "lamp", "erk"])
@pytest.mark.parametrize("structure", [Unstructured(), Block(2, 2)], ids=["weights", "blocks"])
def test_bytes_are_filled_up_to_less_than_a_unit_per_tensor(scope: Any, structure: Structure) -> None:
    torch.manual_seed(3)
    weights = {n: torch.randn(s) for n, s in SHAPES.items()}
    result = pruned(Magnitude(budget_bytes=120, scope=scope, structure=structure), weights, weights)
    size = sum(tree.size_bits() for tree in result.values())
    largest = sum(structure.size(s) * 32 for s in SHAPES.values())
    assert 120 * 8 - largest < size <= 120 * 8
    with pytest.raises(PlanError, match="expected at least"):
        planned_on(Magnitude(budget_bytes=1, scope=scope), weights)


def test_macs_count_the_uses_of_each_weight() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert dict(uses_of(net, torch.zeros(7, 2, 6, 6))) == {"0.weight": 36, "2.weight": 1}
    method = Magnitude(macs=0.3, scope="global").bind(net, torch.zeros(7, 2, 6, 6))
    weights = {"0.weight": net[0].weight.detach(), "2.weight": net[2].weight.detach()}
    keep = planned_entries(method, weights, weights)  # type: ignore[arg-type]
    full = 36 * 72 + 720
    assert 0.3 * full - 36 < 36 * keep["0.weight"] + keep["2.weight"] <= 0.3 * full
    with pytest.raises(PlanError, match="no example inputs"):
        planned_on(Magnitude(macs=0.3).bind(net, None), weights)  # type: ignore[arg-type]
    # A recurrent layer uses its weights once per step.
    assert dict(uses_of(nn.GRU(3, 4, batch_first=True), torch.zeros(2, 5, 3)))["weight_ih_l0"] == 5


@pytest.mark.parametrize("scope", ["uniform", "global", "erk"])
def test_milliseconds_stay_within_what_the_table_says(scope: Any) -> None:
    torch.manual_seed(4)
    weights = {"a": torch.randn(20, 30), "b": torch.randn(10, 10)}
    table = LatencyTable((("a", ((0.1, 1.0), (0.4, 4.0), (1.0, 3.0))), ("b", ((0.5, 0.5), (1.0, 0.6)))))
    keep = planned_entries(Magnitude(ms=2.0, latency=table, scope=scope), weights, weights)
    spent = sum(float(table.ms(n, torch.tensor(keep[n] / w.numel()))) for n, w in weights.items())
    assert 1.9 < spent <= 2.0 + 1e-9
    assert float(table.ms("a", torch.tensor(0.4))) == 3.0  # zeros can be multiplied with
    with pytest.raises(PlanError, match="no measurement of 'z'"):
        table.ms("z", torch.tensor(0.5))


@pytest.mark.parametrize("budget", [{"budget_bytes": 300}, {"ms": 1.0}, {"macs": 0.2}], ids=lambda b: next(iter(b)))
def test_other_budgets_have_a_ramp_too(budget: dict[str, Any]) -> None:
    w = torch.randn(20, 20)
    extra: dict[str, Any] = {"latency": LatencyTable((("w", ((0.0, 0.0), (1.0, 4.0))),))} if "ms" in budget else {}
    method = Magnitude(scope="global", weight_uses=(("w", 3),), **budget, **extra)
    kept = [planned_entries(method.at(p), {"w": w}, {"w": w})["w"] for p in (0.0, 0.3, 0.6, 1.0)]  # type: ignore[arg-type]
    assert kept[0] == 400
    assert sorted(kept, reverse=True) == kept
    assert kept[-1] == planned_entries(method, {"w": w}, {"w": w})["w"] < kept[-2]


def test_n_of_m_with_signed_scores_keeps_the_n_best_of_each_group() -> None:
    evidence = torch.tensor([[-1.0, -2.0, -3.0, -0.5, 1.0, 2.0, -1.0, 0.0]])
    tree = pruned(Movement(structure=NofM(2, 4)), {"w": torch.ones(1, 8)}, {"w": evidence})["w"]
    assert tree.where.positions().tolist() == [0, 3, 4, 5]


def test_kernels_are_shared_out_by_the_sparsity_of_all_weights() -> None:
    torch.manual_seed(5)
    w = torch.randn(6, 4, 3, 3)
    tree = pruned(Magnitude(sparsity=0.8, structure=KernelPattern(4, 6)), {"w": w}, {"w": w})["w"]
    assert tree.where.positions().numel() == (216 - round(0.8 * 216)) // 4 * 4
