"""What `lower` offers for a weight: smaller values where they hold it exactly, blocks where rows share columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.encoding import Dense
from gossamer.measure.latency import Timing
from gossamer.methods.base import Method
from gossamer.runtime.candidates import fastest, in_blocks, offers_for


def masked(mask: Tensor) -> nn.Linear:
    layer = nn.Linear(mask.shape[1], mask.shape[0]).requires_grad_(False)
    layer.weight *= mask
    return layer


def offers(layer: nn.Linear) -> set[str]:
    density = int(layer.weight.count_nonzero()) / layer.weight.numel()
    x = torch.randn(40, layer.in_features, dtype=layer.weight.dtype)
    return set(offers_for(layer, Dense(layer.weight), density, x, jit=True))


def smaller_wins(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, Timing]:
    """Stands for the clock: smaller values are a little slower, everything else sparse is fastest."""
    del seconds
    times = {name: 3.0 if name == "dense" else 1.04 if "bit" in name or "indices" in name else 1.0 for name in calls}
    return {name: Timing(ms, ms, ms, 5) for name, ms in times.items()}


def test_smaller_values_are_taken_if_they_are_within_a_twentieth_of_the_fastest() -> None:
    assert fastest({"dense": 3.0, "sliced": 1.0, "sliced, 8-bit values": 1.04}) == "sliced, 8-bit values"
    assert fastest({"dense": 3.0, "sliced": 1.0, "sliced, 8-bit values": 1.06}) == "sliced"
    assert fastest({"dense": 1.0, "sliced, 16-bit values": 2.0}) == "dense"


@pytest.mark.parametrize(
    ("recipe", "kind", "most"),
    [
        ([gs.quantize.RoundToNearest(bits=8)], "8-bit values", 0.09),
        ([gs.quantize.RoundToNearest(bits=4, group=64)], "8-bit values by 64 columns", 0.09),
        ([gs.share.KMeans(bits=4)], "indices of 32 values", 0.09),
        ([gs.share.KMeans(bits=7)], "indices of 256 values", 0.09),
        ([gs.quantize.Cast(dtype="float8_e4m3fn")], "indices of 32 values", 0.09),
        ([gs.quantize.Cast(dtype="bfloat16")], "16-bit values", 0.1),
    ],
)
def test_a_compressed_network_runs_on_the_values_that_it_stores(
    recipe: list[Method], kind: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", smaller_wins)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    compressed = gs.compress(model, [gs.prune.Magnitude(sparsity=0.9), *recipe])
    x = torch.randn(40, 256)
    fast = compressed.lower(x)
    for choice in fast.explain():
        assert choice.kernel.endswith(kind) and choice.bytes <= most * choice.dense_bytes
    with torch.inference_mode():
        exact = compressed.dense().double()(x.double())
        assert float((fast(x) - exact).abs().max() / exact.abs().max()) <= 1e-5


def test_blocks_of_four_rows_are_seen_and_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    rows, columns = 128, 96
    blocks = (torch.rand(rows // 4, columns) < 0.05).repeat_interleave(4, 0)
    free = torch.rand(rows, columns) < 0.05
    assert in_blocks(masked(blocks).weight) and not in_blocks(masked(free).weight)
    assert not in_blocks(torch.zeros(8, 5)) and not in_blocks(torch.ones(3, 5))
    assert "blocks" in offers(masked(blocks)) and "patterns" not in offers(masked(blocks))
    assert not offers(masked(free)) & {"blocks", "patterns"}
    assert "patterns" in offers(masked(torch.rand(rows, columns) < 0.4))
    assert "blocks" in offers(masked((torch.rand(rows // 4, columns) < 0.7).repeat_interleave(4, 0)))
    assert offers(masked(torch.rand(rows, columns) < 0.7)) == {"dense"}


def test_blocks_of_four_output_channels_are_seen_in_convolutions() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3, padding=1).requires_grad_(False)
    layer.weight *= (torch.rand(16, 32, 3, 3) < 0.08).repeat_interleave(4, 0)
    names = set(offers_for(layer, Dense(layer.weight), 0.08, torch.randn(1, 32, 14, 14), jit=True))
    assert "planes by blocks" in names and "planes by patterns" not in names


def test_layers_in_bfloat16_are_offered_values_of_16_bits() -> None:
    torch.manual_seed(0)
    names = offers(masked(torch.rand(64, 96) < 0.1).bfloat16())
    assert {"dense", "sparse", "sliced", "sliced, 16-bit values"} <= names
    assert offers(masked(torch.rand(64, 96) < 0.1).double()) == {"dense"}
