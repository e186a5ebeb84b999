"""What `benchmarks.coding_rate` compares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.coding_rate import RACES, interpolated, merged, summary
from benchmarks.zoo.lite0 import Block


def points(method: str, at: dict[float, int], seconds: float) -> list[dict[str, object]]:
    known = {"method": method, "metric": "cosine", "decode_s": seconds}
    return [{**known, "value": value, "file_bytes": size} for value, size in at.items()]


def test_between_points_the_logarithm_of_bytes_is_linear() -> None:
    curve = points("gossamer", {0.8: 100, 1.0: 400}, 1.0)
    assert interpolated(curve, 0.9) == pytest.approx(200)
    assert interpolated(curve, 0.8) == pytest.approx(100)


def test_nothing_is_said_beyond_the_points() -> None:
    curve = points("gossamer", {0.8: 100, 0.9: 400}, 1.0)
    assert interpolated(curve, 0.7) is None
    assert interpolated(curve, 0.95) is None


def test_ratios_are_those_at_the_same_metric() -> None:
    race = RACES[1]
    low, high = race.goals
    both = points("nncodec", {low: 1000, high: 2000}, 3.0) + points("gossamer", {low: 900, high: 1000}, 0.5)
    rows = {(r["method"], r["value"]): r for r in summary(race, both, count=4000)}
    assert rows["gossamer", low]["of_nncodec"] == pytest.approx(0.9)
    assert rows["gossamer", high]["of_nncodec"] == pytest.approx(0.5)
    assert rows["gossamer", high]["decode_speed"] == pytest.approx(6.0)
    assert rows["nncodec", high]["bits_per_weight"] == pytest.approx(4.0)


def test_a_merged_block_computes_what_it_did() -> None:
    torch.manual_seed(0)
    block = Block(8, 8, 3, 1, 6).eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2.0)
    made = merged(copy.deepcopy(block))
    x = torch.randn(2, 8, 10, 10)
    with torch.inference_mode():
        assert torch.allclose(made(x), block(x), atol=1e-4)
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        assert all(bool((t == t[0]).all()) for t in (norm.running_mean, norm.running_var))
