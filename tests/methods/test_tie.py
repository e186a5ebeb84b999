"""Tied layers: the correction is the best of its rank, and the tie outlives training, files and later methods."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from methods.harness import planned_on, result_on
from torch import Tensor, nn

import gossamer as gs
from gossamer.drive import Tune, run
from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import State
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Dense, Encoding, LowRank, Masked, Sum
from gossamer.errors import CompositionError, PlanError
from gossamer.measure import ledger_of
from gossamer.methods.base import Method
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans, Tie
from gossamer.network import attached

PAIR = (("a.weight", "b.weight"),)


def twins() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = OrderedDict(a=nn.Linear(12, 12), b=nn.Linear(12, 12), c=nn.Linear(12, 3))
        model = nn.Sequential(layers)
        with torch.no_grad():
            layers["b"].weight.copy_(layers["a"].weight + 0.1 * layers["b"].weight)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 12, generator=random), torch.randint(3, (16,), generator=random)) for _ in range(6)]


def shared_part(trees: dict[str, Encoding], corrected: bool) -> tuple[Encoding, Encoding]:
    """What is shared, as the first and as the second layer hold it."""
    return trees["a.weight"], trees["b.weight"].at("/terms.0") if corrected else trees["b.weight"]


def leaves(node: Encoding) -> list[int]:
    return [id(leaf.tensor) for leaf in node.leaves()]


@pytest.mark.parametrize("rank", range(4))
def test_the_second_is_the_first_plus_the_best_correction_of_its_rank(rank: int) -> None:
    a = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    b = a + torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    result = result_on(Tie(pairs=(("a", "b"),), rank=rank), {"a": a, "b": b})
    if rank == 0:
        assert result["a"] is result["b"]
        torch.testing.assert_close(result["a"].to_dense(), (a + b) / 2)
        return
    assert torch.equal(result["a"].to_dense(), a)
    second = result["b"]
    assert isinstance(second, Sum)
    assert second.terms[0] is result["a"]
    u, s, v = torch.linalg.svd(b - a)
    torch.testing.assert_close(second.to_dense(), a + u[:, :rank] * s[:rank] @ v[:rank], atol=1e-5, rtol=1e-4)


def test_similar_layers_are_found_closest_first_and_once() -> None:
    def noisy(w: Tensor, amount: float, seed: int) -> Tensor:
        return w + amount * torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))

    w, other = (torch.randn(40, 50, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    weights = {"w": w, "far": noisy(w, 0.3, 2), "near": noisy(w, 0.1, 3), "other": other, "copy": other.clone()}
    weights["wide"] = torch.randn(50, 40)
    planned = planned_on(Tie(threshold=0.5), weights)
    assert {step.targets for step in planned.plan.steps} == {("other", "copy"), ("w", "near")}
    assert set(planned.skipped) == {"far", "wide"}
    with pytest.raises(CompositionError, match="found no layer like it"):
        planned_on(Tie(threshold=0.05), {"w": w, "near": weights["near"]})


def test_the_distance_of_found_pairs_is_estimated_to_a_few_percent() -> None:
    method = Tie(threshold=1.0)
    for seed in range(5):
        a, b = (torch.randn(60, 70, generator=torch.Generator().manual_seed(10 * seed + i)) for i in (0, 1))
        b = a + 0.2 * b
        true = float((a - b).norm() / (a.square().sum() + b.square().sum()).sqrt())
        for factor, taken in ((0.9, False), (1.1, True)):
            try:
                steps = planned_on(Tie(threshold=factor * true), {"a": a, "b": b}).plan.steps
            except CompositionError:
                steps = ()
            assert bool(steps) == taken
    assert method.observes


def test_pairs_that_cannot_be_tied_are_refused_by_name() -> None:
    weights = {"a": torch.ones(4, 5), "b": torch.ones(5, 4), "h": torch.ones(4, 5).half()}
    with pytest.raises(PlanError, match=r"Tie: b: found \(5, 4\) torch.float32, expected \(4, 5\)"):
        planned_on(Tie(pairs=(("a", "b"),)), weights)
    with pytest.raises(PlanError, match=r"Tie: h: found \(4, 5\) torch.float16"):
        planned_on(Tie(pairs=(("a", "h"),)), weights)
    with pytest.raises(PlanError, match="no weight of its own for \\['x'\\]"):
        planned_on(Tie(pairs=(("a", "x"),)), weights)
    with pytest.raises(CompositionError, match="rank 3 would take 27 numbers, the weight itself has 20"):
        planned_on(Tie(pairs=(("a", "b"),), rank=3), weights)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_tie_is_one_parameter_in_training_and_one_weight_afterwards(rank: int) -> None:
    state = run(twins(), [Tie(pairs=PAIR, rank=rank)])
    network = state.network()
    holders = attached(network)
    first, second = shared_part({n: h.tree for n, h in holders.items()}, rank > 0)
    assert leaves(first) == leaves(second)
    expected = 12 * 12 + rank * 24 + 12 + 12 + 12 * 3 + 3
    assert sum(p.numel() for p in network.parameters()) == expected
    before = first.to_dense().detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    inputs, targets = batches()[0]
    torch.nn.functional.cross_entropy(network(inputs), targets).backward()
    optimizer.step()
    state.take(network)
    first, second = shared_part(state.trees, rank > 0)
    assert first is second
    assert not torch.equal(first.to_dense(), before)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_tie_is_stored_once_and_still_tied_when_loaded(rank: int, tmp_path: Path) -> None:
    small = gs.compress(twins(), [Tie(pairs=PAIR, rank=rank)])
    small.save(tmp_path / "tied.gsm")
    again = gs.load(tmp_path / "tied.gsm", into=twins)
    first, second = shared_part(dict(again.trees), rank > 0)
    assert first is second
    for (name, a), b in zip(small.dense().named_parameters(), again.dense().parameters(), strict=True):
        assert torch.equal(a, b), name
    accounts = {t.name: t for t in ledger_of(tmp_path / "tied.gsm", zstd=False).tensors}
    assert accounts["a.weight"].file_bytes > 400
    assert accounts["b.weight"].file_bytes < 2 * 24 * 4 + 40 if rank else accounts["b.weight"].file_bytes == 0


STEPS: list[Method] = [
    Magnitude(sparsity=0.5),
    RoundToNearest(bits=4),
    KMeans(bits=3),
    Magnitude(sparsity=0.5, scope="global"),
]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("step", STEPS, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'scope', '')}")
@pytest.mark.parametrize("trained", [False, True])
def test_a_later_method_changes_what_is_shared_once_and_keeps_the_tie(step: Method, rank: int, trained: bool) -> None:
    tuned = [Tune(epochs=1, lr=1e-2)] if trained else []
    recipe = [Tie(pairs=PAIR, rank=rank), *tuned, step, *tuned]
    state = run(twins(), recipe, data=batches())
    first, second = shared_part(state.trees, rank > 0)
    assert leaves(first) == leaves(second)
    assert not isinstance(first, Dense)
    targets = [t for plan in state.plans[1:] for s in plan["steps"] for t in s["targets"]]
    assert "a.weight" in targets
    assert "b.weight" not in targets
    assert "b.weight#/terms.0" not in targets
    if isinstance(step, Magnitude) and step.scope == "uniform":
        assert isinstance(first, Masked)
        assert first.value.dense_shape() == (72,)  # half of 144: pruned once, not half of the half


def test_a_tie_survives_state_dicts_which_make_new_nodes() -> None:
    state = run(twins(), [Tie(pairs=PAIR, rank=2)])
    network = state.network()
    network.load_state_dict(network.state_dict())
    state.take(network)
    after = run_on(state, Magnitude(sparsity=0.5))
    first, second = shared_part(after, True)
    assert leaves(first) == leaves(second)


def run_on(state: State, method: Method) -> dict[str, Encoding]:
    from gossamer.drive.one_shot import apply_plan, plan_method

    planned = plan_method(method, state.source())
    return state.trees | apply_plan(planned, state.source())


def test_equal_layers_that_are_not_tied_are_planned_one_by_one() -> None:
    w = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    planned = planned_on(Magnitude(sparsity=0.5), {"a": w, "b": w.clone()})
    assert {t for step in planned.plan.steps for t in step.targets} == {"a", "b"}
    tied = planned_on(Magnitude(sparsity=0.5), {"a": w, "b": w})
    assert {t for step in tied.plan.steps for t in step.targets} == {"a"}


def test_gradual_pruning_moves_a_tied_weight_once_with_its_optimizer_state() -> None:
    gradual = Gradual(methods=(Magnitude(sparsity=0.75),), tune=Tune(epochs=4, lr=1e-2), updates=4, ramp=0.5)
    state = run(twins(), [Tie(pairs=PAIR, rank=2), gradual], data=batches())
    first, second = shared_part(state.trees, True)
    assert leaves(first) == leaves(second)
    assert isinstance(first, Masked)
    assert first.value.dense_shape() == (36,)
    correction = state.trees["b.weight"].at("/terms.1")
    assert isinstance(correction, LowRank)
    assert isinstance(correction.u, Masked)


def test_pairs_survive_a_recipe_file() -> None:
    recipe = [Tie(pairs=PAIR, rank=2), Tie(threshold=0.25)]
    assert parse_recipe([{"share.Tie": {"pairs": [["a.weight", "b.weight"]], "rank": 2}}]) == recipe[:1]
    import yaml

    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
