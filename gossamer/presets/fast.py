"""Data and training: what makes the processor faster after `.lower()`."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import Recipe
from gossamer.drive.tune import Tune
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.prune import Magnitude
from gossamer.methods.shrink import Channels
from gossamer.network.inspect import specs
from gossamer.presets.layers import Layers
from gossamer.presets.tiny import training_of

__all__ = ["fast"]

_WIDE, _LARGE = 64, 1 << 14  # outputs and inputs, and weights, from which a sparse Linear layer gains


def fast(model: nn.Module) -> Recipe:
    """A recipe for less time on the processor: needs data, and trains for several epochs.

    Convolutions and recurrent layers lose 30% of their channels (about half of the multiplications), which runs faster
    everywhere. Then wide Linear layers are pruned to 90% zeros (80% in language networks) for the sparse kernel.
    Channels come first: what is masked cannot be cut any more.

    Args:
        model: of which names, kinds and shapes count, not the weights.

    Returns:
        `Channels` and `Tune`, `Gradual`, or both.

    Raises:
        PlanError: neither convolutions or recurrent layers nor a Linear layer wide enough.

    Example:
        >>> fast(nn.Linear(784, 300))[0].methods[0].sparsity
        0.9
    """
    layers = Layers(specs(model))
    layers.check("fast")
    tune = training_of(layers)
    wide = tuple(s for s in layers.linear if _is_wide(s))
    recipe: list[Channels | Tune | Gradual] = []
    if layers.convolutions or layers.gates:
        healed = replace(tune, epochs=max(1, tune.epochs // 2))
        recipe += [Channels(sparsity=0.3), healed]
    if wide:
        magnitude = Magnitude(sparsity=0.8 if layers.reads_language else 0.9, scope="lamp", only=layers.only(wide))
        recipe.append(Gradual(methods=(magnitude,), tune=tune, updates=40, ramp=0.7))
    if not recipe:
        raise PlanError(
            f"preset fast: found no convolution, recurrent layer or Linear layer of at least {_WIDE} inputs and "
            f"outputs and {_LARGE} weights, expected one"
        )
    return recipe


def _is_wide(spec: TensorSpec) -> bool:
    return min(spec.shape) >= _WIDE and spec.elements >= _LARGE
