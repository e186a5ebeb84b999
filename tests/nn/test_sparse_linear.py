"""Linear layers with live values only: the same as a masked dense layer, in every way a training loop uses one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.layers import linear_of, off
from torch import nn
from torch.nn.functional import cross_entropy, linear

import gossamer as gs
from gossamer.nn import SparseLinear, Topology


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 80)),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.lists(st.integers(0, 9), max_size=3),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_outputs_and_gradients_are_those_of_the_masked_dense_layer(
    shape: tuple[int, int], density: float, leading: list[int], bias: bool, seed: int
) -> None:
    layer = linear_of(shape, density, seed, bias)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, shape[1], generator=draw, requires_grad=True)
    dy = torch.randn(*leading, shape[0], generator=draw)
    layer(x).backward(dy)
    weight = layer.dense_weight().detach().double().requires_grad_()
    offset = layer.bias.detach().double().requires_grad_() if layer.bias is not None else None
    exact_x = x.detach().double().requires_grad_()
    exact = linear(exact_x, weight, offset)
    exact.backward(dy.double())
    assert weight.grad is not None
    assert off(layer(x), exact) < 1e-5
    assert off(x.grad, exact_x.grad) < 1e-5
    assert off(layer.values.grad, weight.grad[layer.topology.mask()]) < 1e-5
    if layer.bias is not None and offset is not None:
        assert off(layer.bias.grad, offset.grad) < 1e-5


def test_inputs_of_any_strides_are_taken(kernels: bool) -> None:
    layer = linear_of((20, 30), 0.3)
    x = torch.randn(4, 7, 30)
    exact = linear(x, layer.dense_weight(), layer.bias)
    for strided in (
        x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        torch.stack([x, x], dim=-1)[..., 0],
        torch.cat([x, x], dim=-1)[..., :30],
    ):
        torch.testing.assert_close(layer(strided), exact, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()  # a gradient whose elements are all the same one in memory
    assert off(layer.bias.grad if layer.bias is not None else None, torch.full((20,), 28.0).double()) < 1e-6


def test_a_layer_that_is_used_twice_sums_its_gradients(kernels: bool) -> None:
    layer, x = linear_of((30, 30), 0.3), torch.randn(5, 30)
    layer(layer(x).relu()).sum().backward()
    weight = layer.dense_weight().detach().double().requires_grad_()
    assert layer.bias is not None
    inner = linear(x.double(), weight, layer.bias.detach().double()).relu()
    linear(inner, weight, layer.bias.detach().double()).sum().backward()
    assert weight.grad is not None
    assert off(layer.values.grad, weight.grad[layer.topology.mask()]) < 1e-5


def test_under_autocast_arithmetic_is_float32(kernels: bool) -> None:
    layer, x = linear_of((20, 30), 0.3), torch.randn(5, 30).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, linear(x.float(), layer.dense_weight(), layer.bias), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.bfloat16
    assert layer.values.grad is not None and layer.values.grad.dtype is torch.float32


def test_gradients_of_double_precision_are_exact() -> None:
    layer = linear_of((4, 5), 0.5).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v, b: torch.func.functional_call(layer, {"values": v, "bias": b}, (x,)),
                                    (x, layer.values, layer.bias))  # fmt: skip


def test_training_with_all_weights_live_is_dense_training(kernels: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    sparse = nn.Sequential(*(
        SparseLinear.of(m, torch.ones_like(m.weight, dtype=torch.bool)) if isinstance(m, nn.Linear) else nn.ReLU()
        for m in dense
    ))  # fmt: skip
    x, labels = torch.randn(64, 20), torch.randint(5, (64,))
    for net in (dense, sparse):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            cross_entropy(net(x), labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    assert off(sparse(x), dense(x).double()) < 1e-4


def test_live_counts_stay_and_dead_weights_stay_zero(kernels: bool) -> None:
    layer = linear_of((20, 30), 0.3)
    mask = layer.topology.mask()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 30)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.dense_weight() != 0, mask)
    assert all(state["momentum_buffer"].shape == p.shape for p, state in optimizer.state.items())


def test_a_new_topology_keeps_the_parameter_and_drops_its_gradient(kernels: bool) -> None:
    layer = linear_of((20, 30), 0.3)
    parameter, x = layer.values, torch.randn(8, 30)
    for density in (0.3, 0.1, 0.6):
        layer(x).sum().backward()
        topology = Topology.of_mask(torch.rand(20, 30) < density)
        values = torch.randn(topology.live)
        layer.set_topology(topology, values)
        assert layer.values is parameter and parameter.grad is None
        assert layer.topology.live == parameter.numel()
        torch.testing.assert_close(layer(x), linear(x, topology.dense(values), layer.bias), rtol=1e-5, atol=1e-5)
        values.zero_()
        assert bool(parameter.any())


def test_positions_that_are_overwritten_in_place_are_noticed() -> None:
    layer, x = linear_of((20, 30), 0.3), torch.randn(8, 30)
    layer(x)
    matrix = layer.live_matrix()
    for _ in range(3):  # what DistributedDataParallel does before every forward pass
        layer.positions.copy_(layer.positions.clone())
        again = layer.live_matrix()
    assert layer.live_matrix() is again and again is not matrix
    layer.positions.copy_(torch.arange(layer.values.numel()))
    weight = torch.zeros(600)
    weight[: layer.values.numel()] = layer.values.detach()
    torch.testing.assert_close(layer(x), linear(x, weight.view(20, 30), layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("assign", [True, False])
def test_state_round_trips_into_a_layer_of_another_density(kernels: bool, assign: bool) -> None:
    layer, other = linear_of((20, 30), 0.3), linear_of((20, 30), 0.1, seed=1)
    x = torch.randn(8, 30)
    other(x).sum().backward()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    parameter = other.values
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert assign or other.values is parameter
    assert torch.equal(other.positions, layer.positions) and torch.equal(other(x), layer(x))
    assert set(layer.state_dict()) == {"values", "positions", "bias"}


def test_a_state_that_is_none_is_refused_and_nothing_changes() -> None:
    layer = linear_of((20, 30), 0.3)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    good = linear_of((20, 30), 0.1, seed=1).state_dict()
    for wrong, said in (
        ({"positions": good["positions"].flip(0)}, "positions: .*out of order"),
        ({"positions": good["positions"] + 590}, r"positions: .*expected them in \[0, 600\)"),
        ({"positions": good["positions"].float()}, "positions: found torch.float32"),
        ({"values": good["values"][1:]}, "values: found .* as many of one as of the other"),
    ):
        with pytest.raises(gs.FormatError, match=said):
            layer.load_state_dict({**good, **wrong})
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_copies_are_independent(kernels: bool) -> None:
    layer, x = linear_of((20, 30), 0.3), torch.randn(8, 30)
    expected = layer(x)
    layer.watch(3)
    again = copy.deepcopy(layer)
    assert not again.watching and again.topology.positions is again.positions
    with torch.no_grad():
        layer.values.zero_()
    assert torch.equal(again(x), expected)


@given(st.integers(0, 500), st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_largest_gradients_of_dead_weights_are_found(k: int, passes: int, seed: int) -> None:
    layer = linear_of((20, 30), 0.3, seed)
    draw = torch.Generator().manual_seed(seed)
    layer.watch(k)
    dense = torch.zeros(20, 30, dtype=torch.float64)
    for _ in range(passes):
        x, dy = torch.randn(70, 30, generator=draw), torch.randn(70, 20, generator=draw)
        layer(x).backward(dy)
        dense += dy.double().T @ x.double()
    dead = ~layer.topology.mask()
    found = layer.dead_gradient(release=False)
    assert found is not None
    positions, gradients = found
    assert len(positions) == min(k, int(dead.sum())) and bool(dead.flatten()[positions.long()].all())
    assert off(gradients, dense.flatten()[positions.long()]) < 1e-5
    sizes = dense.abs()[dead].sort(descending=True).values
    assert off(gradients.abs(), sizes[: len(gradients)]) < 1e-5
    everywhere = layer.gradient_at(torch.arange(600))
    assert off(everywhere, dense.flatten()) < 1e-5
    assert layer.dead_gradient() is not None and layer.dead_gradient() is None and not layer.watching


def test_of_equal_gradients_the_first_dead_ones_are_taken_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nn.dead._TILE", 60)
    layer = SparseLinear(30, 20, topology=Topology.of_mask(torch.arange(600).view(20, 30) % 3 == 0))
    layer.watch(50)
    layer(torch.ones(2, 30)).sum().backward()
    found = layer.dead_gradient()
    assert found is not None
    dead = (~layer.topology.mask()).flatten().nonzero().squeeze(1)
    assert torch.equal(found[0].long(), dead[:50]) and bool((found[1] == 2).all())


def test_a_gradient_that_is_not_a_number_counts_as_the_largest() -> None:
    layer = SparseLinear(3, 2, topology=Topology.of_mask(torch.zeros(2, 3, dtype=torch.bool)))
    layer.watch(2)
    layer(torch.tensor([[1.0, float("nan"), 3.0]])).sum().backward()
    found = layer.dead_gradient()
    assert found is not None and found[0].tolist() == [1, 4]


def test_dense_layers_convert_and_come_back() -> None:
    dense = nn.Linear(30, 20)
    mask = torch.rand(20, 30) < 0.4
    again = SparseLinear.of(dense, mask).to_linear()
    assert torch.equal(again.weight, dense.weight * mask) and torch.equal(again.bias, dense.bias)
    with pytest.raises(gs.PlanError, match=r"mask: found \(20, 29\), expected \(20, 30\)"):
        SparseLinear.of(dense, mask[:, 1:])
    with pytest.raises(RuntimeError, match=r"found input \(4, 29\), expected \[..., 30\]"):
        SparseLinear.of(dense, mask)(torch.randn(4, 29))


def test_fresh_values_keep_the_variance_of_the_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 400)
    dense = nn.Linear(400, 300, bias=False)(x).var()
    sparse = SparseLinear(400, 300, False, topology=Topology.of_mask(torch.rand(300, 400) < 0.1))(x).var()
    assert float((sparse / dense).detach()) == pytest.approx(1, abs=0.1)


def test_loading_another_number_of_values_does_not_disturb_a_loss_that_is_still_at_hand() -> None:
    few, many = (SparseLinear.of(nn.Linear(8, 8), torch.rand(8, 8) < density) for density in (0.2, 0.8))
    x = torch.randn(3, 8)
    loss = few(x).sum()
    loss.backward()
    few.load_state_dict(many.state_dict())
    again = few(x).sum()
    again.backward()
    assert few.values.grad is not None and few.values.grad.shape == many.values.shape
    assert loss.grad_fn is not None
