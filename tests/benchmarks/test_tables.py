"""Tables in the documentation from the rows of the benchmarks."""

from pathlib import Path
from typing import Any

from benchmarks import tables


def _row(network: str, setting: str, metric: str = "accuracy") -> dict[str, Any]:
    measured = {"file_bytes": 1000, "dense_bytes": 8000, "value": 0.9, "dense_value": 0.91}
    times = {"latency_ms": 1.0, "dense_latency_ms": 2.0, "latency_ms_64": 3.0, "dense_latency_ms_64": 4.0}
    label = {"network": network, "method": "Preset", "setting": setting, "family": "composed", "breaking": False}
    return {**label, **measured, **times, "metric": metric}


def test_presets_are_listed_by_network_and_in_the_order_of_their_names_in_the_documentation() -> None:
    rows = [_row("g2p", "small", "phoneme-error"), _row("LeNet-5", "fast"), _row("LeNet-5", "small")]
    lines = tables._presets(rows)["presets"].splitlines()[2:]
    assert lines[0] == "| LeNet-5 | small | 1,000 | 8.0x | 91.00% → 90.00% | +1.00 | 0.50 | 0.75 |"
    assert [line.split(" | ")[1] for line in lines] == ["small", "fast", "small"]
    assert "errors | -1.00" in lines[2]


def test_a_benchmark_that_was_not_run_yet_has_no_rows_and_no_table(tmp_path: Path) -> None:
    rows = tables._rows_of(tmp_path / "families.json")
    assert tables._presets(rows) == tables._families(rows) == {}
    document = tables.ROOT / "docs" / "presets.md"
    assert "<!-- presets -->\n" in document.read_text(encoding="utf-8")


def test_training_steps_stand_beside_dense_ones_and_runs_have_means_over_seeds() -> None:
    step = {"network": "mlp", "sparsity": 0.9, "threads": 1, "ms": 20.0, "dense_ms": 100.0, "sparselab_ms": None}
    sizes = {"state_bytes": 1, "dense_state_bytes": 8, "peak_bytes": 3, "dense_peak_bytes": 4}
    assert tables._training({"steps": [step | sizes], "runs": []}) == {
        "training_steps": "| network | zeros | threads | ours, ms | dense PyTorch | SparseLab | speed-up | state |"
        " peak memory |\n"
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        "| mlp | 90% | 1 | **20** | 100 | – | **5.0x** | 0.125 | 0.75 |\n"
    }


def _run(method: str, sparsity: float, seed: int, accuracy: float) -> dict[str, Any]:
    dense = {"dense_accuracy": 0.90 + 0.02 * seed, "dense_train_accuracy": 0.98}
    run = {"network": "conv", "method": method, "sparsity": sparsity, "seed": seed, "accuracy": accuracy}
    return run | dense | {"train_accuracy": accuracy + 0.01, "seconds": 10.0}


def test_runs_become_accuracy_over_sparsity_beside_the_dense_line_with_standard_errors_and_gaps() -> None:
    rows = [_run("rigl", 0.9, 0, 0.88), _run("rigl", 0.9, 1, 0.92), _run("rigl", 0.95, 0, 0.87)]
    rows += [_run("set", 0.9, 0, 0.86), _run("set", 0.9, 1, 0.901)]
    found = tables._training({"steps": [], "runs": rows})
    lines = found["training_runs"].splitlines()
    assert lines[0] == "| test accuracy, %, at zeros of | 90% | 95% |"
    assert lines[2:] == [
        "| dense | 91.00 ± 1.00 | 91.00 ± 1.00 |",
        "| rigl | 90.00 ± 2.00 | 87.00 |",
        "| set | 88.05 ± 2.05 | – |",
    ]
    assert found["training_gaps"].splitlines()[2:4] == [
        "| dense | 98.00 (+7.00) | 98.00 (+7.00) |",
        "| rigl | 91.00 (+1.00) | 88.00 (+1.00) |",
    ]
    # Of the same seeds; in italics where it may be chance.
    assert found["training_order"].splitlines()[2:] == ["| rigl − set | +1.95 ± 0.05 | – |"]
    rows[-1]["accuracy"] = 0.96
    assert tables._training_runs(rows)["training_order"].splitlines()[2] == "| rigl − set | *-1.00 ± 3.00* | – |"


def test_times_to_the_goal_are_medians_and_a_seed_that_never_reached_it_is_not_left_out() -> None:
    time = {"goal": 0.91, "dense_seconds": 50.0, "step_ratio": 0.25}
    rows = [_run("rigl", 0.9, seed, 0.92) | time | {"seconds": 18.0 + seed} for seed in range(3)]
    (line,) = tables._training_times(rows)["training_times"].splitlines()[2:]
    assert line == "| conv | rigl | 90% | 3 | 92.00 ± 0.00 | 92.00 ± 1.15 | 91.00 | 19 | 50 | **0.38** | 0.25 |"
    rows[0]["seconds"] = None
    (line,) = tables._training_times(rows)["training_times"].splitlines()[2:]
    assert line.endswith("| 91.00 | not all seeds | 50 | – | 0.25 |")


def test_every_metric_of_a_recipe_stands_in_its_line_beside_that_of_the_dense_network() -> None:
    row = {"network": "smollm2", "method": "gptq", "setting": "4-bit g128", "file_bytes": 1000, "dense_bytes": 4500}
    row |= {
        "latency_ms": 100.0,
        "dense_latency_ms": 98.76,
        "samples": 64,
        "seconds": 432.1,
        "peak_rss_bytes": 3_000_000,
        "rss_before_bytes": 1_000_000,
    }
    years = [{"metric": f"perplexity-{y}", "value": v, "dense_value": 23.7} for y, v in ((1996, 25.0), (2010, 26.123))]
    last = tables._pretrained([row | year for year in years])["pretrained"].splitlines()[-1]
    measured = "perplexity-1996 25 (23.7); perplexity-2010 26.12 (23.7)"
    assert last == f"| smollm2 | gptq | 4-bit g128 | {measured} | 1,000 | 4.5x | 100 (98.8) | 64 | 432 | 2 |"
