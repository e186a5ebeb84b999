"""LSTM and GRU with zeros in their weights compute what PyTorch's do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gossamer as gs
from benchmarks.zoo.g2p import g2p, letters_of
from gossamer.jit.cpu import Processor, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.candidates import resident_bytes
from gossamer.runtime.kernels import GATES
from gossamer.runtime.linear import SparseLinear
from gossamer.runtime.lower import Lowered
from gossamer.runtime.recurrent import Recurrent, SparseRecurrent

KINDS = [nn.LSTM, nn.GRU]


def pruned(layer: Recurrent, density: float = 0.2) -> Recurrent:
    """The layer with zeros in every weight, empty rows and columns included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
            if name.startswith("weight"):
                weight.mul_(torch.rand(weight.shape, generator=generator) < density)
                weight[0] = 0
                weight[:, -1] = 0
    return layer.eval()


def sparse(layer: Recurrent) -> SparseRecurrent:
    """Every product of it sparse."""
    parts = []
    for level in range(layer.num_layers):
        for way in ("", "_reverse")[: 1 + layer.bidirectional]:
            pair = []
            for kind in ("ih", "hh"):
                weight = layer.get_parameter(f"weight_{kind}_l{level}{way}").detach()
                bias = layer.get_parameter(f"bias_{kind}_l{level}{way}").detach() if layer.bias else None
                at = weight.flatten().nonzero().squeeze(1)
                pair.append(SparseLinear((weight.shape[0], weight.shape[1]), at, weight.flatten()[at], bias))
            parts.append((pair[0], pair[1]))
    return SparseRecurrent(layer, parts)


def leaves(found: Any) -> list[Tensor]:
    if isinstance(found, PackedSequence):
        return [found.data]
    return [found] if isinstance(found, Tensor) else [leaf for part in found for leaf in leaves(part)]


def check(layer: Recurrent, x: Any, hx: Any = None) -> None:
    """Against PyTorch in float64: relative to the largest output."""
    with torch.inference_mode():
        found = leaves(sparse(layer)(x, hx))
        double = copy.deepcopy(layer).double()
        wide = tuple(h.double() for h in hx) if isinstance(hx, tuple) else None if hx is None else hx.double()
        packed = x._replace(data=x.data.double()) if isinstance(x, PackedSequence) else x.double()
        expected = leaves(double(packed, wide))
    assert [f.shape for f in found] == [e.shape for e in expected]
    for one, exact in zip(found, expected, strict=True):
        assert float((one - exact).abs().max()) <= 1e-5 * max(1e-30, float(exact.abs().max()))


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 5),
    batch=st.integers(1, 20),
    width=st.integers(1, 9),
    hidden=st.integers(1, 40),
    levels=st.integers(1, 3),
    both=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    begun=st.booleans(),
)
def test_any_shape_gives_what_pytorch_gives(
    kind: type[Recurrent],
    steps: int,
    batch: int,
    width: int,
    hidden: int,
    levels: int,
    both: bool,
    first: bool,
    bias: bool,
    begun: bool,
) -> None:
    torch.manual_seed(steps * 100 + batch)
    layer = pruned(kind(width, hidden, levels, bias=bias, batch_first=first, bidirectional=both))
    x = torch.randn((batch, steps, width) if first else (steps, batch, width))
    state = torch.randn(levels * (1 + both), batch, hidden) if begun else None
    pair = None if state is None else (state, torch.randn_like(state)) if kind is nn.LSTM else state
    check(layer, x, pair)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [16, 64, 70])
