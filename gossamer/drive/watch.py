"""What reaches the weights of a network: every functional call on a known weight is seen, whatever module makes it.

A weight is a matrix [out, in], ``in`` the product of its dimensions after the first once outputs come first; the rows
that it multiplies (samples, tokens, places of an image, of a transposed convolution the places of its output) are
summed up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gossamer.encoding.spec import TensorSpec

__all__ = ["Watch", "add_to", "gram_of", "no_fast_path", "watched_names"]

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
_CONVOLUTIONS = {f"conv{t}{n}d": (n, bool(t)) for n in (1, 2, 3) for t in ("", "_transpose")}
_UNROLLED = 1 << 24  # numbers of unfolded inputs at once
_STRIP = 192  # columns of a Gram matrix at once, at least


def add_to(statistics: dict[str, Tensor], key: str, value: Tensor) -> None:
    """Add to a sum; the first summand becomes the sum's own memory."""
    if key in statistics:
        statistics[key] += value
    else:
        statistics[key] = value.clone()


def gram_of(rows: Tensor) -> Tensor:
    """Xᵀ·X, exactly symmetric, in strips: what lies below the diagonal is not computed twice.

    Args:
        rows: float [..., rows, in].

    Returns:
        [..., in, in].

    Cost: rows · in² · (1/2 + 1/(2·strips)) multiplications, up to 4 strips.

    Example:
        >>> x = torch.randn(7, 3)
        >>> torch.allclose(gram_of(x), x.T @ x, atol=1e-5)
        True
    """
    columns = rows.shape[-1]
    width = max(_STRIP, -(-columns // 4))
    gram = rows.new_empty((*rows.shape[:-2], columns, columns))
    for first in range(0, columns, width):
        last = min(first + width, columns)
        strip = rows[..., first:last].mT @ rows[..., first:]  # [width, rows] · [rows, in − first]
        gram[..., first:last, first:] = strip
        gram[..., last:, first:last] = strip[..., last - first :].mT
        square = gram[..., first:last, first:last]
        square.copy_((square + square.mT) / 2)
    return gram


def watched_names(network: nn.Module, specs: Sequence[TensorSpec], names: frozenset[str]) -> dict[int, TensorSpec]:
    """Which parameter objects of a network are which tensors, of those that are asked for.

    Args:
        network: whose parameters are looked at; they must not be replaced while it is watched.
        specs: of the original network.
        names: canonical names.
    """
    canonical = {n: s for s in specs for n in s.names if s.name in names}
    return {id(p): canonical[n] for n, p in network.named_parameters(remove_duplicate=False) if n in canonical}


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Without torch's fused transformer layers, which would hide their linear layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@final
class Watch(TorchFunctionMode):
    """While it is active, inputs of known weights are summed up in `found`.

    For weights that see the very same inputs, such as the queries, keys and values of an attention, the work is done
    once, and `finish` makes their Gram matrices one object.

    Args:
        names: parameter object → its tensor, see `watched_names`.
        needs: of "count", "sum", "sq", "zeros", "gram".
    """

    def __init__(self, names: Mapping[int, TensorSpec], needs: frozenset[str]) -> None:
        super().__init__()
        self._names, self._needs = names, needs
        self._quiet = False
        self._last: tuple[Any, dict[str, Tensor], str] | None = None
        self._calls: dict[str, int] = {}
        self._follows: dict[str, tuple[str, int]] = {}  # weight → whose inputs it had too, and how often
        self.found: dict[str, dict[str, Tensor]] = {}

    @property
    def order(self) -> tuple[tuple[str, ...], ...]:
        """Tensors in the order of their first use, those that saw the same inputs together."""
        groups: dict[str, list[str]] = {}
        for name in self.found:
            leader = self._follows.get(name, (name, 0))[0]
            groups.setdefault(leader, []).append(name)
        return tuple(tuple(group) for group in groups.values())

    def finish(self) -> dict[str, dict[str, Tensor]]:
        """What was found; equal Gram matrices are the same object."""
        for name, (leader, times) in self._follows.items():
            if times == self._calls[name] == self._calls[leader] and "gram" in self.found[name]:
                self.found[name]["gram"] = self.found[leader]["gram"]
        self._last = None
        return self.found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name.endswith("_") and name != "__get__":
            self._last = None  # something is written to: perhaps what was seen last
        result = func(*args, **given)
        if not self._needs or self._quiet:
            return result
        if func is F.multi_head_attention_forward:
            self._see_attention(*args, **given)
        elif func is F.linear:
            self._see(_argument(args, given, 1, "weight"), _argument(args, given, 0, "input"))
        elif name == "addmm" and len(args) >= 3:  # the Conv1D of transformers: its weight is [in, out]
            self._see(args[2], args[1], turned=True)
        elif func is F.embedding:
            self._see_tokens(_argument(args, given, 1, "weight"), _argument(args, given, 0, "input"))
        elif name in _CONVOLUTIONS:
            self._see_convolution(args, given, *_CONVOLUTIONS[name])
        elif name in _RECURRENT and len(args) >= 3:
            self._see_recurrent(func, args)
        elif name in _CELLS:
            hidden = args[1][0] if isinstance(args[1], (tuple, list)) else args[1]
            self._see(args[2], args[0])
            self._see(args[3], hidden)
        return result

    def _see(self, weight: Any, inputs: Tensor, *, turned: bool = False) -> None:
        spec = self._names.get(id(weight))
        if spec is None or bool(spec.output_first) != turned:
            return
        if self._last is not None and self._last[0] is inputs:
            _, sums, leader = self._last
            _, times = self._follows.get(spec.name, (leader, 0))
            if self._follows.setdefault(spec.name, (leader, 0))[0] == leader != spec.name:
                self._follows[spec.name] = (leader, times + 1)
        else:
            sums = self._sums(inputs.detach().reshape(-1, inputs.shape[-1]).float())
            self._last = (inputs, sums, spec.name)
        self._add(spec.name, sums)

    def _sums(self, rows: Tensor) -> dict[str, Tensor]:
        """Statistics of rows [rows, in], or [groups, rows, in]."""
        found = {}
        if "count" in self._needs:
            found["count"] = torch.tensor([float(rows.shape[-2])])
        if "sum" in self._needs:
            found["sum"] = rows.sum(-2)
        if "sq" in self._needs:
            found["sq"] = rows.square().sum(-2)
        if "zeros" in self._needs:
            found["zeros"] = (rows == 0).sum(-2).float()
        if "gram" in self._needs:
            found["gram"] = gram_of(rows)
        return found

    def _add(self, name: str, sums: Mapping[str, Tensor], *, call: bool = True) -> None:
        self._calls[name] = self._calls.get(name, 0) + call
        mine = self.found.setdefault(name, {})
        for key, value in sums.items():
            add_to(mine, key, value)

    def _see_attention(self, *args: Any, **given: Any) -> None:
        # Its inner calls cannot be watched: what the output projection reads is had by projecting with the identity.
        bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **given)
        bound.apply_defaults()
        values = bound.arguments
        query, weight = values["query"], values["out_proj_weight"]
        if values["use_separate_proj_weight"]:
            for part, inputs in (("q", query), ("k", values["key"]), ("v", values["value"])):
                self._see(values[f"{part}_proj_weight"], inputs)
        elif values["key"] is query and values["value"] is query:
            self._see(values["in_proj_weight"], query)
        if id(weight) in self._names:
            values["out_proj_weight"], values["out_proj_bias"] = torch.eye(weight.shape[0]).to(weight), None
            self._see(weight, F.multi_head_attention_forward(*bound.args, **bound.kwargs)[0])

    def _see_tokens(self, weight: Any, tokens: Tensor) -> None:
        # A row of the table is an output for an input of one: every dimension counts as much as any other, and a row
        # as often as its token comes. Σ count_t·‖Δw_t‖² has on the average over rows the Gram matrix tokens / rows · I.
        spec = self._names.get(id(weight))
        if spec is None or spec.output_first:
            return
        rows, width = weight.shape
        uses = tokens.numel() / rows
        sums = {"count": torch.tensor([float(tokens.numel())]), "sum": torch.zeros(width), "zeros": torch.zeros(width)}
        sums |= {"sq": torch.full((width,), uses)}
        if "gram" in self._needs:
            sums["gram"] = torch.eye(width) * uses
        self._add(spec.name, {key: value for key, value in sums.items() if key in self._needs})

    def _see_convolution(self, args: tuple[Any, ...], given: Mapping[str, Any], dims: int, transposed: bool) -> None:
        inputs, weight = _argument(args, given, 0, "input"), _argument(args, given, 1, "weight")
        spec = self._names.get(id(weight))
        if spec is None or bool(spec.output_first) != transposed:
            return
        keys = ["stride", "padding", "dilation", "groups"]
        if transposed:
            keys = ["stride", "padding", "output_padding", "groups", "dilation"]
        values = {k: _argument(args, given, i, k, 0 if "padding" in k else 1) for i, k in enumerate(keys, 3)}
        stride, dilation = _each(values["stride"], dims), _each(values["dilation"], dims)
        kernel = tuple(weight.shape[2:])
        sides = _sides(values["padding"], kernel, dilation, dims)
        groups = int(values["groups"])
        x = inputs.detach().float()
        x = x if x.dim() == dims + 2 else x.unsqueeze(0)
        if transposed:
            x, sides = _spread(x, stride, sides, kernel, dilation, _each(values["output_padding"], dims))
            stride = (1,) * dims
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        places = [
            (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        ]
        once = max(1, _UNROLLED // max(1, x.shape[1] * prod(kernel) * prod(places)))
        for number, piece in enumerate(torch.split(x, once)):
            steps = piece.stride()
            columns = piece.as_strided(  # [n, channels, *places, *kernel], the kernel's offsets as views
                (*piece.shape[:2], *places, *kernel),
                (*steps[:2], *(a * b for a, b in zip(steps[2:], stride, strict=True)),
                 *(a * b for a, b in zip(steps[2:], dilation, strict=True))),
            )  # fmt: skip
            if transposed:
                columns = columns.flip(tuple(range(2 + dims, 2 + 2 * dims)))
            split = columns.reshape(len(piece), groups, -1, prod(places), prod(kernel))
            rows = split.permute(1, 0, 3, 2, 4).reshape(groups, len(piece) * prod(places), -1)  # [g, rows, in/g · k]
            self._add(spec.name, self._sums(rows if groups > 1 else rows[0]), call=number == 0)

    def _see_recurrent(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        # Only the first level's inputs can be seen from outside: levels and directions are run one by one. Sequences
        # of several lengths (packed) and LSTMs with projections are not taken apart.
        inputs, state, weights = args[0], args[1], args[2]
        if not (isinstance(weights, (list, tuple)) and isinstance(inputs, Tensor) and inputs.dim() == 3):
            return
        biases, levels, both_ways, batch_first = bool(args[3]), int(args[4]), bool(args[-2]), bool(args[-1])
        ways, each = 1 + both_ways, 4 if biases else 2
        if len(weights) != each * levels * ways or not any(id(w) in self._names for w in weights):
            return
        long = isinstance(state, (tuple, list))
        x = inputs if batch_first else inputs.transpose(0, 1)  # [batch, time, features]
        for level in range(levels):
            ends = []
            for way in range(ways):
                place = level * ways + way
                mine = list(weights[each * place : each * (place + 1)])
                first = tuple(s[place : place + 1] for s in state) if long else state[place : place + 1]
                sequence = x.flip(1) if way else x
                outputs = func(sequence, first, mine, biases, 1, 0.0, False, False, True)[0]  # [batch, time, hidden]
                hidden = (first[0] if long else first)[0]
                self._see(mine[0], sequence)
                self._see(mine[1], torch.cat([hidden.unsqueeze(1), outputs[:, :-1]], 1))
                ends.append(outputs.flip(1) if way else outputs)
            x = torch.cat(ends, -1)


def _argument(args: tuple[Any, ...], given: Mapping[str, Any], place: int, key: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else given.get(key, default)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number per dimension."""
    found = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
    return found * dims if len(found) == 1 else found


def _sides(padding: Any, kernel: Sequence[int], dilation: Sequence[int], dims: int) -> list[tuple[int, int]]:
    """Zeros before and behind, per dimension."""
    if padding == "valid":
        return [(0, 0)] * dims
    if padding == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in whole]
    return [(p, p) for p in _each(padding, dims)]


def _spread(
    x: Tensor,
    stride: Sequence[int],
    sides: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    dilation: Sequence[int],
    more: Sequence[int],
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Inputs and padding of the plain convolution, with its kernel turned over, that a transposed one is."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros((*x.shape[:2], *sizes))
    places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
    wide[places] = x
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    around = [(r - p, r - p + o) for r, (p, _), o in zip(reach, sides, more, strict=True)]
    return wide, around
