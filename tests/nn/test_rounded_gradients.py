"""Gradients for choices: of activations in bfloat16 where the processor gains by that, sums in float32."""

from __future__ import annotations

import pytest
import torch

from gossamer.nn import SparseLinear, dead
from gossamer.nn.dead import SeenTokens
from gossamer.nn.topology import Topology
from gossamer.runtime.live import live_math

rounds = pytest.mark.skipif(live_math().rounded is None, reason="this processor multiplies no pairs of bfloat16")


def seen(tokens: int, columns: int, rows: int) -> tuple[SeenTokens, torch.Tensor]:
    """A pass of random numbers, and its dense gradient in float64 after rounding."""
    draw = torch.Generator().manual_seed(tokens)
    x, dy = torch.randn(tokens, columns, generator=draw), torch.randn(tokens, rows, generator=draw)
    math = live_math()
    exact = dy.bfloat16().double().T @ x.bfloat16().double()  # [rows, tokens] · [tokens, columns]
    return SeenTokens(math.batch(x).data, math.batch(dy).data), exact


@rounds
@pytest.mark.parametrize("tokens", [1, 17, 300])
@pytest.mark.parametrize(("columns", "rows"), [(64, 6), (130, 49), (515, 101)])
def test_rounded_gradients_are_those_of_rounded_activations(
    monkeypatch: pytest.MonkeyPatch, threads: int, tokens: int, columns: int, rows: int
) -> None:
    monkeypatch.setattr(dead, "_WORTH_ROUNDING", 0)
    one, exact = seen(tokens, columns, rows)
    made = dead.gradient_everywhere([one], (rows, columns), rounded=True).view(rows, columns)
    assert torch.allclose(made.double(), exact, atol=1e-5 * tokens**0.5, rtol=1e-5)
    twice = dead.gradient_everywhere([one, one], (rows, columns), rounded=True).view(rows, columns)
    assert torch.allclose(twice.double(), 2 * exact, atol=2e-5 * tokens**0.5, rtol=1e-5)


@rounds
def test_candidates_are_the_largest_of_the_rounded_gradient(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(dead, "_WORTH_ROUNDING", 0)
    one, exact = seen(64, 515, 301)
    topology = Topology((301, 515), torch.arange(0, 301 * 515, 7, dtype=torch.int32))
    positions, gradients = dead.largest_dead([one], topology, 400, exact=False)
    assert torch.allclose(gradients.double(), exact.flatten()[positions.long()], atol=1e-4)
    sizes = exact.abs().flatten()
    sizes[topology.positions.long()] = 0.0
    wanted = sizes.topk(380).indices  # of almost equal ones either is right
    assert len(positions) >= 400
    assert torch.isin(wanted, positions.long()).all()


@rounds
def test_what_is_not_a_number_stays_so_and_counts_as_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead, "_WORTH_ROUNDING", 0)
    x, dy = torch.randn(32, 160), torch.randn(32, 160)
    x[3, 5] = torch.nan
    math = live_math()
    topology = Topology((160, 160), torch.arange(160, dtype=torch.int32))
    one = SeenTokens(math.batch(x).data, math.batch(dy).data)
    positions, gradients = dead.largest_dead([one], topology, 200, exact=False)
    column = positions.long() % 160 == 5
    assert gradients[column].isnan().all()
    assert int(column.sum()) == 159


def test_small_gradients_are_not_rounded() -> None:
    layer = SparseLinear(40, 30, topology=Topology.of_mask(torch.arange(1200).view(30, 40) % 3 == 0))
    x, dy = torch.randn(8, 40), torch.randn(8, 30)
    layer.watch(10)
    layer(x).backward(dy)
    found = layer.gradient_everywhere(rounded=True)
    assert found is not None
    exact = dy.double().T @ x.double()  # [30, 8] · [8, 40]
    assert torch.allclose(found.view(30, 40).double(), exact, atol=1e-5)
