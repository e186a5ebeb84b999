"""The k largest activations win, and gradients reach them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer.demo.data import Shuffled, load_fashion
from gossamer.errors import DataError, PlanError
from gossamer.train.winners import KWinners


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5), size=st.integers(1, 30), density=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_the_k_largest_of_each_sample_win(n: int, size: int, density: float, seed: int) -> None:
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    y = KWinners(density)(x)
    k = max(1, round(density * size))
    assert (y != 0).sum(1).tolist() == [k] * n
    assert torch.equal(y[y != 0], x[y != 0])
    least = torch.where(y != 0, y, torch.inf).amin(1)
    assert bool((torch.where(y == 0, x, -torch.inf).amax(1) <= least).all())


@pytest.mark.parametrize(("shape", "over"), [((3, 7), "sample"), ((2, 6, 3, 4), "channels"), ((2, 3, 4), "sample")])
def test_gradients_are_those_of_the_function(shape: tuple[int, ...], over: Any) -> None:
    x = torch.randperm(torch.Size(shape).numel()).view(shape).double().requires_grad_(True)
    assert torch.autograd.gradcheck(KWinners(0.4, over), (x,))


def test_channels_compete_at_each_place() -> None:
    x = torch.randn(2, 8, 3, 5)
    y = KWinners(0.25, "channels")(x)
    assert bool(((y != 0).sum(1) == 2).all())
    assert torch.equal(y, torch.where(x >= x.topk(2, dim=1).values[:, -1:], x, 0))


def test_a_network_of_winners_learns() -> None:
    fashion = load_fashion()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), KWinners(0.1), nn.Linear(200, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(2):
        for x, y in Shuffled(fashion.train, fashion.train_labels, 128, epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    with torch.inference_mode():
        accuracy = float((model(fashion.test).argmax(1) == fashion.test_labels).float().mean())
    assert accuracy > 0.77


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(PlanError, match="density: found 0"):
        KWinners(0.0)
    with pytest.raises(PlanError, match="over: found 'places'"):
        KWinners(0.5, "places")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="found activations of shape"):
        KWinners(0.5)(torch.zeros(3))
    assert KWinners(0.5)(torch.zeros(0, 4)).shape == (0, 4)
