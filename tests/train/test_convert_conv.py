"""sparsify and harvest on convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gossamer.train as sparse
from gossamer.methods.prune import SynFlow
from gossamer.nn import SparseConv2d, SparseLinear


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding="same"), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 12, 1), nn.Flatten(), nn.Linear(12 * 4, 10)),
    )


def test_convolutions_become_sparse_where_the_layer_can_do_what_they_do() -> None:
    model = sparse.sparsify(net(), sparse.RigL(sparsity=0.7, steps=20, every=2, allocation=sparse.allocation.Uniform()))
    assert [type(model.get_submodule(n)) for n in ("0", "5", "7")] == [SparseConv2d, SparseConv2d, SparseLinear]
    assert [type(model.get_submodule(n)) for n in ("2", "4")] == [nn.Conv2d, nn.Conv2d]


def test_a_trained_convolution_is_harvested_exactly() -> None:
    method = sparse.RigL(sparsity=0.7, steps=20, every=2, allocation=sparse.allocation.Uniform())
    model = sparse.sparsify(net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sparse.Sparsifier(model, optimizer, method)
    before = model.get_submodule("5").get_buffer("positions").clone()
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    assert not torch.equal(before, model.get_submodule("5").get_buffer("positions"))
    x = torch.randn(3, 1, 8, 8)
    dense = sparse.harvest(model).dense()
    torch.testing.assert_close(dense(x), model.eval()(x), rtol=1e-4, atol=1e-6)
    for name in ("0", "5"):
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseConv2d)
        assert torch.equal(dense.get_submodule(name).weight, layer.dense_weight())


def test_masks_from_before_training_start_convolutions_too() -> None:
    data = [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))]
    with pytest.warns(UserWarning, match=r"start: found masks of sparsity 0\.8"):  # no layer may lose its last weights
        model = sparse.sparsify(net(), sparse.Static(sparsity=0.9), start=SynFlow(sparsity=0.9, steps=20), data=data)
    counts = [layer.topology.live for layer in sparse.sparse_layers(model).values()]
    assert len(counts) == 3 and min(counts) > 0
