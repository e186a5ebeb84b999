"""No data, no training: rounding, with more bits where layers are sensitive."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from gossamer.drive.recipe import Recipe
from gossamer.encoding.spec import TensorSpec
from gossamer.methods.quantize import RoundToNearest
from gossamer.network.inspect import specs
from gossamer.presets.layers import Layers, named

__all__ = ["small", "small_of"]


def small(model: nn.Module) -> Recipe:
    """A recipe that needs no data and should lose about half a point at most.

    Bits by kind of layer, see docs/presets.md for what was measured.

    Args:
        model: of which names, kinds and shapes count, not the weights; may be on the meta device.

    Returns:
        `RoundToNearest` entries, fewest bits first; edit them or put others around them.

    Raises:
        PlanError: no weight that is worth it.

    Example:
        >>> small(nn.Linear(64, 32))[0].bits
        4
    """
    return small_of(specs(model))


def small_of(listed: Iterable[TensorSpec]) -> Recipe:
    """`small` for tensors of a checkpoint that need not be in memory.

    Args:
        listed: all of them.
    """
    layers = Layers(tuple(listed))
    layers.check("small")
    matrices = tuple(s for s in (*layers.linear, *layers.embeddings) if s not in layers.ends)
    groups = [
        (4, matrices),
        (5, layers.convolutions),
        (6, layers.gates),
        (8, (*layers.stems, *layers.depthwise, *layers.ends)),
    ]
    recipe: list[RoundToNearest] = [
        RoundToNearest(bits=bits, group="channel", only=patterns) for bits, patterns in named(layers, groups).items()
    ]
    return [*recipe, *rounded_biases(layers)]


def rounded_biases(layers: Layers) -> Recipe:
    """Biases at 8 bits over their range, if there are any."""
    only = layers.only(layers.biases)
    return [RoundToNearest(bits=8, group="tensor", symmetric=False, only=only)] if only else []
