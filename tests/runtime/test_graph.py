"""Networks become feature-major where they can, and compute the same for any batch and length."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from runtime.clocks import tiles_win
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from benchmarks.runtime_networks import Encoder, EncoderSize, prune
from gossamer.measure.latency import Timing
from gossamer.runtime.attention import TiledAttention
from gossamer.runtime.graph import FeatureMajor, feature_major
from gossamer.runtime.group_code import Way
from gossamer.runtime.lower import Lowered
from gossamer.runtime.tiled import GroupedLinear, tiler


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", tiles_win)


def lowered(model: nn.Module, *inputs: Any) -> Lowered:
    made: Lowered = gs.lower(model, inputs)  # type: ignore[operator]
    return made


def encoder(norm: Literal["pre", "post"]) -> Encoder:
    torch.manual_seed(0)
    size = EncoderSize(layers=2, hidden=64, heads=4, inner=160, norm=norm)
    model = Encoder(size, vocabulary=50, positions=40).eval()
    prune(model, 0.8)
    return model


def prune_matrices(model: nn.Module) -> None:
    """Four in five weights of every matrix, whichever module holds it."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data[parameter.data.abs() < parameter.data.abs().quantile(0.8)] = 0


def grouped(model: nn.Module) -> nn.Module:
    """All Linear layers on grouped rows."""
    model = copy.deepcopy(model).eval()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, GroupedLinear(layer.weight, layer.bias, Way.SLICED))
    return model


def captured(model: nn.Module, *inputs: Any) -> FeatureMajor:
    made = feature_major(grouped(model), inputs, tiler())
    assert isinstance(made, FeatureMajor), made
    return made


