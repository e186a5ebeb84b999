"""The runtime benchmark measures what it says, without peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import runtime
from benchmarks.runtime_networks import Encoder, EncoderSize, prune
from benchmarks.runtime_peak import peak


def test_a_row_has_every_column_of_the_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> Encoder:
        return Encoder(EncoderSize(1, 32, 4, 64, "post"), vocabulary=50, positions=20).eval()

    monkeypatch.setitem(runtime.NETWORKS, "small", (small, lambda batch: torch.randint(50, (batch, 12))))
    network = prune(small(), 0.9)
    before = torch.get_num_threads()
    try:
        row = runtime.network_row("small", 0.9, 2, 1, network, None, 0.05)
    finally:
        torch.set_num_threads(before)
    wanted = "network sparsity batch threads dtype format ms torch_ms onnxruntime_ms openvino_ms deepsparse_ms"
    wanted += " openvino_bf16_ms onnxruntime_int8_ms resident_weight_bytes dense_weight_bytes lower_cold_s lower_warm_s"
    assert set(f"{wanted} max_rel_err".split()) <= set(row)
    assert row["ms"] > 0 and row["torch_ms"] > 0 and row["openvino_ms"] is None
    assert row["max_rel_err"] <= 1e-4
    assert row["dense_weight_bytes"] == 4 * (4 * 32 * 32 + 2 * 32 * 64)
    assert row["speed_up"] == pytest.approx(row["torch_ms"] / row["ms"], abs=1e-3)


def test_a_layer_is_compared_with_the_peak() -> None:
    before = torch.get_num_threads()
    try:
        row = runtime.layer_row((64, 96), 0.5, 0.01)
    finally:
        torch.set_num_threads(before)
    assert row["shape"] == [64, 96] and row["gflops"] > 0 and row["fraction_of_peak"] > 0


def test_the_peak_is_a_number_of_finite_sums() -> None:
    assert peak().gflops(1000) > 0
    assert np.isfinite(peak()._numbers).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_pruning_zeroes_that_share_of_every_weight(sparsity: float) -> None:
    network = prune(torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.Linear(50, 10)), sparsity)
    first, last = network[0].weight, network[1].weight  # type: ignore[index]
    assert float((first == 0).float().mean()) == pytest.approx(sparsity, abs=1e-3)
    assert int(last.count_nonzero()) == last.numel()
