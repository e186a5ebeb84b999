"""What every sparse layer does in a training loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nn.layers import conv_of, linear_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gossamer.nn import SparseLayer

LAYERS: dict[str, Callable[[], tuple[SparseLayer, Tensor]]] = {
    "linear": lambda: (linear_of((20, 30), 0.3), torch.randn(5, 30)),
    "convolution": lambda: (conv_of((20, 16, 3, 3), 0.3), torch.randn(5, 16, 6, 6)),
}

every = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@every
def test_only_what_needs_a_gradient_gets_one(kernels: bool, make: Callable[[], tuple[SparseLayer, Tensor]]) -> None:
    layer, x = make()
    layer(x).sum().backward()
    assert x.grad is None and layer.values.grad is not None
    layer.zero_grad()
    layer.values.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.values.grad is None
    with torch.no_grad():
        assert not layer(x).requires_grad


@every
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(
    kernels: bool, reentrant: bool, make: Callable[[], tuple[SparseLayer, Tensor]]
) -> None:
    layer, x = make()
    x.requires_grad_()
    layer(x).square().sum().backward()
    expected = [t.grad for t in (x, *layer.parameters())]
    x.grad = None
    layer.zero_grad()
    checkpoint(lambda t: layer(t).square(), x, use_reentrant=reentrant).sum().backward()
    assert all(
        a is not None and torch.equal(a, t.grad) for a, t in zip(expected, (x, *layer.parameters()), strict=True)
    )
