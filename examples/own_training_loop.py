"""Fine-tune a compressed network in a training loop of your own: ``python examples/own_training_loop.py``.

The parameters of ``small.trainable()`` are the survivors and nothing else: gradients and optimiser state are small too.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Shuffled, load_fashion
from gossamer.demo.networks import lenet_300_100, train_dense
from gossamer.measure import accuracy


def main(epochs: int = 3) -> float:
    """Train, prune, train the survivors; returns the accuracy that the loop won back."""
    data = load_fashion()
    dense = train_dense(lenet_300_100(), data, gs.Tune(epochs=epochs, lr=2e-3), batch=256, seed=0)
    small = gs.compress(dense, [gs.prune.Magnitude(sparsity=0.95, scope="lamp")])
    before = accuracy(small.dense(), data.test, data.test_labels).value

    network = small.trainable()
    live = sum(p.numel() for p in network.parameters())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for images, labels in Shuffled(data.train, data.train_labels, 256, seed=1):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    small = small.harvest(network)

    after = accuracy(small.dense(), data.test, data.test_labels).value
    print(f"{live:,} parameters trained of 266,610; accuracy {before:.1%} after pruning, {after:.1%} after the loop")
    print(small.ledger(zstd=False))
    return after - before


if __name__ == "__main__":
    main()
