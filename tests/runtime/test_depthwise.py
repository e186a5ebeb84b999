"""Depthwise convolutions agree with float64 on planes and on blocks, and stand between sparse layers without planes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from runtime.exactness import error
from torch import Tensor, fx, nn

import gossamer as gs
from gossamer.jit.cpu import Level, Processor, host, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.conv_tiles import FromTiles, IntoTiles
from gossamer.runtime.depthwise import PlaneDepthwise, TiledDepthwise
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.kernels import DEPTHWISE
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import openmp

LEVELS = levels()
FUNCTIONS: dict[Activation, nn.Module] = {
    Activation.NONE: nn.Identity(),
    Activation.RELU: nn.ReLU(),
    Activation.RELU6: nn.ReLU6(),
    Activation.SILU: nn.SiLU(),
    Activation.GELU: nn.GELU(),
}


def made(layer: nn.Conv2d, activation: Activation, level: Level = "native") -> PlaneDepthwise:
    assert PlaneDepthwise.takes(layer)
    return PlaneDepthwise.of(layer, activation, host(level), openmp(), Slabs())


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_depthwise_convolution_agrees_with_float64(level: Level, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel = data.draw(st.sampled_from([(3, 3), (5, 5), pair(1, 7)]))
    padding, stride = pair(0, 4), data.draw(st.integers(1, 2))
    size = tuple(max(1, k - 2 * p) + more for k, p, more in zip(kernel, padding, pair(0, 40), strict=True))
    channels, multiple, images = (data.draw(st.integers(1, n)) for n in (9, 3, 3))
    activation = data.draw(st.sampled_from(list(FUNCTIONS)))
    torch.manual_seed(data.draw(st.integers(0, 1 << 20)))
    layer = nn.Conv2d(
        channels, channels * multiple, kernel, stride, padding, groups=channels, bias=data.draw(st.booleans())
    ).eval()
    planes = made(layer, activation, level)
    x = torch.randn(images, channels, *size)
    with torch.inference_mode():
        expected = FUNCTIONS[activation](copy.deepcopy(layer).double()(x.double()))
        for _ in range(2):  # the second time in scratch that has been used
            assert error(planes(x), expected) <= 1e-5
            blocks = IntoTiles(host(level).lanes, Slabs())(x)
            assert error(FromTiles(Slabs())(TiledDepthwise(planes)(blocks)), expected) <= 1e-5


def test_what_is_not_a_number_reaches_the_windows_that_see_it_and_no_others() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, groups=2).eval()
    x = torch.randn(2, 2, 11, 13)
    x[0, 1, 4, 5], x[1, 0, 0, 12] = float("nan"), float("inf")
    with torch.inference_mode():
        y, expected = made(layer, Activation.RELU6)(x), torch.relu(layer(x)).clamp(max=6)
    assert torch.equal(y.isnan(), expected.isnan()) and int(y.isnan().sum()) == 9
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    planes = made(nn.Conv2d(70, 70, 3, padding=1, groups=70).eval(), Activation.RELU)
    x = torch.randn(3, 70, 40, 44)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(planes(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], one) for one in found)


def test_what_the_kernel_cannot_do_stays_with_pytorch() -> None:
    for layer in (
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, stride=3),
        nn.Conv2d(4, 4, 3, groups=4, stride=(1, 2)),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv2d(4, 4, 11, groups=4, padding=5),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4).double(),
        nn.Conv1d(4, 4, 3, groups=4),
    ):
        assert not PlaneDepthwise.takes(layer)
    planes = made(nn.Conv2d(4, 4, 3, groups=4).eval(), Activation.NONE)
    for wrong in (torch.randn(1, 4, 2, 9), torch.randn(1, 3, 9, 9), torch.randn(1, 4, 9, 9).double()):
        with pytest.raises(RuntimeError, match="depthwise: found"):
            planes(wrong)


class Inverted(nn.Module):
    """Two blocks as in MobileNetV2, with few weights left in what is pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(self._block(16, 24, 2), self._block(24, 24, 1))

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        inner = 4 * inputs
        convolutions = (
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.Conv2d(inner, outputs, 1, bias=False),
        )
        for layer in convolutions[::2]:
            layer.weight.data *= torch.rand_like(layer.weight) < 0.15
        parts: list[nn.Module] = []
        for layer in convolutions:
            parts += [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU6(inplace=True)]
        return nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        out: Tensor = x + self.blocks[1](x)
        return out


def test_a_network_keeps_its_blocks_through_depthwise_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    model = Inverted().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    fast = gs.lower(model, torch.randn(2, 3, 64, 64))  # type: ignore[operator]
    assert fast.captured is not None
    graph = next(m for m in fast.captured.modules() if isinstance(m, fx.GraphModule)).graph
    called = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    assert sum(isinstance(m, TiledDepthwise) for m in fast.modules()) == 2
    assert sum("from_tiles" in name for name in called) == 1
    for shape in ((2, 3, 64, 64), (1, 3, 30, 44), (5, 3, 64, 64)):
        x = torch.randn(shape)
        with torch.inference_mode():
            assert error(fast(x), copy.deepcopy(model).double()(x.double())) <= 1e-5


def test_kernels_for_arm_have_vector_instructions() -> None:
    text = assembly(Processor.neon(), DEPTHWISE)
    assert "fmla" in text and ".4s" in text
