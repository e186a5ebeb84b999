"""LSTM and GRU with zeros in their weights, for inference.

The products of all steps with the input's weight are one product. Then, step by step, the state's product and one call
that makes the next state of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gossamer.encoding.values import Dense
from gossamer.jit.cpu import host, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.candidates import WORTH_TRYING, resident_bytes
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.explanation import Choice
from gossamer.runtime.grouped import describe
from gossamer.runtime.kernels import GateKernels, load
from gossamer.runtime.linear import SparseLinear
from gossamer.runtime.threads import openmp
from gossamer.runtime.tuner import Tuner, kept_dense
from gossamer.runtime.vector import VectorLinear

__all__ = ["Recurrent", "SparseRecurrent", "choose_recurrent", "recurrent_refusal"]

Recurrent = nn.LSTM | nn.GRU
_SECONDS = 0.3
_WORTH_A_TEAM = 20_000  # units of all rows from which on starting a team of threads saves time


@final
class SparseRecurrent(nn.Module):
    """What ``torch.nn.LSTM`` or ``torch.nn.GRU`` computes, from products that may be sparse; fp32 on the CPU.

    Args:
        layer: of which sizes are taken; its weights are not kept.
        parts: per level, and in it per direction: what multiplies the input, [n, in] → [n, gates · hidden], and what
            multiplies the state, [n, hidden] → [n, gates · hidden], each with its bias.

    Exact: sigmoid and tanh to about 1e-7.
    """

    def __init__(self, layer: Recurrent, parts: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.mode = layer.mode
        self.input_size, self.hidden_size, self.num_layers = layer.input_size, layer.hidden_size, layer.num_layers
        self.bias, self.batch_first, self.dropout = layer.bias, layer.batch_first, layer.dropout
        self.bidirectional, self.proj_size = layer.bidirectional, layer.proj_size
        self.enter = nn.ModuleList(enter for enter, _ in parts)
        self.state = nn.ModuleList(state for _, state in parts)
        # Looking modules up by their numbers would take a step of a small layer a tenth of its time.
        self._products = tuple((_direct(enter), _direct(state)) for enter, state in parts)
        self._gates = _Gates.of("lstm" if isinstance(layer, nn.LSTM) else "gru")

    def flatten_parameters(self) -> None:
        """Nothing: there are none; code written for cuDNN calls this."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As PyTorch has it.

        Args:
            input: float32 [T, in], [T, n, in], [n, T, in] with ``batch_first``, or packed.
            hx: state to begin with, [levels · directions, (n,) hidden]; a pair of them for LSTM. None: zeros.

        Returns:
            The states of the last level at all steps, and the last states of all levels and directions.

        Raises:
            RuntimeError: the input or state has another shape, dtype or device, or a gradient is asked for.
        """
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes.tolist()
            falling = all(a >= b > 0 for a, b in zip(sizes, [*sizes[1:], 1], strict=True))
            if not falling or sum(sizes) != input.data.shape[0]:  # kernels would read beyond the end
                raise RuntimeError(f"{self.mode}: found batch sizes {sizes} for {input.data.shape[0]} rows")
            rows, order = input.data, input.sorted_indices
        else:
            x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if self.batch_first else input
            if x.dim() != 3 or not x.shape[0]:
                raise RuntimeError(f"{self.mode}: found input {tuple(input.shape)}, expected 2 or 3 sizes, steps > 0")
            sizes, order = [x.shape[1]] * x.shape[0], None
            rows = x.reshape(-1, x.shape[2])
        if rows.shape[1] != self.input_size:
            raise RuntimeError(f"{self.mode}: found input {tuple(rows.shape)}, expected [..., {self.input_size}]")
        if rows.dtype is not torch.float32 or not rows.is_cpu or (rows.requires_grad and torch.is_grad_enabled()):
            found = f"{rows.dtype} on {rows.device}" + (" with a gradient" if rows.requires_grad else "")
            raise RuntimeError(f"{self.mode}: found input of {found}, expected torch.float32 on cpu for inference")
        single = isinstance(input, Tensor) and input.dim() == 2
        h, c = self._states(hx, sizes[0], order, single=single)
        out = self._levels(rows.resolve_neg().contiguous(), sizes, h, c)
        last = [h, c] if c is not None else [h]
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                last = [state.index_select(1, input.unsorted_indices) for state in last]
            made: Any = PackedSequence(out, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        elif single:
            made, last = out, [state.squeeze(1) for state in last]
        else:
            made = out.view(len(sizes), sizes[0], out.shape[1])
            made = made.transpose(0, 1) if self.batch_first else made
        return made, tuple(last) if c is not None else last[0]

    def _states(self, hx: Any, count: int, order: Tensor | None, *, single: bool) -> tuple[Tensor, Tensor | None]:
        """First states that may be overwritten, [levels · directions, n, hidden]."""
        shape = (len(self.state), count, self.hidden_size)
        pair = self.mode == "LSTM"
        if hx is None:
            blank = partial(torch.zeros, shape, dtype=torch.float32, device="cpu")
            return blank(), blank() if pair else None
        found = []
        for given in hx if pair else (hx,):
            state = given.unsqueeze(1) if single else given
            if tuple(state.shape) != shape or state.dtype is not torch.float32 or not state.is_cpu:
                raise RuntimeError(f"{self.mode}: found state {tuple(given.shape)} {given.dtype}, expected {shape}")
            whole = torch.contiguous_format
            found.append(state.clone(memory_format=whole) if order is None else state.index_select(1, order))
        return found[0], found[1] if pair else None

    def _levels(self, rows: Tensor, sizes: list[int], h: Tensor, c: Tensor | None) -> Tensor:
        """All levels, one after the other; h and c become the last states."""
        width, ways = self.hidden_size, 2 if self.bidirectional else 1
        for level in range(self.num_layers):
            out = rows.new_empty(rows.shape[0], width * ways)
            for way in range(ways):
                i = ways * level + way
                memory = 0 if c is None else c.data_ptr() + 4 * i * c.stride(0)
                self._steps(i, rows, sizes, h[i], memory, out, way)
            rows = out
        return rows

    def _steps(self, i: int, rows: Tensor, sizes: list[int], h: Tensor, c_at: int, out: Tensor, way: int) -> None:
        """One direction of one level; c is an address, and 0 if there is none."""
        enter, product = self._products[i]
        entered = enter(rows)
        run, pool, units = self._gates.run, self._gates.pool, self.hidden_size
        stride = out.shape[1]
        a, a_row, y, y_row = entered.data_ptr(), 4 * entered.shape[1], out.data_ptr() + 4 * units * way, 4 * stride
        h_at = h.data_ptr()
        starts = [0, *accumulate(sizes)]
        count, live, threads = -1, h, 1
        for t in reversed(range(len(sizes))) if way else range(len(sizes)):
            if sizes[t] != count:  # of packed sequences the longest come first
                count = sizes[t]
                live = h[:count]
                threads = self._gates.threads(count * units)
            b = product(live)
            at = starts[t]
            run(pool, a + at * a_row, b.data_ptr(), h_at, c_at, y + at * y_row, stride, units, count, threads)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


@final
class _Gates(CompiledProduct):
    """The compiled step of an LSTM or a GRU; immutable, shared by copies of a network."""

    def __init__(self, name: str, kernels: GateKernels) -> None:
        self._kernels, self._openmp = kernels, openmp()
        self.run = kernels.lstm if name == "lstm" else kernels.gru
        self._description = describe(self._openmp)
        self.pool: int = self._description.ctypes.data

    @classmethod
    def of(cls, name: str) -> _Gates:
        """At the instruction set that is wanted."""
        return cls(name, _kernels_now())

    def threads(self, units: int) -> int:
        """Threads that a step is worth."""
        return 1 if units < _WORTH_A_TEAM else self._openmp.threads()


def _kernels_now() -> GateKernels:
    return load(GateKernels, host(wanted_level()), cache_directory())


def recurrent_refusal(layer: Recurrent, inputs: Tensor | PackedSequence, *, jit: bool) -> str:
    """Why a recurrent layer stays dense without being timed; empty if it need not."""
    data = inputs.data if isinstance(inputs, PackedSequence) else inputs
    densities = {name: _density(p) for name, p in layer.named_parameters() if name.startswith("weight")}
    if all(density >= WORTH_TRYING for density in densities.values()):
        said = ", ".join(f"{name} {density:.2f}" for name, density in densities.items())
        return f"density of {said}: too few zeros to gain from"
    if not jit:
        return "no compiler for this processor"
    if layer.proj_size:
        return f"{type(layer).__name__} with projections: no sparse kernel for it"
    if data.dtype is not torch.float32 or any(p.dtype is not torch.float32 for p in layer.parameters()):
        return f"{data.dtype}: only float32 has sparse kernels"
    return ""


def choose_recurrent(
    tuner: Tuner, name: str, layer: Recurrent, inputs: Tensor | PackedSequence
) -> tuple[nn.Module, Choice]:
    """The layer, or one made of the fastest products for each of its weights, whichever is faster.

    Args:
        tuner: measures and remembers.
        name: of the layer.
        layer: dense.
        inputs: that reach it.
    """
    plain = kept_dense(name, layer, "")
    if reason := recurrent_refusal(layer, inputs, jit=tuner.jit):
        return layer, replace(plain, reason=reason)
    rows = inputs.data.shape[0] if isinstance(inputs, PackedSequence) else inputs.numel() // layer.input_size
    batch = _batch(layer, inputs)
    parts, kernels = [], []
    for level in range(layer.num_layers):
        for way in ("", "_reverse")[: 1 + layer.bidirectional]:
            pair = []
            for kind, count in (("ih", rows), ("hh", batch)):
                linear = _linear(layer, kind, f"l{level}{way}")
                example = torch.full((count, linear.in_features), 0.5)
                at = f"{name}.weight_{kind}_l{level}{way}"
                module, choice = tuner.choose(at, linear, Dense(linear.weight.detach()), example, tiled=False)
                pair.append(module)
                kernels.append(f"{at.rpartition('.')[2]} {choice.kernel}")
            parts.append((pair[0], pair[1]))
    made = SparseRecurrent(layer, parts)
    said = ", ".join(kernels)
    if all(kernel.endswith(" dense") for kernel in kernels):
        return layer, replace(plain, reason="dense products were measured to be faster for every weight")

    calls: dict[str, Callable[[], object]] = {"dense": lambda: layer(inputs), said: lambda: made(inputs)}
    sizes = f"{layer} {rows} rows of {batch} packed {isinstance(inputs, PackedSequence)}"
    times = tuner.times(f"recurrent {sizes} density {plain.density:.2f}", calls, _SECONDS)
    best = min(times, key=lambda kind: times[kind])
    chosen = layer if best == "dense" else made
    choice = replace(plain, kernel=best, ms=times[best], dense_ms=times["dense"], bytes=resident_bytes(chosen))
    if best == "dense":
        choice = replace(choice, reason=f"{said}: {times[said]:.3g} ms, slower than dense")
    return chosen, choice


def _direct(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What multiplies contiguous rows of the right width."""
    return module.product if isinstance(module, (SparseLinear, VectorLinear)) else module


def _batch(layer: Recurrent, inputs: Tensor | PackedSequence) -> int:
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    return 1 if inputs.dim() == 2 else inputs.shape[0 if layer.batch_first else 1]


def _density(weight: Tensor) -> float:
    return int(weight.count_nonzero()) / max(1, weight.numel())


def _linear(layer: Recurrent, kind: str, suffix: str) -> nn.Linear:
    """One weight of a recurrent layer and its bias as a Linear layer that shares them."""
    weight = layer.get_parameter(f"weight_{kind}_{suffix}")
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if layer.bias:
        made.bias = nn.Parameter(layer.get_parameter(f"bias_{kind}_{suffix}").detach(), requires_grad=False)
    return made
