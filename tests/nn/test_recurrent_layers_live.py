"""LSTM and GRU with live values only: the same as masked dense layers, in every way a training loop uses one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.layers import off
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import gossamer as gs
from gossamer.jit.cpu import Processor, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.nn import SparseGRU, SparseLSTM, SparseRecurrent, Topology
from gossamer.runtime.kernels import CELLS

KINDS = {"lstm": (nn.LSTM, SparseLSTM), "gru": (nn.GRU, SparseGRU)}

every = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, density: float, seed: int = 0, inputs: int = 7, units: int = 13, **options: Any) -> SparseRecurrent:
    """With random masks of which some rows are empty."""
    draw = torch.Generator().manual_seed(seed)
    dense_kind, sparse_kind = KINDS[kind]
    dense: Any = dense_kind(inputs, units, **options)
    masks = {}
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
            if name.startswith("weight"):
                masks[name] = torch.rand(parameter.shape, generator=draw) < density
                masks[name][1] = density == 1
    return sparse_kind.of(dense, masks)


def dense_of(layer: SparseRecurrent) -> Any:
    return layer.to_dense()


def flat(found: Any) -> list[Tensor]:
    """Outputs and last states as a list."""
    y, last = found
    rows = y.data if isinstance(y, PackedSequence) else y
    return [rows, *(last if isinstance(last, tuple) else (last,))]


def gradients(layer: SparseRecurrent, exact: Any) -> float:
    """The largest error of a gradient of the parameters."""
    worst = 0.0
    for name, part in layer.weights().items():
        found = exact.get_parameter(name).grad.reshape(-1)[part.positions.long()]
        worst = max(worst, off(part.values.grad, found))
        if part.bias is not None:
            worst = max(worst, off(part.bias.grad, exact.get_parameter(name.replace("weight", "bias")).grad))
    return worst


@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 5, 70]),
    st.sampled_from(["whole", "packed"]),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_outputs_and_gradients_are_those_of_the_masked_dense_layer(
    kind: str,
    density: float,
    levels: int,
    both: bool,
    first: bool,
    bias: bool,
    batch: int,
    form: str,
    given_state: bool,
    seed: int,
) -> None:
    layer = made(kind, density, seed, num_layers=levels, bidirectional=both, batch_first=first, bias=bias)
    exact = dense_of(layer).double()
    draw = torch.Generator().manual_seed(seed)
    steps, count = 5, max(1, batch)
    shape = (steps, 7) if not batch else (count, steps, 7) if first else (steps, count, 7)
    x = torch.randn(shape, generator=draw, requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    size = (levels * (1 + both), *((count,) if batch else ()), 13)
    hx = [torch.randn(size, generator=draw).requires_grad_() for _ in range(2 if kind == "lstm" else 1)]
    exact_hx = [h.detach().double().requires_grad_() for h in hx]
    inputs: list[Any] = [x, exact_x]
    if form == "packed" and batch:
        lengths = torch.randint(1, steps + 1, (count,), generator=draw)
        inputs = [pack_padded_sequence(t, lengths, batch_first=first, enforce_sorted=False) for t in inputs]
    states = [tuple(h) if kind == "lstm" else h[0] for h in (hx, exact_hx)] if given_state else [None, None]
    found, wanted = flat(layer(inputs[0], states[0])), flat(exact(inputs[1], states[1]))
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert max(off(a, b.detach()) for a, b in zip(found, wanted, strict=True)) < 1e-5
    weights = [torch.randn(t.shape, generator=draw) for t in found]
    torch.autograd.backward(found, weights)  # type: ignore[no-untyped-call]
    torch.autograd.backward(wanted, [w.double() for w in weights])  # type: ignore[no-untyped-call]
    assert gradients(layer, exact) < 2e-5
    assert off(x.grad, exact_x.grad) < 2e-5
    if given_state:
        assert max(off(a.grad, b.grad) for a, b in zip(hx, exact_hx, strict=True)) < 2e-5


@every
def test_kernels_are_what_computes(kind: str) -> None:
    layer = made(kind, 0.3)
    assert "_UnpackingBackward" in str(layer(torch.randn(4, 3, 7))[0].grad_fn)


@every
def test_without_kernels_outputs_gradients_and_dead_gradients_are_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 5, 7)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr("gossamer.nn.layer.compiled", lambda: False)
        layer = made(kind, 0.3, num_layers=2, bidirectional=True)
        for part in layer.weights().values():
            part.watch(20)
        y = layer(x)[0]
        y.square().sum().backward()
        dead = [part.gradient_at(torch.arange(part.topology.size)) for part in layer.weights().values()]
        largest = [part.dead_gradient() for part in layer.weights().values()]
        found.append([y, *(p.grad for p in layer.parameters()), *dead, *(pair[1].abs() for pair in largest if pair)])
    assert len(found[0]) == len(found[1]) == 1 + 16 + 8 + 8
    assert max(off(a, b.double()) for a, b in zip(*found, strict=True)) < 1e-4  # type: ignore[union-attr]


@every
def test_gradients_of_dead_weights_are_those_of_the_masked_dense_layer(kind: str) -> None:
    layer = made(kind, 0.3, bidirectional=True)
    exact = dense_of(layer).double()
    for part in layer.weights().values():
        part.watch(0)
    for seed in range(2):  # two passes add up
        x = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(seed))
        layer(x)[0].square().sum().backward()
        exact(x.double())[0].square().sum().backward()
    for name, part in layer.weights().items():
        everywhere = part.gradient_at(torch.arange(part.topology.size))
        assert off(everywhere, exact.get_parameter(name).grad.flatten()) < 1e-5


@every
def test_training_with_all_weights_live_is_dense_training(kind: str, kernels: bool) -> None:
    torch.manual_seed(0)
    dense: Any = KINDS[kind][0](7, 13, 2)
    layer = KINDS[kind][1].of(dense, {})
    x, target = torch.randn(6, 20, 7), torch.randn(6, 20, 13)
    for net in (dense, layer):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            (net(x)[0] - target).square().mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    assert off(layer(x)[0], dense(x)[0].detach().double()) < 1e-4


@every
def test_growth_alone_leaves_every_bit_of_the_outputs(kind: str) -> None:
    layer, x = made(kind, 0.3), torch.randn(4, 5, 7)
    before = flat(layer(x))
    for part in layer.weights().values():
        old = part.topology
        new = Topology.of_mask(old.mask() | (torch.rand(old.shape) < 0.2))
        values = torch.zeros(new.live)
        kept, to = old.moved(new)
        values[to] = part.values.detach()[kept]
        part.set_topology(new, values)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(layer(x)), strict=True))


@every
def test_states_and_copies_round_trip(kind: str) -> None:
    layer, other, x = made(kind, 0.3), made(kind, 0.6, seed=1), torch.randn(4, 5, 7)
    expected = layer(x)[0]
    other.load_state_dict(layer.state_dict())
    again = copy.deepcopy(layer)
    assert torch.equal(other(x)[0], expected) and torch.equal(again(x)[0], expected)
    assert set(layer.state_dict()) >= {"weight_hh_l0.values", "weight_hh_l0.positions", "weight_hh_l0.bias"}
    assert off(KINDS[kind][1].of(dense_of(layer), {})(x)[0], expected.detach().double()) < 1e-6


@every
def test_only_what_needs_a_gradient_gets_one_and_checkpoints_and_second_passes_change_nothing(kind: str) -> None:
    layer, x = made(kind, 0.3, num_layers=2), torch.randn(4, 5, 7, requires_grad=True)
    loss = layer(x)[0].square().sum()
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in (x, *layer.parameters()) if t.grad is not None]
    assert len(first) == 9
    loss.backward()
    assert all(torch.equal(2 * a, t.grad) for a, t in zip(first, (x, *layer.parameters()), strict=True))  # type: ignore[arg-type]
    x.grad = None
    layer.zero_grad()
    checkpoint(lambda t: layer(t)[0].square(), x, use_reentrant=False).sum().backward()
    assert all(torch.equal(a, t.grad) for a, t in zip(first, (x, *layer.parameters()), strict=True))  # type: ignore[arg-type]
    layer.zero_grad()
    layer.weight_hh_l0.values.requires_grad_(False)
    layer(x)[0].sum().backward()
    assert layer.weight_hh_l0.values.grad is None and layer.weight_hh_l0.bias.grad is not None
    with torch.no_grad():
        assert not layer(x)[0].requires_grad


@every
def test_under_autocast_arithmetic_is_float32_and_dropout_drops_in_training_alone(kind: str) -> None:
    layer, x = made(kind, 0.3, num_layers=2, dropout=0.5), torch.randn(4, 5, 7).bfloat16()
    torch.manual_seed(0)
    trained = layer(x.float())[0]
    layer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)[0]
    assert y.dtype is torch.float32 and torch.equal(y, layer(x.float())[0]) and not torch.equal(y, trained)


def test_gradients_of_double_precision_are_exact() -> None:
    layer = made("lstm", 0.4, inputs=2, units=3).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: layer(t)[0], (x,))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(gs.PlanError, match="proj_size 3"):
        SparseLSTM.of(nn.LSTM(7, 13, proj_size=3), {})
    with pytest.raises(gs.PlanError, match="a mask of weight_hh_l1, expected some of weight_ih_l0, weight_hh_l0"):
        SparseGRU.of(nn.GRU(7, 13), {"weight_hh_l1": torch.ones(39, 13, dtype=torch.bool)})
    with pytest.raises(gs.PlanError, match=r"mask of weight_hh_l0: found \(3, 3\), expected \(39, 13\)"):
        SparseGRU.of(nn.GRU(7, 13), {"weight_hh_l0": torch.ones(3, 3, dtype=torch.bool)})
    topology = Topology.of_mask(torch.ones(52, 7, dtype=torch.bool))
    with pytest.raises(gs.PlanError, match="weight_hh_l0 only on one side"):
        SparseLSTM(7, 13, topologies={"weight_ih_l0": topology})
    with pytest.raises(gs.PlanError, match=r"weight_hh_l0: found topology \(52, 7\), expected \(52, 13\)"):
        SparseLSTM(7, 13, topologies={"weight_ih_l0": topology, "weight_hh_l0": topology})
    with pytest.raises(gs.PlanError, match="num_layers 0"):
        SparseLSTM(7, 13, 0, topologies={})
    layer = made("lstm", 0.3)
    for inputs, state, said in (
        (torch.randn(4, 5, 6), None, r"found input \(4, 5, 6\), expected \[..., 7\]"),
        (torch.randn(0, 5, 7), None, "steps > 0"),
        (torch.randn(4, 5, 7), (torch.zeros(1, 4, 13), torch.zeros(1, 4, 13)), r"found state \(1, 4, 13\)"),
        (torch.randn(4, 5, 7), (torch.zeros(1, 5, 13),), "found 1 states, expected 2"),
    ):
        with pytest.raises(RuntimeError, match=said):
            layer(inputs, state)


def test_fresh_values_are_drawn_by_density() -> None:
    masks = {"weight_ih_l0": torch.rand(400, 50) < 0.25, "weight_hh_l0": torch.rand(400, 100) < 0.04}
    layer = SparseLSTM(50, 100, topologies={n: Topology.of_mask(m) for n, m in masks.items()})
    assert layer.mode == "LSTM" and "50, 100" in str(layer)
    for part, bound in ((layer.weight_ih_l0, 0.2), (layer.weight_hh_l0, 0.5)):
        largest = float(part.values.detach().abs().max())
        assert 0.9 * bound < largest < 1.1 * bound


@every
@pytest.mark.parametrize("level", levels())
def test_every_instruction_set_computes_the_same(kind: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", level)
    layer = made(kind, 0.3, bidirectional=True)
    exact, x = dense_of(layer).double(), torch.randn(3, 21, 7)
    y, wanted = layer(x)[0], exact(x.double())[0]
    y.square().sum().backward()
    wanted.square().sum().backward()
    assert off(y, wanted.detach()) < 1e-5 and gradients(layer, exact) < 2e-5


@every
def test_results_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    x, before, found = torch.randn(3, 200, 7), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            layer = made(kind, 0.3, units=301)
            y = layer(x)[0]
            y.square().sum().backward()
            found.append([y, *(p.grad for p in layer.parameters())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]


def test_steps_for_neon_use_vector_instructions() -> None:
    text = assembly(Processor.neon(), CELLS)
    assert "fmla" in text and "fdiv" in text and ".4s" in text and "expf" not in text
