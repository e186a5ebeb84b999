"""The runtime benchmark measures what it says, without peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import runtime
from benchmarks.runtime_layers import layer_row
from benchmarks.runtime_networks import NETWORKS, Encoder, EncoderSize, prune
from benchmarks.runtime_peak import peak
from benchmarks.runtime_rows import Setting, Variant, rows_of

# Every one compiles all its kernels anew, in a folder that starts empty; the others differ in how they prune alone.
VARIANTS = (Variant(0.9, "8-bit values"), Variant(0.5, dtype="bf16"))


def small() -> Encoder:
    return Encoder(EncoderSize(1, 32, 4, 64, "post"), vocabulary=50, positions=20).eval()


def test_rows_have_every_column_of_the_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "small", (small, lambda batch: torch.randint(50, (batch, 12))))
    before = torch.get_num_threads()
    try:
        rows = rows_of(Setting("small", 2, 1, VARIANTS, (0.9,), 0.05), None)
    finally:
        torch.set_num_threads(before)
    wanted = "network sparsity batch threads dtype format ms torch_ms onnxruntime_ms openvino_ms deepsparse_ms"
    wanted += " openvino_bf16_ms onnxruntime_int8_ms resident_weight_bytes dense_weight_bytes lower_cold_s lower_warm_s"
    assert [row["sparsity"] for row in rows] == [v.sparsity for v in VARIANTS]
    assert [row["format"] for row in rows] == [v.form for v in VARIANTS]
    for row in rows:
        assert set(f"{wanted} max_rel_err".split()) <= set(row)
        assert row["ms"] > 0 and row["torch_ms"] > 0 and row["openvino_ms"] is None
        assert row["missing"]["deepsparse 0.9"] == "no folder of peers given"
        assert row["max_rel_err"] <= (2e-2 if row["dtype"] == "bf16" else 1e-4)
        weights = 4 * 32 * 32 + 2 * 32 * 64
        assert row["dense_weight_bytes"] == (2 if row["dtype"] == "bf16" else 4) * weights
        assert row["speed_up"] == pytest.approx(row["torch_ms"] / row["ms"], rel=1e-2)


def test_the_limit_of_time_names_what_was_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rows.ROOT", tmp_path)
    plan = runtime.Plan((Setting("small", 1, 1, (Variant(0.9),), (), 0.01),), (), (), (1,), 8, 0.0)
    found = runtime.measure(plan, None, "test", minutes=0.0)
    assert found["rows"] == [] and found["not_started"] == ["small-1-1-0.9"]


def test_a_layer_is_compared_with_the_peak() -> None:
    before = torch.get_num_threads()
    try:
        row = layer_row((64, 96), 0.5, 0.01)
    finally:
        torch.set_num_threads(before)
    assert row["shape"] == [64, 96] and row["gflops"] > 0 and row["fraction_of_peak"] > 0


def test_the_peak_is_a_number_of_finite_sums() -> None:
    assert peak().gflops(1000) > 0
    assert np.isfinite(peak()._numbers).all()


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_pruning_zeroes_that_share_of_every_weight(sparsity: float, rows: int) -> None:
    network = prune(torch.nn.Sequential(torch.nn.Linear(40, 48), torch.nn.Linear(48, 10)), sparsity, rows=rows)
    first, last = network[0].weight, network[1].weight  # type: ignore[index]
    assert float((first == 0).float().mean()) == pytest.approx(sparsity, abs=2e-3)
    assert ((first == 0).view(-1, rows, 40).float().mean(dim=1) % 1 == 0).all()  # blocks as a whole
    assert int(last.count_nonzero()) == last.numel()
