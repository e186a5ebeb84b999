"""Data and training: pruned while it trains, what is left shares few values, then tuned."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import Recipe
from gossamer.drive.tune import Tune
from gossamer.methods.prune import Magnitude
from gossamer.methods.share import KMeans
from gossamer.network.inspect import specs
from gossamer.presets.layers import Layers, named
from gossamer.presets.small import rounded_biases

__all__ = ["tiny", "training_of"]

_LARGE = 1 << 14  # weights of a Linear layer from which its 6% of survivors do with 8 values


def tiny(model: nn.Module) -> Recipe:
    """A recipe for the smallest file: needs data, and trains for several epochs.

    The part of the weights that stays is the mean over layers of 6% (Linear) and 20% (others), one LAMP threshold;
    half of them in language networks (embeddings, or LayerNorm without convolutions). Survivors share 8 to 64 values
    per tensor.

    Args:
        model: of which names, kinds and shapes count, not the weights.

    Returns:
        `Gradual`, `KMeans` entries, `Tune`, biases at 8 bits. Distillation takes the outputs to be class scores.

    Raises:
        PlanError: no weight that is worth it.

    Example:
        >>> tiny(nn.Linear(784, 300))[0].methods[0].sparsity
        0.94
    """
    layers = Layers(specs(model))
    layers.check("tiny")
    pruned = (*layers.linear, *layers.stems, *layers.convolutions, *layers.gates)
    large = tuple(s for s in layers.linear if s.elements >= _LARGE and not layers.reads_language)
    rest = tuple(s for s in layers.linear if s not in large)
    groups = [
        (3, large),
        (4, (*rest, *layers.convolutions)),
        (5, (*layers.stems, *layers.depthwise, *layers.embeddings)),
        (6 if layers.reads_language else 5, layers.gates),
    ]
    tune = training_of(layers)
    recipe: list[Gradual | KMeans | Tune] = []
    if pruned:
        magnitude = Magnitude(sparsity=_sparsity(layers), scope="lamp", only=layers.only(pruned))
        recipe.append(Gradual(methods=(magnitude,), tune=tune, updates=40, ramp=0.7))
    recipe += [KMeans(bits=bits, only=patterns) for bits, patterns in named(layers, groups).items()]
    heal = replace(tune, epochs=max(1, tune.epochs // 8), lr=round(tune.lr / 3, 6))
    return [*recipe, heal, *rounded_biases(layers)]


def _sparsity(layers: Layers) -> float:
    linear = sum(s.elements for s in layers.linear)
    others = sum(s.elements for s in (*layers.stems, *layers.convolutions, *layers.gates))
    if layers.reads_language:
        return 0.5
    return round(1 - (0.06 * linear + 0.2 * others) / (linear + others), 2)


def training_of(layers: Layers) -> Tune:
    """How to train while pruning, by what the network is made of."""
    if layers.reads_language:
        return Tune(epochs=4, lr=3e-4, clip=1.0)
    taught = Tune(epochs=8, lr=2e-3, distil=0.5, temperature=3.0, clip=1.0 if layers.gates else None)
    only_linear = not (layers.stems or layers.convolutions or layers.depthwise or layers.gates)
    return replace(taught, epochs=28, lr=3e-3) if only_linear else taught  # an epoch of these takes a second