def test_one_sequence_needs_no_batch(kind: type[Recurrent], hidden: int) -> None:
    layer = pruned(kind(5, hidden, 2, bidirectional=True))
    check(layer, torch.randn(7, 5))
    state = torch.randn(4, hidden)
    check(layer, torch.randn(7, 5), (state, 0.5 * state) if kind is nn.LSTM else state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences_end_where_they_end(kind: type[Recurrent], both: bool, ordered: bool) -> None:
    layer = pruned(kind(6, 24, 2, bidirectional=both))
    lengths = [7, 4, 4, 1] if ordered else [4, 1, 7, 4]
    packed = pack_padded_sequence(torch.randn(7, 4, 6), torch.tensor(lengths), enforce_sorted=ordered)
    check(layer, packed)
    state = torch.randn(2 * (1 + both), 4, 24)
    check(layer, packed, (state, -state) if kind is nn.LSTM else state)


def test_states_that_are_given_are_not_changed_and_later_calls_do_not_change_results() -> None:
    layer = sparse(pruned(nn.LSTM(4, 20)))
    state = (torch.randn(1, 2, 20), torch.randn(1, 2, 20))
    before = [s.clone() for s in state]
    first = leaves(layer(torch.randn(3, 2, 4), state))
    kept = [f.clone() for f in first]
    layer(torch.randn(3, 2, 4), state)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_large_arguments_saturate_and_nan_stays_nan() -> None:
    layer = pruned(nn.LSTM(3, 20))
    check(layer, torch.randn(4, 2, 3) * 1e4)
    x = torch.randn(4, 2, 3)
    x[1, 0] = float("nan")
    out, _ = sparse(layer)(x)
    assert not out[0].isnan().any() and not out[:, 1].isnan().any() and out[1, 0].isnan().any()


def test_what_does_not_fit_is_refused() -> None:
    layer = sparse(pruned(nn.GRU(3, 8)))
    for x in (torch.randn(2, 2, 4), torch.randn(2, 2, 2, 3), torch.randn(2, 2, 3).double(), torch.randn(0, 2, 3)):
        with pytest.raises(RuntimeError, match="expected"):
            layer(x)
    with pytest.raises(RuntimeError, match=r"expected \(1, 2, 8\)"):
        layer(torch.randn(4, 2, 3), torch.randn(1, 3, 8))
    with pytest.raises(RuntimeError, match="inference"):
        layer(torch.randn(4, 2, 3, requires_grad=True))


class Reader(nn.Module):
    def __init__(self, kind: type[Recurrent], density: float, *, projected: int = 0) -> None:
        super().__init__()
        more = {"proj_size": projected} if projected else {}
        self.table = nn.Embedding(30, 64)
        self.rnn = kind(64, 256, batch_first=True, **more)  # type: ignore[arg-type]
        pruned(self.rnn, density)
        self.head = nn.Linear(projected or 256, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        out, _ = self.rnn(self.table(tokens))
        return self.head(out[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_lowering_a_network_keeps_its_results_at_any_batch_and_length(
    kind: type[Recurrent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    network = Reader(kind, 0.05).eval()
    fast: Lowered = gs.lower(network, torch.randint(30, (1, 12)))  # type: ignore[operator]
    (choice,) = [c for c in fast.explain() if c.layer == "rnn"]
    assert 0.04 < choice.density < 0.06
    assert (choice.ms, choice.dense_ms) == (1.0, 2.0)
    assert "weight_ih_l0" in choice.kernel and "weight_hh_l0" in choice.kernel and not choice.reason
    assert choice.dense_bytes == 4 * (64 + 256) * 256 * (4 if kind is nn.LSTM else 3)
    assert choice.bytes == resident_bytes(fast.network.rnn) < choice.dense_bytes  # type: ignore[arg-type]
    for shape in ((1, 12), (3, 1), (17, 5)):
        tokens = torch.randint(30, shape)
        with torch.inference_mode():
            assert torch.allclose(fast(tokens), network(tokens), atol=2e-5)


@pytest.mark.parametrize("level", levels())
def test_steps_compute_the_same_at_the_level_that_the_environment_forces(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", level)
    for kind in KINDS:
        check(pruned(kind(5, 37)), torch.randn(4, 3, 5))


def test_steps_compute_the_same_on_two_threads() -> None:
    layer = sparse(pruned(nn.LSTM(8, 300), 0.02))
    x, before = torch.randn(2, 80, 8), torch.get_num_threads()
    alone, _ = layer(x)
    try:
        torch.set_num_threads(2)
        together, _ = layer(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


def test_steps_for_neon_use_vector_instructions() -> None:
    text = assembly(Processor.neon(), GATES)
    assert "fmla" in text and "fdiv" in text and ".4s" in text and "expf" not in text


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = pruned(nn.GRU(16, 128), 0.05)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out: Tensor = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]
        return out


def test_a_layer_that_is_given_packed_sequences_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    network = Packing().eval()
    fast: Lowered = gs.lower(network, (torch.randn(6, 3, 16), torch.tensor([2, 6, 4])))  # type: ignore[operator]
    assert [c.layer for c in fast.explain() if c.kernel != "dense"] == ["rnn"]
    arguments = (torch.randn(9, 4, 16), torch.tensor([9, 1, 4, 4]))
    with torch.inference_mode():
        assert torch.allclose(fast(*arguments), network(*arguments), atol=2e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("kind", "density", "projected", "why"),
    [(nn.GRU, 1.0, 0, "weight_hh_l0"), (nn.LSTM, 0.1, 32, "projections")],
)
def test_a_layer_that_stays_dense_says_why(kind: type[Recurrent], density: float, projected: int, why: str) -> None:
    network = Reader(kind, density, projected=projected).eval()
    fast: Lowered = gs.lower(network, torch.randint(30, (1, 12)))  # type: ignore[operator]
    (choice,) = [c for c in fast.explain() if c.layer == "rnn"]
    assert choice.kernel == "dense" and why in choice.reason


def test_a_compressed_network_lowers_its_recurrent_layer() -> None:
    network = Reader(nn.GRU, 1.0).eval()
    small = gs.compress(network, [gs.prune.Magnitude(sparsity=0.9)])
    tokens = torch.randint(30, (2, 9))
    fast = small.lower(tokens)
    with torch.inference_mode():
        assert torch.allclose(fast(tokens), small.dense()(tokens), atol=2e-5)
    assert {c.layer for c in fast.explain()} >= {"rnn", "head"}


def test_an_encoder_and_decoder_that_feeds_itself_says_the_same_phonemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    network = g2p().eval()
    for layer in (network.enc, network.dec):
        pruned(layer, 0.1)  # type: ignore[arg-type]
    fast: Lowered = gs.lower(network, letters_of(["gossamer"]))  # type: ignore[operator]
    assert [c.layer for c in fast.explain() if c.kernel != "dense"] == ["enc", "dec"]
    words = letters_of(["a", "sparse", "network", "of", "threads"])
    with torch.inference_mode():
        found, expected = fast(words), network(words)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_copy_computes_the_same() -> None:
    layer = sparse(pruned(nn.LSTM(4, 20, 2)))
    x = torch.randn(3, 2, 4)
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
