"""RigL from scratch on real images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gossamer.demo.data import Shuffled, load_fashion
from gossamer.train import RigL, SparseTraining, Sparsifier, harvest, sparse_layers, sparsify


def trained(method: SparseTraining, epochs: int) -> tuple[nn.Module, float]:
    """LeNet-300-100 on the packaged 10,000 images; accuracy on the 2,000 for testing."""
    data = load_fashion()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    sparsify(model, method)
    batches = Shuffled(data.train, data.train_labels, 100, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    sparsifier = Sparsifier(model, optimizer, method)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            sparsifier.step(loss)
    model.eval()
    with torch.no_grad():
        right = model(data.test).argmax(1) == data.test_labels
    return model, float(right.float().mean())


def test_rigl_at_ninety_percent_learns_fashion_mnist_from_scratch() -> None:
    method = RigL(sparsity=0.9, steps=400, every=25)
    model, accuracy = trained(method, epochs=4)
    live = sum(layer.topology.live for layer in sparse_layers(model).values())
    assert live <= 26_620 + 1  # of 266,200
    assert accuracy > 0.80  # 83.8 here, 86.2 dense, 10 by chance
    small = harvest(model)
    with torch.no_grad():
        x = load_fashion().test[:200]
        torch.testing.assert_close(small.dense()(x), model(x), rtol=1e-4, atol=1e-4)
