"""The benchmark of training measures what it says, without peers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import training, training_search
from benchmarks.rows import Rows
from benchmarks.training_methods import METHODS
from benchmarks.training_networks import NETWORKS, Decoder, conv_net, mlp, replaced, sparse_layers
from benchmarks.training_recipes import TRAINED, Recipe, Trained
from benchmarks.training_runs import Run, finished, trained, with_dense
from benchmarks.training_steps import StepSetting, step_rows
from benchmarks.training_worker import RELAXED, built, state_bytes, stepper
from gossamer.demo.data import load_fashion
from gossamer.nn import SparseLinear
from gossamer.train.from_dense import relaxed

COLUMNS = "network sparsity threads batch ms dense_ms sparselab_ms peak_bytes dense_peak_bytes"
RUN_COLUMNS = "network method sparsity seed accuracy train_accuracy seconds dense_accuracy dense_train_accuracy"
RUN_COLUMNS += " dense_seconds dense_phase"


def test_step_rows_have_every_column_of_the_issue_and_real_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training_steps._LEAST", 1)
    setting = StepSetting("mlp-784-2048-2048-2048-10", 1, (0.9,), ("dense",), 0.0)
    (row,) = step_rows(setting, None)
    assert set(COLUMNS.split()) <= set(row)
    assert row["ms"] > 0 and row["dense_ms"] > 0 and row["sparselab_ms"] is None
    assert row["missing"] == {"sparselab 0.9": "no folder of peers given"}
    weights = 784 * 2048 + 2 * 2048**2 + 2048 * 10
    assert row["dense_state_bytes"] == 2 * 4 * (weights + 3 * 2048 + 10)
    assert row["state_bytes"] < 0.2 * row["dense_state_bytes"]
    assert row["peak_bytes"] > 2 * row["state_bytes"]
    assert row["speed_up"] == pytest.approx(row["dense_ms"] / row["ms"], rel=1e-2)


@pytest.mark.parametrize("name", RELAXED)
def test_methods_with_a_dense_phase_step_in_the_worker(name: str) -> None:
    real = NETWORKS["mlp-784-2048-2048-2048-10"]
    network = replace(real, make=lambda: mlp(784, 16, 10), batch=4)
    model, _ = built(name, network, 0.9)
    assert relaxed(model)
    step, _ = stepper(name, network, model)
    before = [w.detach().clone() for _, w in relaxed(model).values()]
    step()
    assert any(not torch.equal(a, w) for a, (_, w) in zip(before, relaxed(model).values(), strict=True))


def test_the_same_layers_are_sparse_in_every_contender() -> None:
    for network in NETWORKS.values():
        with torch.device("meta"):
            model = network.make()
        names = [name for name, _ in sparse_layers(model, network.dense)]
        assert names and not set(names) & set(network.dense)
        assert all(model.get_submodule(name) for name in network.dense)
    decoder = Decoder(8, 2, 2, 6, vocabulary=11)
    assert len(list(sparse_layers(decoder, ()))) == 2 * 4 + 1
    assert decoder(torch.randint(11, (3, 6))).shape == (3, 11, 6)
    assert conv_net(4, 8)(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_state_counts_positions_gradients_and_the_optimisers_tensors() -> None:
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[:, :3] = True
    model = replaced(mlp(20, 10), (), lambda layer: SparseLinear.of(layer, mask))  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(2, 20)).sum().backward()
    optimizer.step()
    live = 30
    assert state_bytes(model, optimizer) == 4 * 4 * (live + 10) + 4 * live + 2 * 4  # two counters of steps


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    def make() -> nn.Sequential:
        return mlp(784, 32, 10)

    def adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, rate)

    recipe = Recipe(adam, 2e-3, 1)
    monkeypatch.setitem(TRAINED, "small", Trained(make, 100, recipe, recipe))  # type: ignore[arg-type]
    return "small"


@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_runs_learn_and_have_the_sparsity_that_was_asked_for(small: str, method: str) -> None:
    before = torch.get_num_threads()
    try:
        found = trained(Run(small, method, 0.8, 0, 1, True, None), load_fashion())
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    assert found["accuracy"] > 0.6 and found["train_accuracy"] > 0.6
    assert found["steps"] == 100 and found["curve"][-1] == [found["total_seconds"], found["accuracy"]]
    dense = 784 * 32 + 320
    assert found["weights"] == dense
    if method == "dense":
        assert found["live"] == dense and found["dense_phase"] == 1.0
    else:
        assert found["live"] == pytest.approx(0.2 * dense, rel=0.1)
        assert (found["dense_phase"] > 0) == (method in ("magnitude-gradual", "random-pruning"))


def result(accuracy: float, seconds: float, curve: list[list[float]]) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "train_accuracy": 0.95,
        "total_seconds": seconds,
        "steps": 10,
        "curve": curve,
        "dense_phase": 0.0,
        "mean_density": 0.1,
        "live": 1,
        "weights": 10,
    }


def test_times_are_those_at_which_the_dense_accuracy_less_a_margin_was_first_reached() -> None:
    def run(method: str, seed: int, looks: bool = True) -> Run:
        return Run("mlp", method, 0.9, seed, 2, looks, None)

    results = [
        (run("dense", 0), result(0.90, 100.0, [[50.0, 0.85], [80.0, 0.8975], [100.0, 0.90]])),
        (run("dense", 1), result(0.90, 110.0, [[60.0, 0.898], [110.0, 0.90]])),
        (run("rigl", 0), result(0.91, 30.0, [[10.0, 0.88], [20.0, 0.8971], [30.0, 0.91]])),
        (run("rigl", 2), result(0.89, 30.0, [[30.0, 0.89]])),
    ]
    first, second = with_dense(results)
    assert set(RUN_COLUMNS.split()) <= set(first)
    assert (first["seconds"], first["dense_seconds"], first["goal"]) == (20.0, 70.0, pytest.approx(0.897))
    assert first["step_ratio"] == pytest.approx(30 / 105, abs=1e-3)
    assert second["seconds"] is None and second["dense_accuracy"] == 0.90
    whole = with_dense([(run("dense", 0, False), results[0][1]), (run("set", 0, False), results[2][1])])
    assert (whole[0]["seconds"], whole[0]["dense_seconds"]) == (30.0, 100.0) and "goal" not in whole[0]


def test_dense_accuracy_is_that_of_its_best_schedule_and_dense_time_that_of_its_fastest() -> None:
    def dense(seed: int, share: float) -> Run:
        return Run("mlp", "dense", 0.0, seed, 2, True, None, share)

    long = [(dense(s, 1.0), result(0.900, 100.0, [[90.0, 0.899], [100.0, 0.900]])) for s in range(3)]
    short = [(dense(s, 0.5), result(0.898, 50.0, [[48.0 + s, 0.898]]) | {"steps": 5}) for s in range(3)]
    ours = (Run("mlp", "rigl", 0.9, 0, 2, True, None), result(0.899, 20.0, [[20.0, 0.899]]))
    (row,) = with_dense([*short, *long, ours])
    assert row["dense_accuracy"] == 0.900 and row["goal"] == pytest.approx(0.897)
    assert (row["dense_seconds"], row["dense_steps"], row["dense_total_seconds"]) == (49.0, 5, 100.0)
    # A schedule most of whose seeds do not get there is not the one that does.
    for _, found in short[:2]:
        found["curve"] = [[50.0, 0.896]]
    (row,) = with_dense([*short, *long, ours])
    assert (row["dense_seconds"], row["dense_steps"]) == (90.0, 10)


def test_full_layers_that_stay_dense_count_among_the_live_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:  # Erdős–Rényi leaves the first convolution full at 80%
        found = trained(Run("conv-16-32-128", "static", 0.8, 0, 1, False, None, 0.1), load_fashion())
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    assert found["live"] == pytest.approx(0.2 * found["weights"], rel=2e-3)


def test_finished_runs_are_kept_and_late_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rows.ROOT", tmp_path)
    kept, run = Rows("test", "code"), Run("conv-16-32-128", "nothing", 0.9, 0, 1, False, None)
    assert finished([run], kept, 0.0, 1) == ([], [run.key], {})
    kept.get(run.key, lambda: result(0.8, 1.0, []))
    found, late, failed = finished([run], kept, 0.0, 1)
    assert (found, late, failed) == ([(run, result(0.8, 1.0, []))], [], {})


def test_the_full_plan_has_what_the_issue_asks_for() -> None:
    plan = training.full(None)
    assert {(s.network, s.threads) for s in plan.steps} == {(n, t) for n in NETWORKS for t in (1, 2)}
    timed = [(r.method, r.share, r.seed) for r in plan.timed if r.method != "dense_bf16"]
    assert sorted(timed) == sorted(
        (m, share, s) for m, share in (("rigl", 1.0), ("dense", 1.0), ("dense", 0.6)) for s in range(3)
    )
    seeds = {(r.method, r.sparsity): 0 for r in plan.side_by_side}
    for run in plan.side_by_side:
        seeds[run.method, run.sparsity] += 1
    assert all(seeds[m, s] == 5 for m in METHODS for s in (0.95, 0.98))
    assert all(seeds[m, s] == 1 for m in METHODS for s in (0.5, 0.8, 0.9, 0.99))
    assert len({r.key for r in plan.side_by_side}) == len(plan.side_by_side)


def test_a_folder_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "--peers", "/nowhere"])
    with pytest.raises(SystemExit):
        training.main()
    assert "--peers: found no folder /nowhere" in capsys.readouterr().err
    assert json.dumps(training.measure(training.Plan((), (), (), ()), None, "test_empty", 0.0))


def test_recipes_are_searched_without_the_test_images_and_compared_at_the_best_dense_one() -> None:
    data = load_fashion()
    held = training_search.split(data)
    assert len(held.train) == len(held.train_labels) == len(data.train) - 5000
    assert torch.equal(held.test, data.train[-5000:]) and torch.equal(held.test_labels, data.train_labels[-5000:])
    assert {method for method, _ in training_search.candidates()} == {"rigl", "dense"}
    rows = [
        {"name": "a", "method": "dense", "accuracy": 0.90, "train_accuracy": 0.95, "curve": [[80.0, 0.898]]},
        {"name": "b", "method": "dense", "accuracy": 0.89, "train_accuracy": 0.95, "curve": [[50.0, 0.897]]},
        {"name": "c", "method": "rigl", "accuracy": 0.89, "train_accuracy": 0.92, "curve": [[9.0, 0.8], [20.0, 0.897]]},
        {"name": "d", "method": "rigl", "accuracy": 0.88, "train_accuracy": 0.92, "curve": [[20.0, 0.88]]},
    ]
    assert training_search.summary(rows)[2:] == [
        "b: 89.00% (train 95.00%); goal: 50.0 s, 1.00 of dense",
        "c: 89.00% (train 92.00%); goal: 20.0 s, 0.40 of dense",
        "d: 88.00% (train 92.00%); goal: never",
    ]
