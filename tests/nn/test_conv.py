"""Convolutions with live values only: the same as a masked dense layer, in every way a training loop uses one."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.layers import conv_of, off
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy
from torch.nn.grad import conv2d_weight

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.jit.cpu import unavailable
from gossamer.nn import SparseConv2d, Topology


def exact_of(layer: SparseConv2d, x: Tensor, dy: Tensor | None) -> tuple[Tensor, ...]:
    """Outputs, and gradients of input, live values and bias, of the masked dense layer in float64."""
    weight = layer.dense_weight().detach().double().requires_grad_()
    bias = layer.bias.detach().double().requires_grad_() if layer.bias is not None else torch.zeros(len(weight))
    x = x.detach().double().requires_grad_()
    y = conv2d(x, weight, bias.double(), layer.stride, layer.padding, layer.dilation)
    y.backward(torch.ones_like(y) if dy is None else dy.double())
    assert x.grad is not None and weight.grad is not None
    nothing = torch.zeros(len(weight)) if bias.grad is None else bias.grad
    return y, x.grad, weight.grad[layer.topology.mask()], nothing


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.tuples(st.integers(1, 33), st.integers(1, 17), st.integers(1, 17)),
    st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)),
    st.booleans(),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_outputs_and_gradients_are_those_of_the_masked_dense_layer(
    shape: tuple[int, int, int, int],
    density: float,
    planes: tuple[int, int, int],
    geometry: tuple[int, int, int],
    bias: bool,
    memory: torch.memory_format,
    seed: int,
) -> None:
    stride, padding, dilation = geometry
    layer = conv_of(shape, density, seed, bias, stride=stride, padding=padding, dilation=dilation)
    size = layer.outputs((planes[1], planes[2]))
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(planes[0], shape[1], *planes[1:], generator=draw).to(memory_format=memory).requires_grad_()
    if min(size) < 1:
        with pytest.raises(RuntimeError, match="expected at least"):
            layer(x)
        return
    dy = torch.randn(planes[0], shape[0], *size, generator=draw).to(memory_format=memory)
    layer(x).backward(dy)
    exact, dx, dvalues, dbias = exact_of(layer, x, dy)
    assert off(layer(x), exact) < 1e-5
    assert off(x.grad, dx) < 1e-5
    # One weight's gradient may cancel: the inputs' scale decides what is exact.
    scale = float(dvalues.abs().max().clamp(min=dy.numel() ** 0.5 / shape[0])) if dvalues.numel() else 1.0
    assert layer.values.grad is not None and torch.allclose(
        layer.values.grad.double(), dvalues, rtol=0, atol=1e-5 * scale
    )
    if layer.bias is not None:
        assert off(layer.bias.grad, dbias) < 1e-5


@pytest.mark.parametrize(("density", "images", "sparse"), [(0.1, 64, True), (0.1, 1, False), (0.9, 64, False)])
def test_kernels_compute_where_they_pay(density: float, images: int, sparse: bool) -> None:
    layer = conv_of((20, 16, 3, 3), density)
    node = layer(torch.randn(images, 16, 6, 6)).grad_fn
    assert node is not None
    assert node.name() == ("_ConvolutionBackward" if sparse and unavailable() is None else "_PlainConvolutionBackward")


def test_inputs_of_any_strides_are_taken(kernels: bool) -> None:
    layer = conv_of((20, 16, 3, 3), 0.3, padding=1)
    x = torch.randn(4, 16, 7, 9)
    exact = exact_of(layer, x, None)
    for strided in (
        x.to(memory_format=torch.channels_last),
        x.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2),
        torch.cat([x, x], dim=3)[..., :9],
        torch.stack([x, x], dim=-1)[..., 0],
    ):
        assert off(layer(strided), exact[0]) < 1e-5
        layer.zero_grad()
        layer(strided).sum().backward()  # a gradient whose elements are all the same one in memory
        assert off(layer.values.grad, exact[2]) < 1e-5
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(torch.ones_like(y))
    assert last.grad is not None and last.grad.is_contiguous(memory_format=torch.channels_last)
    assert off(last.grad, exact[1]) < 1e-5
    assert off(layer(x[0]), exact[0][0]) < 1e-5
    assert layer(x[:0]).shape == (0, 20, 7, 9)


def test_a_layer_that_is_used_twice_sums_its_gradients(kernels: bool) -> None:
    layer, x = conv_of((16, 16, 3, 3), 0.3, padding=1), torch.randn(5, 16, 6, 6)
    layer(layer(x).relu()).sum().backward()
    weight, bias = layer.dense_weight().detach().double().requires_grad_(), layer.bias
    assert bias is not None
    inner = conv2d(x.double(), weight, bias.detach().double(), padding=1).relu()
    conv2d(inner, weight, bias.detach().double(), padding=1).sum().backward()
    assert weight.grad is not None
    assert off(layer.values.grad, weight.grad[layer.topology.mask()]) < 1e-5


def test_under_autocast_arithmetic_is_float32(kernels: bool) -> None:
    layer, x = conv_of((20, 16, 3, 3), 0.3), torch.randn(5, 16, 6, 6).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.float32
    assert off(y, exact_of(layer, x.float(), None)[0]) < 1e-5
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.bfloat16
    assert layer.values.grad is not None and layer.values.grad.dtype is torch.float32


def test_gradients_of_double_precision_are_exact() -> None:
    layer = conv_of((3, 2, 3, 3), 0.5, stride=2, padding=1).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v, b: torch.func.functional_call(layer, {"values": v, "bias": b}, (x,)),
                                    (x, layer.values, layer.bias))  # fmt: skip


def test_training_with_all_weights_live_is_dense_training(kernels: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip
    sparse = copy.deepcopy(dense)
    for i, module in enumerate(sparse):
        if isinstance(module, nn.Conv2d):
            sparse[i] = SparseConv2d.of(module, torch.ones_like(module.weight, dtype=torch.bool))
    x, labels = torch.randn(32, 3, 8, 8), torch.randint(5, (32,))
    for net in (dense, sparse):
        optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            cross_entropy(net(x), labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    assert off(sparse(x), dense(x).double()) < 1e-3


def test_a_new_topology_computes_with_the_new_weights(kernels: bool) -> None:
    layer, x = conv_of((20, 16, 3, 3), 0.3), torch.randn(8, 16, 6, 6)
    parameter = layer.values
    for density in (0.3, 0.1, 0.6):
        layer(x).sum().backward()
        topology = Topology.of_mask(torch.rand(20, 16, 3, 3) < density)
        layer.set_topology(topology, torch.randn(topology.live))
        assert layer.values is parameter and parameter.grad is None
        assert off(layer(x), exact_of(layer, x, None)[0]) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_a_watched_step_finds_the_largest_gradients_of_dead_weights(kernels: bool, stride: int) -> None:
    layer = conv_of((20, 16, 3, 3), 0.2, stride=stride, padding=1)
    x, size = torch.randn(2, 9, 16, 8, 8), layer.outputs((8, 8))
    dy = torch.randn(2, 9, 20, *size)
    layer.watch(30)
    for one, gradient in zip(x, dy, strict=True):
        layer(one).backward(gradient)
    dense = sum(conv2d_weight(a.double(), [20, 16, 3, 3], b.double(), stride, 1) for a, b in zip(x, dy, strict=True))
    assert isinstance(dense, Tensor)
    flat = dense.masked_fill(layer.topology.mask(), 0).reshape(-1)
    best = flat.abs().topk(30).indices
    found = layer.dead_gradient()
    assert found is not None
    assert set(found[0].tolist()) == set(best.tolist())
    assert off(found[1], flat[found[0].long()]) < 1e-5
    assert not layer.watching


def test_the_dense_layer_and_back(kernels: bool) -> None:
    conv = nn.Conv2d(6, 10, (3, 5), (2, 1), "valid", 1)
    mask = torch.rand(conv.weight.shape) < 0.4
    layer = SparseConv2d.of(conv, mask)
    x = torch.randn(3, 6, 9, 9)
    back = layer.to_conv()
    torch.testing.assert_close(layer(x), back(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(back.weight, conv.weight * mask)
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))
    other = SparseConv2d(6, 10, (3, 5), (2, 1), topology=Topology.of_mask(~mask))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    same = nn.Conv2d(6, 10, 3, padding="same", dilation=2)
    sparse = SparseConv2d.of(same, torch.ones_like(same.weight, dtype=torch.bool))
    torch.testing.assert_close(sparse(x), same(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), "opposite sides"),
    ],
)
def test_what_it_cannot_do_is_refused(conv: nn.Conv2d, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        SparseConv2d.of(conv, torch.ones_like(conv.weight, dtype=torch.bool))


def test_sizes_that_do_not_fit_are_named() -> None:
    layer = conv_of((4, 3, 3, 3), 0.5)
    with pytest.raises(RuntimeError, match=r"found input \(1, 2, 5, 5\), expected \[N, 3"):
        layer(torch.zeros(1, 2, 5, 5))
    with pytest.raises(PlanError, match="stride"):
        gs.nn.SparseConv2d(3, 4, 3, 0, topology=layer.topology)
    with pytest.raises(PlanError, match="found topology"):
        gs.nn.SparseConv2d(3, 4, 5, topology=layer.topology)