def assert_same(found: Tensor, model: nn.Module, *inputs: Any) -> None:
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    assert found.shape == exact.shape
    assert float((found - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_whole_encoder_is_feature_major_for_any_batch_and_length(norm: Literal["pre", "post"]) -> None:
    model = encoder(norm)
    fast = lowered(model, torch.randint(50, (1, 20)))
    choices = fast.explain()
    assert len(choices) == 12 and {c.layout for c in choices} == {"feature-major"}
    for shape in ((1, 20), (1, 1), (3, 40), (7, 5)):
        tokens = torch.randint(50, shape)
        assert_same(fast(tokens), model, tokens)
    copied = copy.deepcopy(fast)
    assert torch.equal(copied(tokens), fast(tokens))


@pytest.mark.parametrize(("norm", "norms"), [("post", 5), ("pre", 4)])
def test_layouts_change_only_at_the_edges(norm: Literal["pre", "post"], norms: int) -> None:
    made = captured(encoder(norm), torch.randint(50, (2, 20)))
    assert len(made.linears) == 12
    assert made.norms == norms
    assert made.fused == 2 * 3  # per block: GELU, and two sums
    assert made.attentions == 2
    assert made.changes == 2  # embeddings in, result out


class Chain(nn.Module):
    """Shapes of code that fusion must see through, or leave alone."""

    def __init__(self, forward: Callable[[Chain, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(30, 30), nn.Linear(30, 30)
        self.norm, self.act, self.hasty = nn.LayerNorm(30), nn.SiLU(), nn.ReLU(inplace=True)
        self.body = forward
        prune(self, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def in_place_sum(m: Chain, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(y)
    y += z
    return y * z


def reused_in_place(m: Chain, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.hasty(y)
    return m.b(z) + y


def view_in_place(m: Chain, x: Tensor) -> Tensor:
    y = m.a(x)
    y.view(-1).relu_()
    return m.b(y)


def later_residual(m: Chain, x: Tensor) -> Tensor:
    y = m.a(x)
    return y + m.b(m.norm(x))


BODIES: dict[str, Callable[[Chain, Tensor], Tensor]] = {
    "two layers": lambda m, x: m.b(m.a(x)),
    "an activation between": lambda m, x: m.b(m.act(m.a(x))),
    "GELU by tanh": lambda m, x: m.b(F.gelu(m.a(x), approximate="tanh")),
    "an activation that is read twice": lambda m, x: m.b(y := m.act(m.a(x))) + y,
    "a layer that is read twice": lambda m, x: m.b(F.relu(y := m.a(x))) + y,
    "a sum of a value with itself": lambda m, x: (y := m.a(x)) + y,
    "a residual before an activation": lambda m, x: m.act(m.a(x) + x),
    "a residual after an activation": lambda m, x: m.b(m.act(m.a(x)) + x),
    "one layer twice": lambda m, x: m.a(F.relu(m.a(x))),
    "a residual that comes later": later_residual,
    "the norm's input and output are used": lambda m, x: m.b(m.norm(y := m.a(x)) + y),
    "a sum with a vector": lambda m, x: m.b(m.a(x) + torch.ones(30)),
    "a sum with a number": lambda m, x: m.b(m.a(x) + 1),
    "a sum in place": in_place_sum,
    "an activation in place": lambda m, x: m.b(m.hasty(m.a(x))),
    "rows between": lambda m, x: m.b(m.a(x).softmax(-1)),
    "dropout between": lambda m, x: m.b(F.dropout(m.a(x), 0.5, m.training)),
    "dropout between, by name": lambda m, x: m.b(F.dropout(m.a(x), p=0.5, training=m.training)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_any_order_of_layers_computes_the_same(body: Callable[[Chain, Tensor], Tensor]) -> None:
    model = Chain(body).eval()
    x = torch.randn(3, 7, 30)
    made = captured(model, x)
    with torch.inference_mode():
        assert_same(made.network(x), model, x)
        more = torch.randn(90, 30)
        assert_same(made.network(more), model, more)


@pytest.mark.parametrize("body", [reused_in_place, view_in_place])
def test_what_is_overwritten_and_read_again_is_not_captured(body: Callable[[Chain, Tensor], Tensor]) -> None:
    model = Chain(body).eval()
    x = torch.randn(3, 7, 30)
    reason = feature_major(grouped(model), (x,), tiler())
    assert isinstance(reason, str) and "overwrites a value that may be read again" in reason
    assert_same(lowered(model, x)(x), model, x)


def test_a_sum_that_broadcasts_only_for_other_batches_is_right() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.places = nn.Linear(30, 30), nn.Linear(30, 30), nn.Parameter(torch.randn(1, 7, 30))
            prune(self, 0.7)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x) + self.places)
            return out

    model = Positions().eval()
    made = captured(model, torch.randn(1, 7, 30))
    x = torch.randn(4, 7, 30)
    with torch.inference_mode():
        assert_same(made.network(x), model, x)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(30, 30), nn.Linear(30, 30)
        prune(self, 0.7)

    def forward(self, x: Tensor, mask: Tensor | None = None, deep: bool = True) -> Tensor:
        y: Tensor = self.a(x)
        if mask is not None:
            y = y * mask
        if deep:
            y = self.b(y)
        return y


@pytest.mark.parametrize("example", ["x", "x, mask", "x, None", "x, None, False"])
def test_optional_arguments_may_be_given_or_left_out_later(example: str) -> None:
    model, x, mask = Masked().eval(), torch.randn(5, 30), (torch.rand(5, 30) < 0.5).float()
    calls: dict[str, tuple[Any, ...]] = {
        "x": (x,),
        "x, mask": (x, mask),
        "x, None": (x, None),
        "x, None, False": (x, None, False),
        "x, mask, False": (x, mask, False),
    }
    fast = lowered(model, *calls[example])
    assert {c.layout for c in fast.explain() if c.kernel == "sliced"} == {"feature-major"}
    for inputs in calls.values():
        with torch.inference_mode():
            torch.testing.assert_close(fast(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(30, 30), nn.Linear(30, 30)
        prune(self, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.relu(self.a(x)))
        return y if bool((y > 0).any()) else -y


def test_where_capture_fails_layers_are_replaced_and_the_reason_is_named() -> None:
    model, x = Untraceable().eval(), torch.randn(5, 30)
    fast = lowered(model, x)
    assert all(c.layout.startswith("module replacement: tracing failed: TraceError") for c in fast.explain())
    assert_same(fast(x), model, x)


def test_where_capture_is_slower_layers_are_replaced_and_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_win(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, Timing]:
        times = tiles_win(calls, seconds=seconds)
        return times | {"feature-major": Timing(1.7, 1, 2, 5)} if "feature-major" in calls else times

    monkeypatch.setattr("gossamer.runtime.tuner.raced", rows_win)
    model, x = encoder("post"), torch.randint(50, (1, 20))
    fast = lowered(model, x)
    assert {c.layout for c in fast.explain()} == {"module replacement: measured to be faster"}
    assert_same(fast(x), model, x)


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_encoder_of_pytorch_becomes_feature_major(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, activation="gelu", norm_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False).eval()
    prune_matrices(model)
    x = torch.randn(20, 20, 32)
    fast = lowered(model, x)
    chosen = {c.layer: c.layout for c in fast.explain()}
    assert set(chosen.values()) == {"feature-major"}
    assert {"layers.0.self_attn.q_proj", "layers.1.self_attn.out_proj", "layers.1.linear2"} <= set(chosen)
    assert any(isinstance(m, TiledAttention) for m in fast.modules())
    assert_same(fast(x), model, x)
    for other in (x[:, :3].contiguous(), x[:5, :2].contiguous()):
        assert_same(fast(other), model, other)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, 15:] = True
    with torch.inference_mode():
        torch.testing.assert_close(
            fast(x, src_key_padding_mask=mask), model(x, src_key_padding_mask=mask), rtol=1e-4, atol=1e-5
        )


def test_weights_of_attention_that_nobody_reads_do_not_keep_it_from_tiles() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            mixed, _ = self.attention(y, y, y)
            return x + mixed

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).eval()
    prune_matrices(model)
    x = torch.randn(3, 20, 32)
    fast = lowered(model, x)
    assert sum(isinstance(m, TiledAttention) for m in fast.modules()) == 2
    assert_same(fast(x), model, x)


def test_an_encoder_of_pytorch_keeps_working() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    prune(model, 0.8)
    x = torch.randn(2, 9, 32)
    fast = lowered(nn.Sequential(model), x)
    assert_same(fast(x), nn.Sequential(model), x)
