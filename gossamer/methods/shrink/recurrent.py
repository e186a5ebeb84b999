"""Recurrent layers in the dependency graph: a Linear stands for each of their levels, and its channels are units.

A hidden unit of an LSTM or GRU owns a row of every gate in weight_ih, weight_hh and the biases, a column of
weight_hh, and a column of whatever reads the layer. All levels and directions of one `nn.LSTM` have the same number of
units, so unit u dies in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Gates", "with_stand_ins"]

_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}


@dataclass(frozen=True)
class Gates:
    """The tensors behind one stand-in.

    Args:
        layer: name of the recurrent layer.
        suffix: of its tensors, such as ``_l0_reverse``; empty for cells.
        gates: 4 for an LSTM, 3 for a GRU.
        hidden: units.
        bias: whether it has biases.
    """

    layer: str
    suffix: str
    gates: int
    hidden: int
    bias: bool

    def name(self, key: str) -> str:
        """Full name of one of the tensors."""
        return f"{self.layer}.{key}{self.suffix}" if self.layer else f"{key}{self.suffix}"

    @property
    def weight(self) -> str:
        """Full name of the input weight."""
        return self.name("weight_ih")

    def tensors(self, index: Tensor, *, reads: bool) -> Iterator[tuple[str, int, Tensor]]:
        """Tensor dimensions that lose inputs or units, with the indices [channels, k] in each."""
        if reads:
            yield self.weight, 1, index
            return
        rows = torch.cat([index + gate * self.hidden for gate in range(self.gates)], 1)
        yield self.weight, 0, rows
        yield self.name("weight_hh"), 0, rows
        yield self.name("weight_hh"), 1, index
        if self.bias:
            yield self.name("bias_ih"), 0, rows
            yield self.name("bias_hh"), 0, rows


class _Layer(nn.Module):
    """Has the inputs, outputs and dependencies of a recurrent layer, computes nothing that matters."""

    def __init__(self, of: nn.RNNBase) -> None:
        super().__init__()
        self.ways = 2 if of.bidirectional else 1
        self.levels, self.batch_first = of.num_layers, of.batch_first
        self.input_size, self.hidden_size, self.num_layers = of.input_size, of.hidden_size, of.num_layers
        self.bidirectional = of.bidirectional
        self.pair = isinstance(of, nn.LSTM)
        for level in range(of.num_layers):
            for way in range(self.ways):
                inputs = of.input_size if level == 0 else of.hidden_size * self.ways
                setattr(self, _key(level, way), nn.Linear(inputs, of.hidden_size))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        made: list[Tensor] = []
        for level in range(self.levels):
            here = [getattr(self, _key(level, way))(x) for way in range(self.ways)]
            made += here
            x = torch.cat(here, -1) if self.ways == 2 else here[0]
        last = made[-self.ways :]
        if len(made) > 1 or state is not None:
            total = torch.stack(made).sum(0) if len(made) > 1 else made[0]
            for given in state if isinstance(state, tuple) else () if state is None else (state,):
                total = total + given[0].unsqueeze(1 if self.batch_first else 0)
            last = [one + total for one in last]
        x = torch.cat(last, -1) if self.ways == 2 else last[0]
        final = last[-1].select(1 if self.batch_first and x.dim() == 3 else 0, -1)
        final = torch.stack([final] * (self.levels * self.ways))
        return x, (final, final) if self.pair else final


class _Cell(nn.Module):
    def __init__(self, of: nn.RNNCellBase) -> None:
        super().__init__()
        self.pair = isinstance(of, nn.LSTMCell)
        self.input_size, self.hidden_size = of.input_size, of.hidden_size
        self.one = nn.Linear(of.input_size, of.hidden_size)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y = self.one(x)
        for given in state if isinstance(state, tuple) else () if state is None else (state,):
            y = y + given
        return (y, y) if self.pair else y


def _key(level: int, way: int) -> str:
    return f"l{level}" + ("_reverse" if way else "")


def with_stand_ins(model: nn.Module) -> dict[str, Gates]:
    """Replace recurrent layers in place; those with projections or of other kinds stay.

    Returns:
        Per stand-in Linear its tensors.
    """
    found: dict[str, Gates] = {}
    for name, module in list(model.named_modules()):
        gates = next((n for kind, n in _GATES.items() if type(module) is kind), 0)
        if not name or not gates or getattr(module, "proj_size", False):
            continue
        new: nn.Module
        if isinstance(module, nn.RNNBase):
            new = _Layer(module)
            for key, _ in new.named_children():
                found[f"{name}.{key}"] = Gates(name, f"_{key}", gates, module.hidden_size, module.bias)
        elif isinstance(module, nn.RNNCellBase):
            new = _Cell(module)
            found[f"{name}.one"] = Gates(name, "", gates, module.hidden_size, module.bias)
        else:
            continue
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, new)
    return found
