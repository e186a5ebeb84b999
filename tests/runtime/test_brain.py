"""Networks in bfloat16: kernels compute in float32, and round where rows are read and written."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from torch import Tensor, nn

import gossamer as gs
from gossamer.jit.cpu import Level, levels
from gossamer.runtime.graph import feature_major
from gossamer.runtime.group_code import Way
from gossamer.runtime.linear import SparseLinear
from gossamer.runtime.tiled import GroupedLinear, Tiles, tiler
from gossamer.runtime.value_code import Stored

LEVELS = levels()


def sparse(rows: int, columns: int, density: float = 0.2) -> Tensor:
    return (torch.randn(rows, columns) * (torch.rand(rows, columns) < density)).bfloat16()


@pytest.mark.parametrize("level", LEVELS)
def test_every_float32_rounds_as_pytorch_rounds_it(level: Level) -> None:
    operations = tiler(level)
    bits = torch.randint(-(1 << 31), 1 << 31, (40, 512), dtype=torch.int64).to(torch.int32)
    bits[0, :6] = torch.tensor([0x7F800000, 0x7F800001, 0x7FFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000])
    bits[1] = bits[1] & -65536 | 0x8000  # ties
    x = bits.view(torch.float32)
    packed = operations.pack(x)
    y = operations.unpack(Tiles(packed.data, packed.outer, packed.tokens, torch.bfloat16))
    assert y.dtype is torch.bfloat16
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], x.bfloat16()[~x.isnan()])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    outer=st.sampled_from([(), (1,), (7,), (64,), (65,), (2, 3), (3, 40), (2, 0)]),
    features=st.integers(1, 70),
)
def test_packing_and_unpacking_change_nothing(level: Level, outer: tuple[int, ...], features: int) -> None:
    x = torch.randn(*outer, features).bfloat16()
    packed = tiler(level).pack(x)
    assert packed.data.dtype is torch.float32 and packed.dtype is torch.bfloat16
    assert torch.equal(tiler(level).unpack(packed), x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stored", [Stored.FLOATS, Stored.BFLOATS])
@pytest.mark.parametrize("way", Way)
def test_layers_are_rounded_once_at_their_end(level: Level, stored: Stored, way: Way) -> None:
    weight, bias, x = sparse(137, 90), torch.randn(137).bfloat16(), torch.randn(3, 21, 90).bfloat16()
    y = GroupedLinear(weight, bias, way, stored=stored, level=level)(x)
    exact = x.double() @ weight.double().T + bias.double()
    assert y.dtype is torch.bfloat16 and y.shape == (3, 21, 137)
    assert bool(((y - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all())


def test_a_layer_by_rows_is_rounded_once_at_its_end() -> None:
    weight, x = sparse(60, 90), torch.randn(5, 90).bfloat16()
    positions = weight.flatten().nonzero().flatten()
    layer = SparseLinear((60, 90), positions, weight.flatten()[positions].float(), None, dtype=torch.bfloat16)
    exact = x.double() @ weight.double().T
    assert layer(x).dtype is torch.bfloat16
    assert bool(((layer(x) - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all())


def test_other_dtypes_than_the_weights_are_refused() -> None:
    layer = GroupedLinear(sparse(30, 50), None, Way.SLICED)
    with pytest.raises(RuntimeError, match=r"found input \(5, 50\) torch.float32 .* expected .* torch.bfloat16"):
        layer(torch.randn(5, 50))
    with pytest.raises(RuntimeError, match=r"torch.bfloat16 .* expected .* torch.float32"):
        GroupedLinear(sparse(30, 50).float(), None, Way.SLICED)(torch.randn(5, 50).bfloat16())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.mixed = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.wide, self.back = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = (y.view(b, t, 4, width // 4).transpose(1, 2) for y in (self.query(x), self.key(x), self.query(x)))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
        x = x + self.mixed(attended)
        return x + self.back(nn.functional.gelu(self.wide(self.norm(x))))


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Block(96), Block(96), nn.Linear(96, 8)).eval().requires_grad_(False)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= torch.rand_like(module.weight) < 0.2
    return model


def largest_error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_a_network_in_bfloat16_is_lowered_and_agrees_with_float64(
    level: Level, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", level)
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    model = blocks().bfloat16()
    x = torch.randn(2, tokens, 96).bfloat16()
    exact = copy.deepcopy(model).double()(x.double())
    fast = gs.lower(model, x)  # type: ignore[operator]
    assert all(choice.kernel != "dense" for choice in fast.explain())
    assert fast(x).dtype is torch.bfloat16
    assert largest_error(fast(x), exact) <= 2e-2


def test_a_feature_major_network_in_bfloat16_rounds_less_often_than_pytorch() -> None:
    model, x = blocks().bfloat16(), torch.randn(2, 64, 96).bfloat16()
    exact = copy.deepcopy(model).double()(x.double())
    lowered = copy.deepcopy(model)
    for name, layer in list(lowered.named_modules()):
        if isinstance(layer, nn.Linear):
            owner, _, key = name.rpartition(".")
            setattr(lowered.get_submodule(owner), key, GroupedLinear(layer.weight, layer.bias, Way.SLICED))
    made = feature_major(lowered, (x,), tiler())
    assert not isinstance(made, str) and made.changes == 2 and made.norms == 2
    assert len(made.linears) == 13 and made.attentions == 2
    with torch.inference_mode():
        y = made.network(x)
        assert y.dtype is torch.bfloat16
        assert largest_error(y, exact) <= 0.5 * largest_error(model(x), exact) + 2.0**-8
