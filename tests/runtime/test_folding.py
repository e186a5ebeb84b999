"""Folded norms, fused sums and activations leave what a network computes as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from runtime.clocks import sparse_wins
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.runtime.conv_layout import TiledConv
from gossamer.runtime.folding import fold_norms
from gossamer.runtime.graph import Either
from gossamer.runtime.pooling import TiledPool


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int, stride: int, *, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * inner:
            self.down = nn.Sequential(nn.Conv2d(channels, 4 * inner, 1, stride), nn.BatchNorm2d(4 * inner))
        self.relu = nn.ReLU(inplace=in_place)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu6(self.bn2(self.conv2(y)))))
        y += self.down(x)
        out: Tensor = self.relu(y)
        return out


def residual_network(*, in_place: bool) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=in_place),
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(16, 8, 1, in_place=in_place),
        Bottleneck(32, 8, 1, in_place=in_place),
        Bottleneck(32, 8, 1, in_place=in_place),
        Bottleneck(32, 12, 2, in_place=in_place),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
            if isinstance(module, nn.Conv2d) and module.in_channels > 3:
                module.weight *= torch.rand_like(module.weight) < 0.2
    return net.eval()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_residual_network_is_fused_as_a_whole(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    net = residual_network(in_place=in_place)
    kept = copy.deepcopy(net.state_dict())
    fast = gs.lower(net, torch.randn(1, 3, 20, 20))  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), net.state_dict().values(), strict=True))
    assert isinstance(fast.captured, Either)
    called = [
        fast.captured.captured.get_submodule(str(node.target))
        for node in fast.captured.captured.graph.nodes
        if node.op == "call_module"
    ]
    assert sum(isinstance(module, TiledConv) for module in called) == 15  # the stem is among them
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Identity)) for module in called)
    assert not any(isinstance(module, nn.ReLU) for module in called)
    assert sum(isinstance(module, TiledPool) for module in called) == 1
    functions = [node for node in fast.captured.captured.graph.nodes if node.op == "call_function"]
    assert not functions
    for shape in [(1, 3, 20, 20), (3, 3, 33, 47)]:
        x = torch.randn(shape)
        with torch.inference_mode():
            exact = copy.deepcopy(net).double()(x.double())
            assert float((fast(x) - exact).abs().max() / exact.abs().max()) <= 1e-4


class Reads(nn.Module):
    """Norms that must stay: one of two readers, one shared, one whose convolution's weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.na, self.nb, self.nd = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.nb(self.b(x)) + self.nb(self.c(x))
        out: Tensor = self.na(a) + a + b + self.nd(self.d(x)) * self.d.weight.sum()
        return out


def test_norms_that_others_depend_on_are_not_folded() -> None:
    net = Reads().eval()
    assert fold_norms(net, (torch.randn(1, 3, 4, 4),), frozenset()) == ()


def test_a_network_that_cannot_be_traced_runs_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return F.relu(y) if float(y.sum()) > -1e30 else y

    net = Branches().eval()
    with torch.no_grad():
        net.conv.weight *= torch.rand_like(net.conv.weight) < 0.2
    x = torch.randn(2, 8, 9, 9)
    fast = gs.lower(net, x)  # type: ignore[operator]
    assert fast.explain()[0].kernel != "dense"
    with torch.inference_mode():
        exact = copy.deepcopy(net).double()(x.double())
        assert float((fast(x) - exact).abs().max() / exact.abs().max()) <= 1e-5
