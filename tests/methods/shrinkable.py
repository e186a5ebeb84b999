"""Small networks in which channels meet in every way: additions, concatenations, splits, groups, gates, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner_norm(self.inner(x)))))
        return self.fc(x.mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3)
        self.c, self.fc = nn.Conv2d(10, 5, 1), nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(torch.cat([self.a(x), self.b(x)], 1))).flatten(1))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 10, 3)
        self.b, self.c, self.d = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.b.in_channels
        u, v = self.a(x).split([first, self.a.out_channels - first], 1)
        return self.d(self.b(u) * self.c(v)).mean((2, 3))


class Halves(nn.Module):
    """A gated unit: code splits evenly, so as many of each half must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, -1)
        return self.b(value * torch.tanh(gate))


class Grouped(nn.Module):
    """Grouped, depthwise, depthwise with a multiplier, group normalisation by whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped, self.norm = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3, groups=2), nn.GroupNorm(6, 12)
        self.b = nn.Conv2d(12, 6, 1)
        self.depth, self.twice = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 12, 1, groups=6)
        self.c = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.norm(self.grouped(self.a(x)))))
        return self.c(self.twice(F.relu(self.depth(x))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 6)
        self.rnn = kind(6, 7, batch_first=True, **settings)  # type: ignore[arg-type]
        self.read = nn.Linear(7 * (2 if self.rnn.bidirectional else 1), 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(F.relu(self.inside(x)))
        return self.out(F.relu(self.read(y[:, -1])))


class LastState(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        _, state = self.rnn(F.relu(self.inside(x)))
        return self.out(F.relu(self.read((state[0] if isinstance(state, tuple) else state)[-1])))


class Cell(nn.Module):
    def __init__(self, kind: type[nn.GRUCell | nn.LSTMCell]) -> None:
        super().__init__()
        self.cell, self.out = kind(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        state: Any = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    """As models write it: separate projections, heads from an attribute."""

    def __init__(self, num_heads: int = 4, width: int = 12) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attending(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inside, self.attention, self.out = nn.Linear(5, 12), attention, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        mixed = self.attention(x, x, x)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(x)
        return self.out(x + mixed)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3))


IMAGE, SEQUENCE, VECTOR = (1, 6, 6), (4, 5), (5,)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, IMAGE),
    "concatenated": (Concatenated, IMAGE),
    "split": (Split, IMAGE),
    "halves": (Halves, VECTOR),
    "grouped": (Grouped, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE),
    "gru, two levels": (lambda: Recurrent(nn.GRU, num_layers=2), SEQUENCE),
    "lstm, both ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), SEQUENCE),
    "gru, last state": (lambda: LastState(nn.GRU), SEQUENCE),
    "rnn without biases": (lambda: Recurrent(nn.RNN, bias=False), SEQUENCE),
    "gru cell": (lambda: Cell(nn.GRUCell), SEQUENCE),
    "lstm cell": (lambda: Cell(nn.LSTMCell), SEQUENCE),
    "encoder": (encoder, SEQUENCE),
    "up": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 2),
            nn.BatchNorm2d(6, affine=False),
            nn.PReLU(6),
            nn.Conv2d(6, 2, 1),
        ),
        IMAGE,
    ),
}


def random_network(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            module.weight.data.normal_()
            module.bias.data.normal_()
    return net


def batch(shape: tuple[int, ...], seed: int = 0, size: int = 3) -> Tensor:
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed))


def labelled(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(inputs, torch.zeros(len(inputs), dtype=torch.int64))]
