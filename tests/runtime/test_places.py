"""Indices of packed convolutions are held once, whatever layouts and sizes were met."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from torch import nn

import gossamer as gs
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.places import Places


@given(st.data())
def test_columns_come_back_from_any_layout(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    columns = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=50)), np.uint16)
    places = Places(columns.copy())
    for _ in range(3):
        distances = np.array(data.draw(st.lists(st.integers(0, 65535), min_size=count, max_size=count, unique=True)))
        index = places.at(distances)
        assert np.array_equal(index, distances[columns]) and index.dtype == np.uint16
        assert places.at(distances) is index
        assert np.array_equal(places.columns(), columns)


def test_only_what_is_used_is_held() -> None:
    places = Places(np.zeros(100, np.uint16))
    assert places.nbytes == 200
    first, second = places.at(np.array([3])), places.at(np.array([5]))
    assert places.nbytes == 400
    del first
    assert places.nbytes == 200
    third = places.at(np.array([7]))
    del third
    assert places.nbytes == 400  # the newest is held, and the second is in use
    places.release()
    assert places.nbytes == 200 and places.at(np.array([5])) is second


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
        self.a, self.b = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        for layer in (self.a, self.b):
            layer.weight.data *= torch.rand_like(layer.weight) < 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + torch.relu(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize("images", [1, 16])
def test_a_lowered_network_holds_one_index_per_layer(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    model = Block().eval()
    x = torch.randn(images, 3, 28, 28)
    fast = gs.lower(model, x)  # type: ignore[operator]
    fast(x)
    gc.collect()
    sparse = {id(m.product.places): m.product for m in fast.modules() if isinstance(m, SparseConv)}
    assert len(sparse) >= 2
    for product in sparse.values():
        assert product.places.nbytes == product.places.columns().nbytes
    held = {c.layer: c.bytes for c in fast.explain()}
    for name in ("a", "b"):
        weight = model.get_submodule(name).weight
        assert 6 * weight.count_nonzero() <= held[name] <= 12 * weight.count_nonzero()  # type: ignore[operator]
