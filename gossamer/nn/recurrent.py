"""``torch.nn.LSTM`` and ``torch.nn.GRU`` whose parameters are the live weights only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from gossamer.errors import PlanError
from gossamer.nn.dead import SeenGradient
from gossamer.nn.linear import SparseLinear
from gossamer.nn.passes import Direction, direction, packed, unpacked
from gossamer.nn.topology import Topology
from gossamer.runtime.live_cells import Frame, Kind, cells

__all__ = ["SparseGRU", "SparseLSTM", "SparseRecurrent"]

Dense = nn.LSTM | nn.GRU


class SparseRecurrent(nn.Module, ABC):
    """What `SparseLSTM` and `SparseGRU` have in common: one `SparseLinear` per weight, under the dense weight's name.

    Everything that walks over sparse layers finds these: topologies move, gradients are watched and states are saved
    weight by weight (``rnn.weight_hh_l0.values``).
    """

    live_values_only: ClassVar[bool] = True
    kind: ClassVar[Kind]
    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        topologies: Mapping[str, Topology],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if min(input_size, hidden_size, num_layers) < 1 or not 0 <= dropout <= 1:
            found = f"found input_size {input_size}, hidden_size {hidden_size}, num_layers {num_layers}, {dropout=}"
            raise PlanError(f"{name}: {found}, expected sizes of at least 1 and a dropout of 0 to 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional
        shapes = self._shapes()
        if unknown := sorted(set(topologies) ^ set(shapes)):
            raise PlanError(f"{name}: found {unknown[0]} only on one side, expected topologies of {', '.join(shapes)}")
        for key, shape in shapes.items():
            topology = topologies[key]
            if topology.shape != shape:
                raise PlanError(f"{name}: {key}: found topology {topology.shape}, expected {shape}")
            device = topology.positions.device
            bound = 1 / math.sqrt(max(1.0, hidden_size * topology.density))
            values = torch.empty(topology.live, device=device).uniform_(-bound, bound)
            layer = SparseLinear(shape[1], shape[0], bias, topology=topology, values=values)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
            self.add_module(key, layer)

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """Of all weights, by name, in PyTorch's order."""
        made = {}
        for level, suffix in self._runs():
            wide = self.input_size if not level else self.hidden_size * self.ways
            made[f"weight_ih_{suffix}"] = (self.gates * self.hidden_size, wide)
            made[f"weight_hh_{suffix}"] = (self.gates * self.hidden_size, self.hidden_size)
        return made

    @property
    def ways(self) -> int:
        """Directions."""
        return 1 + self.bidirectional

    def _runs(self) -> Iterator[tuple[int, str]]:
        """(level, ending of its weights' names), direction by direction."""
        for level in range(self.num_layers):
            for way in ("", "_reverse")[: self.ways]:
                yield level, f"l{level}{way}"

    def weights(self) -> dict[str, SparseLinear]:
        """The layers that hold the weights, by the dense weights' names."""
        return {name: cast(SparseLinear, self.get_submodule(name)) for name in self._shapes()}

    @property
    def mode(self) -> str:
        """As PyTorch has it."""
        return self.kind.upper()

    @classmethod
    def _of(cls, dense: Dense, masks: Mapping[str, Tensor]) -> Self:
        name = cls.__name__
        if dense.proj_size:
            raise PlanError(f"{name}: found proj_size {dense.proj_size}, expected a layer without projections")
        tensors = {n: p.detach() for n, p in dense.named_parameters() if n.startswith("weight")}
        if unknown := sorted(set(masks) - set(tensors)):
            raise PlanError(f"{name}: found a mask of {unknown[0]}, expected some of {', '.join(tensors)}")
        topologies = {}
        for key, weight in tensors.items():
            mask = masks.get(key, torch.ones_like(weight, dtype=torch.bool))
            if mask.shape != weight.shape:
                raise PlanError(f"mask of {key}: found {tuple(mask.shape)}, expected {tuple(weight.shape)}")
            topologies[key] = Topology.of_mask(mask)
        made = cls(
            dense.input_size,
            dense.hidden_size,
            dense.num_layers,
            dense.bias,
            dense.batch_first,
            dense.dropout,
            dense.bidirectional,
            topologies=topologies,
        )
        with torch.no_grad():
            for key, layer in made.weights().items():
                layer.values.copy_(tensors[key].reshape(-1)[layer.positions.long()])
                if layer.bias is not None:
                    layer.bias.copy_(dense.get_parameter(_bias(key)))
        return made.train(dense.training)

    def _to(self, kind: type[Dense]) -> Dense:
        first = next(iter(self.weights().values())).values
        made = kind(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            device=first.device,
            dtype=first.dtype,
        )
        with torch.no_grad():
            for key, layer in self.weights().items():
                made.get_parameter(key).copy_(layer.dense_weight())
                if layer.bias is not None:
                    made.get_parameter(_bias(key)).copy_(layer.bias)
        return made.train(self.training)

    def flatten_parameters(self) -> None:
        """Nothing: code written for cuDNN calls this."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As PyTorch has it.

        Args:
            input: [T, in], [T, n, in], [n, T, in] with ``batch_first``, or packed; float32 or, under autocast, any
                floating type.
            hx: state to begin with, [levels · directions, (n,) hidden]; a pair of them for LSTM. None: zeros.

        Returns:
            The states of the last level at all steps, and the last states of all levels and directions.

        Raises:
            RuntimeError: the input or state has another shape.
        """
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        if torch.is_autocast_enabled(device):
            kind = next(self.parameters()).dtype
            with torch.autocast(device, enabled=False):
                given = (
                    hx
                    if hx is None
                    else tuple(s.to(kind) for s in hx)
                    if isinstance(hx, (tuple, list))
                    else hx.to(kind)
                )
                return self._apply_to(input.to(kind), given)
        return self._apply_to(input, hx)

    def _apply_to(self, input: Tensor | PackedSequence, hx: Any) -> tuple[Any, Any]:
        single, order, batch_sizes = False, None, None
        if isinstance(input, PackedSequence):
            rows, order, batch_sizes = input.data, input.sorted_indices, input.batch_sizes
            sizes = tuple(batch_sizes.tolist())
        else:
            single = input.dim() == 2
            rows = input.unsqueeze(1) if single else input.transpose(0, 1) if self.batch_first else input
            if rows.dim() != 3 or not rows.shape[0]:
                raise RuntimeError(f"{self.mode}: found input {tuple(input.shape)}, expected 2 or 3 sizes, steps > 0")
            sizes = (rows.shape[1],) * rows.shape[0]
        if rows.shape[-1] != self.input_size:
            raise RuntimeError(f"{self.mode}: found input {tuple(rows.shape)}, expected [..., {self.input_size}]")
        states = self._states(hx, rows, sizes[0], order, single=single)
        made = self._compiled(rows, states, sizes)
        y: Any
        y, last = self._plain(rows, states, batch_sizes) if made is None else made
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                last = [state.index_select(1, input.unsorted_indices) for state in last]
            y = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        elif single:
            y, last = y.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, tuple(last) if len(last) > 1 else last[0]

    def _states(self, hx: Any, rows: Tensor, count: int, order: Tensor | None, *, single: bool) -> list[Tensor]:
        """First states, [levels · directions, n, hidden], and of an LSTM first cells."""
        shape, pair = (self.num_layers * self.ways, count, self.hidden_size), self.kind == "lstm"
        if hx is None:
            return [rows.new_zeros(shape) for _ in range(1 + pair)]
        given = list(hx) if pair else [hx]
        if len(given) != 1 + pair:
            raise RuntimeError(f"{self.mode}: found {len(given)} states, expected {1 + pair}")
        found = []
        for one in given:
            state = one.unsqueeze(1) if single else one
            if tuple(state.shape) != shape:
                raise RuntimeError(f"{self.mode}: found state {tuple(one.shape)}, expected {shape}")
            found.append(state if order is None else state.index_select(1, order))
        return found

    def _compiled(
        self, rows: Tensor, states: list[Tensor], sizes: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Through the kernels; None where there are none for this device or type."""
        if any(t.dtype is not torch.float32 or not t.is_cpu or not t.numel() for t in (rows, *states)):
            return None
        layers = self.weights()
        matrices = {name: layer.live_matrix() for name, layer in layers.items()}
        laid_out = {name: matrix for name, matrix in matrices.items() if matrix is not None}
        if len(laid_out) < len(matrices):
            return None
        math_ = next(iter(laid_out.values())).math
        frame, ends = Frame(sizes, math_), Frame(sizes[:1] * len(states[0]), math_)
        first = [packed(state, ends) for state in states]
        steps = cells(self.kind, math_.kernels.processor)
        last: list[list[Tensor]] = [[] for _ in states]
        x = packed(rows, frame)
        for level in range(self.num_layers):
            if level and self.training and self.dropout:
                x = F.dropout(x, self.dropout)
            made = []
            for way in range(self.ways):
                at = self.ways * level + way
                ih, hh = (f"weight_{part}_l{level}{'_reverse' * way}" for part in ("ih", "hh"))
                pair = (laid_out[ih], laid_out[hh])
                run = Direction(layers[ih], layers[hh], pair, steps, frame, reverse=bool(way))
                y, h, c = direction(x, first[0][at], first[1][at] if len(first) > 1 else None, run)
                made.append(y)
                for end, state in zip(last, (h, c), strict=False):
                    end.append(cast(Tensor, state))
            x = made[0] if len(made) == 1 else torch.cat(made, 2)
        y = unpacked(x, frame, batch_first=self.batch_first, flat=rows.dim() == 2)
        return y, [unpacked(torch.stack(end), ends, batch_first=False, flat=False) for end in last]

    def _plain(self, rows: Tensor, states: list[Tensor], batch_sizes: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """In PyTorch's own operations, on any device and in any type; dense weights exist meanwhile."""
        flat = []
        layers = self.weights()
        for _, suffix in self._runs():
            pair = [layers[f"weight_{part}_{suffix}"] for part in ("ih", "hh")]
            for layer in pair:
                weight = layer.dense_weight()
                if layer.watching and weight.requires_grad:
                    weight.register_hook(partial(_hear, layer))  # type: ignore[no-untyped-call]
                flat.append(weight)
            flat += [layer.bias for layer in pair if layer.bias is not None]
        call = torch.lstm if self.kind == "lstm" else torch.gru
        hx: Any = states if self.kind == "lstm" else states[0]
        rest = (flat, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        found = call(rows, hx, *rest, False) if batch_sizes is None else call(rows, batch_sizes, hx, *rest)
        y, *last = found
        return y, last

    @abstractmethod
    def to_dense(self) -> Dense:
        """The same layer with its zeros, parameters copied."""

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        said = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (("num_layers", 1), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False)):
            said += "" if getattr(self, name) == usual else f", {name}={getattr(self, name)}"
        return said


def _bias(weight: str) -> str:
    return weight.replace("weight", "bias", 1)


def _hear(layer: SparseLinear, gradient: Tensor) -> None:
    gradient = gradient.detach()
    layer.saw(SeenGradient(gradient, gradient))


@final
class SparseLSTM(SparseRecurrent):
    """An LSTM whose weights are live at the positions of topologies and zero elsewhere; live values are what trains.

    i, f, o = σ(W_i·x + b_i + U_i·h + d_i), …; g = tanh(W_g·x + b_g + U_g·h + d_g); c' = f·c + i·g; h' = o·tanh(c').

    Under autocast inputs are cast to the type of the values, float32, in which everything is computed. Where there are
    no kernels (other devices, other types), PyTorch's own operations compute the same with dense weights that exist for
    the moment.

    Args:
        input_size: features of the input.
        hidden_size: H, units.
        num_layers: levels.
        bias: whether there are two per gate, as in PyTorch.
        batch_first: whether inputs and outputs are [n, T, features].
        dropout: between levels, in training.
        bidirectional: whether each level runs both ways.
        topologies: by the dense weights' names (``weight_ih_l0``, ``weight_hh_l0``, ``weight_ih_l0_reverse``, …), of
            shapes [4·H, in] and [4·H, H]; gates in PyTorch's order. Values are drawn from U(−1/√n, 1/√n), n being H
            times the density.

    Raises:
        PlanError: shapes do not fit, or topologies are missing.

    Cost: per step and sample live multiply-adds forward, twice as many back. The products with the input, and the
        gradients of both weights, are computed for all steps at once. Kept for the backward pass: inputs, states, cells
        and gates of all steps. Packed sequences are computed as if all were as long as the first, in whole vectors.
    Exact: sums in float32, whose order does not depend on the number of threads; sigmoid and tanh to about 1e-7.

    Example:
        >>> layer = SparseLSTM.of(nn.LSTM(3, 4), {"weight_hh_l0": torch.rand(16, 4) < 0.5})
        >>> y, (h, c) = layer(torch.randn(7, 2, 3))
        >>> y.shape, h.shape, c.shape
        (torch.Size([7, 2, 4]), torch.Size([1, 2, 4]), torch.Size([1, 2, 4]))
        >>> type(layer.weight_hh_l0).__name__
        'SparseLinear'
    """

    kind: ClassVar[Kind] = "lstm"
    gates: ClassVar[int] = 4

    @classmethod
    def of(cls, lstm: nn.LSTM, masks: Mapping[str, Tensor]) -> SparseLSTM:
        """A dense layer without the weights that masks take out; weights and biases are copied.

        Args:
            lstm: the layer, without projections.
            masks: bool, True = kept, by the weights' names; weights without a mask are live everywhere.

        Raises:
            PlanError: a mask does not fit, or the layer has projections.
        """
        return cls._of(lstm, masks)

    def to_dense(self) -> nn.LSTM:
        """The same layer with its zeros, parameters copied."""
        return cast(nn.LSTM, self._to(nn.LSTM))


@final
class SparseGRU(SparseRecurrent):
    """A GRU whose weights are live at the positions of topologies and zero elsewhere; live values are what trains.

    r, z = σ(W_r·x + b_r + U_r·h + d_r), …; n = tanh(W_n·x + b_n + r·(U_n·h + d_n)); h' = (1 − z)·n + z·h.

    Args:
        input_size: as `SparseLSTM` has it, as all that follows.
        hidden_size: H, units.
        num_layers: levels.
        bias: whether there are two per gate.
        batch_first: whether inputs and outputs are [n, T, features].
        dropout: between levels, in training.
        bidirectional: whether each level runs both ways.
        topologies: by the dense weights' names, of shapes [3·H, in] and [3·H, H].

    Raises:
        PlanError: shapes do not fit, or topologies are missing.

    Cost: as `SparseLSTM`, with three gates.
    Exact: as `SparseLSTM`.

    Example:
        >>> layer = SparseGRU.of(nn.GRU(3, 4), {"weight_hh_l0": torch.rand(12, 4) < 0.5})
        >>> y, h = layer(torch.randn(7, 2, 3))
        >>> y.shape, h.shape
        (torch.Size([7, 2, 4]), torch.Size([1, 2, 4]))
    """

    kind: ClassVar[Kind] = "gru"
    gates: ClassVar[int] = 3

    @classmethod
    def of(cls, gru: nn.GRU, masks: Mapping[str, Tensor]) -> SparseGRU:
        """A dense layer without the weights that masks take out; weights and biases are copied.

        Args:
            gru: the layer.
            masks: bool, True = kept, by the weights' names; weights without a mask are live everywhere.

        Raises:
            PlanError: a mask does not fit.
        """
        return cls._of(gru, masks)

    def to_dense(self) -> nn.GRU:
        """The same layer with its zeros, parameters copied."""
        return cast(nn.GRU, self._to(nn.GRU))
