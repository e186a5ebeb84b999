"""Which candidate runs a layer, and which form a network, by measured times that are remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, final

from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.measure.race import raced
from gossamer.runtime.arguments import tensors_in
from gossamer.runtime.candidates import (
    GROUPED,
    WORTH_TRYING,
    density_of,
    fastest,
    is_stem,
    offers_for,
    resident_bytes,
    weights_of,
)
from gossamer.runtime.conv_tiles import IntoTiles
from gossamer.runtime.convolution import SparseConv, refusal
from gossamer.runtime.explanation import Choice
from gossamer.runtime.operators import factorized
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.tiled import GroupedLinear, tiler
from gossamer.runtime.tuning import Memory, convolution_key, layer_key

__all__ = ["TILES_FROM", "Tuner", "kept_dense", "tokens_of"]

_SECONDS_PER_LAYER = 0.08  # and candidate: some twenty rounds of a large layer
_SECONDS_PER_NETWORK = 0.5

TILES_FROM = 16
"""Tokens from which on a layer may be feature-major: with fewer, most of a tile is padding."""


def kept_dense(name: str, layer: nn.Module, reason: str) -> Choice:
    """The choice of a layer for which nothing was timed."""
    size = sum(weight.numel() * weight.element_size() for weight in weights_of(layer))
    return Choice(name, "dense", density_of(layer), float("nan"), float("nan"), size, size, reason)


def tokens_of(inputs: Tensor) -> int:
    """How many vectors reach a Linear layer."""
    return inputs.numel() // max(1, inputs.shape[-1])


@final
class Tuner:
    """Chooses by measured times.

    Args:
        memory: of earlier ones.
        jit: whether sparse kernels can be compiled here.
    """

    def __init__(self, memory: Memory, *, jit: bool) -> None:
        self.memory = memory
        self.jit = jit
        self._built: dict[tuple[str, str], nn.Module] = {}

    def choose(
        self, name: str, layer: nn.Module, tree: Encoding, inputs: Tensor, *, tiled: bool, before: str | None = None
    ) -> tuple[nn.Module, Choice]:
        """The fastest candidate for a layer.

        Args:
            name: of the layer.
            layer: dense.
            tree: of its weight.
            inputs: that reach it.
            tiled: whether its neighbours will hand on tiles.
            before: what was chosen when they did: of kernels that take tiles, which pay the same for changes of layout
                when they do not, only that is tried.
        """
        plain = kept_dense(name, layer, "")
        offers = offers_for(layer, tree, plain.density, inputs, jit=self.jit)
        if len(offers) == 1:
            return layer, replace(plain, reason=_no_candidate(layer, tree, plain.density, inputs, jit=self.jit))
        if before is not None and isinstance(layer, nn.Linear) and tokens_of(inputs) >= TILES_FROM:
            offers = {kind: make for kind, make in offers.items() if kind == before or not kind.startswith(GROUPED)}
        tiled = tiled and tokens_of(inputs) >= TILES_FROM

        def build(kind: str) -> nn.Module:
            if (name, kind) not in self._built:
                self._built[name, kind] = offers[kind]()
            return self._built[name, kind]

        def measure() -> dict[str, float]:
            calls = {kind: _call(build(kind), inputs, tiled=tiled) for kind in offers}
            times = raced(calls, seconds=_SECONDS_PER_LAYER * len(calls))
            return {kind: timing.median_ms for kind, timing in times.items()}

        if isinstance(layer, nn.Linear) and not factorized(tree):
            shape = (layer.out_features, layer.in_features)
            key = f"{layer_key(shape, plain.density, tokens_of(inputs), inputs.dtype)} tiles {tiled}"
            times = self.memory.times(key, tuple(offers), measure)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)) and not factorized(tree):
            key = f"{convolution_key(layer, plain.density, tuple(inputs.shape), inputs.dtype)} blocks"
            times = self.memory.times(key, tuple(offers), measure)
        else:
            times = measure()
        best = fastest(times)
        chosen = build(best)
        for kind in offers:  # other packed weights are not kept
            if kind != best:
                self._built.pop((name, kind), None)
        choice = replace(plain, kernel=best, ms=times[best], dense_ms=times["dense"], bytes=resident_bytes(chosen))
        return chosen, choice

    def times(self, key: str, calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
        """Milliseconds of several calls.

        Args:
            key: what is measured, as text.
            calls: by name.
            seconds: for all of them together.
        """

        def measure() -> dict[str, float]:
            return {kind: timing.median_ms for kind, timing in raced(calls, seconds=seconds).items()}

        return self.memory.times(key, tuple(calls), measure)

    def network_times(
        self,
        structure: str,
        choices: Iterable[Choice],
        arguments: tuple[Any, ...],
        calls: Mapping[str, Callable[[], object]],
    ) -> dict[str, float]:
        """Milliseconds of the whole network in several forms.

        Args:
            structure: of the dense network, as text.
            choices: what runs its layers.
            arguments: example inputs.
            calls: what computes each form.
        """
        layers = [(c.layer, c.kernel, c.dense_bytes, round(c.density, 2)) for c in choices]
        shapes = [(repr(type(a)), *(tuple(t.shape) for t in tensors_in(a))) for a in arguments]
        digest = hashlib.sha256(structure.encode()).hexdigest()
        return self.times(f"network {digest} {layers} {shapes}", calls, _SECONDS_PER_NETWORK)


def _call(module: nn.Module, inputs: Tensor, *, tiled: bool) -> Callable[[], object]:
    if isinstance(module, GroupedLinear) and tiled and inputs.numel():
        packed = tiler().pack(inputs)
        return lambda: module.product(packed.data)
    if isinstance(module, SparseConv) and inputs.ndim == 4 and inputs.numel():  # as its neighbours will hand on planes
        memory = Slabs()
        product = module.within(module.product.activation, memory).product
        blocks = IntoTiles(product.kernels.processor.lanes, memory)(inputs)
        return lambda: product.tiled(blocks)
    return lambda: module(inputs)


def _no_candidate(layer: nn.Module, tree: Encoding, density: float, inputs: Tensor, *, jit: bool) -> str:
    if factorized(tree):
        return f"{type(tree).__name__} in {type(layer).__name__}: no small operators for it here"
    if density >= WORTH_TRYING and not is_stem(layer):
        return f"density {density:.2f}: too few zeros to gain from"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        why = refusal(layer, tuple(inputs.shape[-len(layer.kernel_size) :]), density) if jit else ""
        if why:
            return f"{type(layer).__name__}: {why}"
    elif not isinstance(layer, nn.Linear):
        return f"{type(layer).__name__}: no sparse kernel for it"
    if not jit:
        return "no compiler for this processor"
    kernels = "float32 and bfloat16" if isinstance(layer, nn.Linear) else "float32"
    return f"{type(layer).__name__} of {inputs.dtype}: sparse kernels are for {kernels}"
