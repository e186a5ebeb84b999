"""Recipes for the two classic networks: every family alone, at a good setting and where it breaks, and one pipeline.

Settings were chosen on 5,000 of the training images, never on the test set (LOG.md, 2026-11-24).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from gossamer.demo.networks import lenet_5, lenet_300_100
from gossamer.drive.gradual import Gradual
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.recipe import Recipe, Stage
from gossamer.drive.tune import Tune
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels

__all__ = ["CLASSICS", "Classic", "Job"]

BIASES = RoundToNearest(bits=8, group="tensor", symmetric=False, only="*.bias")


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Args:
        family: one of the six, or "composed".
        name: what was done, for people.
        recipe: how.
        breaking: whether this is the setting at which the family breaks.
    """

    family: str
    name: str
    recipe: Recipe
    breaking: bool = False


@dataclass(frozen=True)
class Classic:
    """A network with its training and its recipes.

    Args:
        name: of the network.
        factory: makes it.
        dense: how the dense one is trained.
        batch: samples per training batch.
        flip: whether fine-tuning sees mirrored images too (dense training always does).
        jobs: all rows; training lengths are those for the full 60,000 images.
    """

    name: str
    factory: Callable[[], nn.Module]
    dense: Tune
    batch: int
    flip: bool
    jobs: tuple[Job, ...]

    def shortened(self, share: float) -> Classic:
        """The same with all training runs cut to a share of their epochs, at least one."""
        return replace(
            self,
            dense=_shorter(self.dense, share),
            jobs=tuple(replace(j, recipe=[_short(e, share) for e in j.recipe]) for j in self.jobs),
        )


def _shorter(tune: Tune, share: float) -> Tune:
    return replace(tune, epochs=max(1, round(tune.epochs * share)))


def _short(entry: Method | Stage | Tune, share: float) -> Method | Stage | Tune:
    if isinstance(entry, Tune):
        return _shorter(entry, share)
    if isinstance(entry, (Gradual, QuantizationAware)):
        return replace(entry, tune=_shorter(entry.tune, share))
    return entry


def _families(heal: Tune, channels: float, energy: float, sparse: Gradual, too_sparse: Gradual) -> tuple[Job, ...]:
    return (
        Job("value-compression", "lossless: entropy-coded floats", []),
        Job("quantization", "4 bits per weight, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        Job("quantization", "2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        Job("sharing", "16 shared values per layer", [KMeans(bits=4), BIASES]),
        Job("sharing", "2 shared values per layer", [KMeans(bits=1), BIASES], breaking=True),
        Job("down-sizing", f"{channels:.0%} of the neurons removed", [Channels(sparsity=channels, multiple=1), heal]),
        Job("down-sizing", "90% of the neurons removed", [Channels(sparsity=0.9, multiple=1), heal], breaking=True),
        Job("factorization", f"SVD, {energy:.0%} of the energy", [SVD(energy=energy), heal]),
        Job("factorization", "SVD, 30% of the energy", [SVD(energy=0.3), heal], breaking=True),
        Job("sparsification", "90% zeros", [sparse]),
        Job("sparsification", "99.6% zeros", [too_sparse], breaking=True),
    )


def _ramp(density: float, tune: Tune, ramp: float) -> Gradual:
    """Gradual pruning of the whole network to a density, allocated by LAMP."""
    return Gradual(methods=(Magnitude(sparsity=1 - density, scope="lamp"),), tune=tune, updates=40, ramp=ramp)


def _lenet_300_100() -> Classic:
    soft = Tune(epochs=6, lr=1e-3, distil=0.5, temperature=3.0)
    long = replace(soft, epochs=28, lr=3e-3)
    short = replace(soft, epochs=14, lr=3e-3)
    jobs = _families(soft, 0.4, 0.85, _ramp(0.10, short, 0.7), _ramp(0.004, short, 0.7))
    pipeline = (
        _ramp(0.056, long, 20 / 28),
        KMeans(bits=3, only=("fc1.weight", "fc2.weight")),
        KMeans(bits=4, only="fc3.weight"),
        Tune(epochs=2, lr=1e-3, distil=0.5, temperature=3.0),
        BIASES,
    )
    composed = Job("composed", "pruned, clustered, coded", list(pipeline))
    dense = Tune(epochs=20, lr=2e-3, warmup=0.2)
    return Classic("LeNet-300-100", lenet_300_100, dense, 256, False, (*jobs, composed))


def _lenet_5() -> Classic:
    soft = Tune(epochs=2, lr=1e-3, distil=0.7, temperature=3.0)
    long = replace(soft, epochs=8, lr=2e-3)
    short = replace(soft, epochs=3, lr=2e-3)
    jobs = _families(soft, 0.3, 0.8, _ramp(0.10, short, 0.7), _ramp(0.004, short, 0.7))
    pipeline = (
        _ramp(0.055, long, 0.75),
        KMeans(bits=5, only="conv1.weight"),
        KMeans(bits=4, only=("conv2.weight", "fc2.weight")),
        KMeans(bits=3, only="fc1.weight"),
        Tune(epochs=1, lr=5e-4, distil=0.7, temperature=3.0),
        BIASES,
    )
    composed = Job("composed", "pruned, clustered, coded", list(pipeline))
    dense = Tune(epochs=6, lr=2e-3, warmup=0.2)
    return Classic("LeNet-5", lenet_5, dense, 128, True, (*jobs, composed))


CLASSICS = (_lenet_300_100(), _lenet_5())
