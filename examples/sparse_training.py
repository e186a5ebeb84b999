"""Train a network that is sparse from the first step to the last: ``python examples/sparse_training.py``.

RigL at 90% zeros on Fashion-MNIST (the subset that ships with the package, or the full set with ``--data DIR``): dead
weights cost neither arithmetic nor memory, and every so many steps the smallest live weights make room for the dead
ones with the largest gradients. Prints accuracy, the time of a step beside the dense network's, and bytes of state.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Shuffled, load_fashion
from gossamer.measure import accuracy


def network(width: int) -> nn.Module:
    """784–width–width–10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """What any loop does."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def milliseconds(steps: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median time of each, measured in turn so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: median(taken) for name, taken in times.items()}


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, their gradients, positions, and the optimiser's state."""
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in held)


def main(epochs: int = 20, width: int = 1024, batch: int = 128, data: Path | None = None) -> float:
    """Train, measure, save, reload and lower; returns the accuracy of the lowered network."""
    fashion = load_fashion(data)
    batches = Shuffled(fashion.train, fashion.train_labels, batch, seed=1)
    steps = epochs * len(batches)
    torch.manual_seed(0)
    dense = network(width)  # as it is at the start, for comparison
    dense_optimizer = torch.optim.Adam(dense.parameters(), 1e-3)

    method = gs.train.RigL(sparsity=0.9, steps=steps, every=max(1, min(100, steps // 20)))
    model = gs.train.sparsify(network(width), method)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)  # after sparsify
    sparsifier = gs.train.Sparsifier(model, optimizer, method)
    for epoch in range(epochs):
        for images, labels in batches:
            sparsifier.step(one_step(model, optimizer, images, labels))
        found = accuracy(model, fashion.test, fashion.test_labels).value
        print(f"epoch {epoch + 1}: {found:.1%} of the test images, {sparsifier.sparsity:.1%} zeros")

    sparsifier.finish()
    small = gs.train.harvest(model, method)  # before steps are timed, which go on training
    images, labels = fashion.train[:batch], fashion.train_labels[:batch]
    times = milliseconds(
        {
            "sparse": lambda: one_step(model, optimizer, images, labels),
            "dense": lambda: one_step(dense, dense_optimizer, images, labels),
        }
    )
    sparse_bytes, dense_bytes = state_bytes(model, optimizer), state_bytes(dense, dense_optimizer)
    print(f"a step takes {times['sparse']:.2f} ms, of the dense network {times['dense']:.2f} ms")
    print(f"weights, gradients and Adam's state take {sparse_bytes:,} bytes, of the dense network {dense_bytes:,}")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gsm"
        small.save(file)
        print(f"saved: {file.stat().st_size:,} bytes")
        again = gs.load(file, into=lambda: network(width))
    fast = again.lower(fashion.test[:batch])
    found = accuracy(fast, fashion.test, fashion.test_labels).value
    print(f"reloaded and lowered: {found:.1%} of the test images")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the full Fashion-MNIST set")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    main(epochs=given.epochs, data=given.data)
