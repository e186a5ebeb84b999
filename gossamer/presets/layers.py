"""The weights of a network, sorted by what presets treat alike, and short patterns for their names."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.base import matches
from gossamer.network.inspect import owner_of

__all__ = ["Layers", "named"]

_WORTH = 128  # elements below which names and scales cost about what rounding saves
_LITTLE = 0.025  # share of all elements
_INPUTS = 4  # channels of images and sounds: a convolution with no more is taken to be the first


@final
@dataclass(frozen=True)
class Layers:
    """What there is to compress in a network.

    Args:
        listed: all its tensors.
    """

    listed: tuple[TensorSpec, ...]

    def of(self, *kinds: Kind) -> tuple[TensorSpec, ...]:
        """Tensors of these kinds with at least 128 elements, numbers with a fraction."""
        large = (s for s in self.listed if s.kind in kinds and s.elements >= _WORTH)
        return tuple(s for s in large if s.dtype.is_floating_point)

    @cached_property
    def linear(self) -> tuple[TensorSpec, ...]:
        """Weights of Linear layers, whose shape has two dimensions."""
        return tuple(s for s in self.of(Kind.LINEAR) if len(s.shape) == 2)

    @cached_property
    def ends(self) -> tuple[TensorSpec, ...]:
        """Embeddings and the last Linear layer, of at most 2.5% of all elements: more bits for them cost little."""
        whole = sum(s.elements for s in self.listed)
        return tuple(s for s in (*self.embeddings, *self.linear[-1:]) if s.elements <= _LITTLE * whole)

    @cached_property
    def depthwise(self) -> tuple[TensorSpec, ...]:
        """Convolutions with a group per channel or nearly so: few weights per output, each alone in its work."""
        return tuple(s for s in self.of(Kind.CONV) if s.groups > 1 and _inputs(s) <= _INPUTS)

    @cached_property
    def stems(self) -> tuple[TensorSpec, ...]:
        """Convolutions that read at most four channels: the first layer of a network for images or sound."""
        return tuple(s for s in self.of(Kind.CONV) if s.groups == 1 and _inputs(s) <= _INPUTS)

    @cached_property
    def convolutions(self) -> tuple[TensorSpec, ...]:
        """All others."""
        apart = {s.name for s in (*self.depthwise, *self.stems)}
        return tuple(s for s in self.of(Kind.CONV) if s.name not in apart)

    @cached_property
    def gates(self) -> tuple[TensorSpec, ...]:
        """Weights of recurrent layers."""
        return self.of(Kind.RECURRENT)

    @cached_property
    def embeddings(self) -> tuple[TensorSpec, ...]:
        """Tables of which a row is read at a time."""
        return self.of(Kind.EMBEDDING)

    @cached_property
    def biases(self) -> tuple[TensorSpec, ...]:
        """Biases of layers; those of normalisations are none (they scale and shift whole channels: left exact)."""
        norms = {owner_of(s.name)[0] for s in self.listed if s.kind is Kind.NORM}
        found = (s for s in self.listed if s.kind is Kind.BIAS and owner_of(s.name)[0] not in norms)
        return tuple(s for s in found if s.elements >= 8)

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """All that is worth compressing but biases."""
        return (*self.linear, *self.stems, *self.convolutions, *self.depthwise, *self.gates, *self.embeddings)

    @cached_property
    def reads_language(self) -> bool:
        """Whether it has embeddings, or LayerNorm and no convolutions: trained for long, and learns slowly."""
        owners = {owner_of(s.name)[0] for s in self.listed if s.kind is Kind.BUFFER}
        layer_norm = any(s.kind is Kind.NORM and owner_of(s.name)[0] not in owners for s in self.listed)
        return bool(self.embeddings) or (layer_norm and not self.convolutions)

    def check(self, who: str) -> None:
        """Refuse a network in which there is nothing to do.

        Raises:
            PlanError: names the preset.
        """
        if not self.weights:
            raise PlanError(
                f"preset {who}: found {len(self.listed)} tensors, expected a weight of a Linear, convolution, "
                f"embedding or recurrent layer with at least {_WORTH} elements"
            )

    def only(self, chosen: Iterable[TensorSpec]) -> tuple[str, ...]:
        """``only=`` patterns that mean these tensors and no others, as few as easily found."""
        chosen = tuple(chosen)
        mine = {s.name for s in chosen}
        # Patterns never reach normalisations: methods take those by full name only.
        others = [s for s in self.listed if s.name not in mine and s.kind is not Kind.NORM]
        patterns: dict[str, None] = {}
        for spec in chosen:
            if not matches(spec.names, tuple(patterns)):
                patterns[next(p for p in _patterns(spec.name) if _means_none(p, others))] = None
        return tuple(patterns)


def named(layers: Layers, groups: Sequence[tuple[int, Sequence[TensorSpec]]]) -> dict[int, tuple[str, ...]]:
    """Patterns by number of bits: groups with the same bits become one, empty ones vanish.

    Args:
        layers: of the network.
        groups: bits and the tensors that shall have them.
    """
    by_bits: dict[int, list[TensorSpec]] = {}
    for bits, tensors in groups:
        by_bits.setdefault(bits, []).extend(tensors)
    return {bits: layers.only(tensors) for bits, tensors in sorted(by_bits.items()) if tensors}


def _inputs(spec: TensorSpec) -> int:
    """Input channels that an output channel reads (a transposed convolution lists them first)."""
    return spec.shape[0] // spec.groups if spec.output_first else spec.shape[1]


def _patterns(name: str) -> tuple[str, ...]:
    """From short to exact. The last part is always spelled out: biases are reached in no other way."""
    owner, last = owner_of(name)
    exact = glob.escape(name)
    if not owner or exact != name:
        return (exact,)
    numbered = re.sub(r"\d+", "*", owner)
    numbered_layers = f"{numbered}.{last}" if "." in owner and numbered != owner else exact
    return (f"*.{last}", numbered_layers, exact)


def _means_none(pattern: str, others: Sequence[TensorSpec]) -> bool:
    return not any(matches(s.names, pattern) for s in others)
