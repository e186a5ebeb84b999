"""A small network, its data, and a step of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.train import SparseTraining, Sparsifier, sparse_layers, sparsify


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 8))


def batch(step: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Learnable, and the same for every run at a step."""
    x = torch.randn(size, 20, generator=torch.Generator().manual_seed(1000 + step))
    return x, x[:, :8].argmax(1)


def started(
    method: SparseTraining, *, lr: float = 1e-2, adam: bool = True
) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
    model = sparsify(mlp(), method)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr) if adam else torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    )
    return model, optimizer, Sparsifier(model, optimizer, method)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    x, y = batch(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def live(model: nn.Module) -> dict[str, int]:
    return {name: layer.topology.live for name, layer in sparse_layers(model).items()}


def positions(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.topology.positions.clone() for name, layer in sparse_layers(model).items()}
