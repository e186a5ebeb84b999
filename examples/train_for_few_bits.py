"""Train for few bits in a training loop of your own: ``python examples/train_for_few_bits.py``.

``gs.rate`` is the bits that the file will need for the weights as they are, differentiable: a term of the loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Shuffled, load_fashion
from gossamer.demo.networks import lenet_300_100, train_dense
from gossamer.measure import accuracy


def main(epochs: int = 6, price: float = 0.1) -> tuple[float, float]:
    """Train, then train on with a price for each bit; returns the file's ratio and what accuracy fell by."""
    data = load_fashion()
    dense = train_dense(lenet_300_100(), data, gs.Tune(epochs=3, lr=2e-3), batch=256, seed=0)
    small = gs.compress(dense, [])  # nothing is lost yet
    before = accuracy(small.dense(), data.test, data.test_labels).value

    biases = gs.quantize.LearnedRate(only="*.bias", levels=31, start=0.25, zeros="level")
    network = small.trainable([gs.quantize.LearnedRate(), biases])
    weights = sum(p.numel() for p in dense.parameters())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for epoch in range(epochs):
        now = price * min(1.0, 2 * epoch / epochs)  # bits cost nothing at first
        for images, labels in Shuffled(data.train, data.train_labels, 256, seed=epoch):
            loss = F.cross_entropy(network(images), labels) + now * gs.rate(network) / weights
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    done = small.harvest(network)

    after = accuracy(done.dense(), data.test, data.test_labels).value
    ledger = done.ledger(zstd=False)
    print(f"{ledger.ratio:.1f}x smaller; accuracy {before:.1%} before, {after:.1%} after")
    print(ledger)
    return ledger.ratio, before - after


if __name__ == "__main__":
    main()
