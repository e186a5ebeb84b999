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
    run = {"network": "mlp", "method": "rigl", "sparsity": 0.9, "train_accuracy": 0.95, "seconds": 10.0}
    runs = [run | {"accuracy": value} for value in (0.88, 0.92)]
    line = tables._training({"steps": [], "runs": runs})["training_runs"].splitlines()[2]
    assert line == "| mlp | rigl | 90% | 2 | 90.00% ± 2.00% | 5.00% | 10 |"
