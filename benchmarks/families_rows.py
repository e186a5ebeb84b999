"""What `benchmarks.families` measures: network, method, setting, recipe. One line adds a row.

Every method has a setting that loses little and one at its breaking point. Settings are chosen with ``--validate`` (on
training images, mails and words that are held out), never on the test data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.families_breadth import (
    g2p_rows,
    lenet_5_rows,
    lenet_300_100_rows,
    lstm_rows,
    minilm_rows,
    resnet_rows,
)
from benchmarks.families_row import Row
from benchmarks.zoo import Subject, Zoo
from benchmarks.zoo.checkpoints import g2p_subject, minilm_subject
from benchmarks.zoo.fashion import lenet_5_subject, lenet_300_100_subject, resnet_subject, row_reader_subject
from gossamer import presets
from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import Recipe
from gossamer.drive.tune import Tune
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels

__all__ = ["NETWORKS", "Network", "Row"]


@dataclass(frozen=True)
class Network:
    """A network and its rows.

    Args:
        name: as its `Subject` says.
        open: reads its data.
        code: files of benchmarks/zoo that its figures depend on.
        rows: all of them, each method and setting once.
        packaged: whether it needs nothing but the package; the others need the zoo.
    """

    name: str
    open: Callable[[Zoo], Subject]
    code: tuple[str, ...]
    rows: tuple[Row, ...]
    packaged: bool = True


LOSSLESS = Row("value-compression", "Coding", "floats, lossless", [], quick=True)


def _sparse(setting: str, recipe: Recipe, *, breaking: bool = False, quick: bool = False) -> Row:
    return Row("sparsification", "Magnitude", setting, recipe, breaking, quick)


def _shared(setting: str, recipe: Recipe, *, breaking: bool = False, quick: bool = False) -> Row:
    return Row("sharing", "KMeans", setting, recipe, breaking, quick)


def _rounded(setting: str, recipe: Recipe, *, breaking: bool = False, quick: bool = False) -> Row:
    return Row("quantization", "RoundToNearest", setting, recipe, breaking, quick)


def _factored(setting: str, recipe: Recipe, *, breaking: bool = False, quick: bool = False) -> Row:
    return Row("factorization", "SVD", setting, recipe, breaking, quick)


def _smaller(setting: str, recipe: Recipe, *, breaking: bool = False, quick: bool = False) -> Row:
    return Row("down-sizing", "Channels", setting, recipe, breaking, quick)


def _ramp(sparsity: float, tune: Tune) -> Gradual:
    return Gradual(methods=(Magnitude(sparsity=sparsity, scope="lamp"),), tune=tune, updates=40, ramp=0.7)


def _lenet_300_100() -> tuple[Row, ...]:
    heal = Tune(epochs=6, lr=1e-3, distil=0.5, temperature=3.0)
    long = Tune(epochs=14, lr=3e-3, distil=0.5, temperature=3.0)
    return (
        LOSSLESS,
        _sparse("90% zeros", [_ramp(0.9, long)], quick=True),
        _sparse("99.6% zeros", [_ramp(0.996, long)], breaking=True),
        _shared("16 values per layer", [KMeans(bits=4)], quick=True),
        _shared("2 values per layer", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal], quick=True),
        _rounded("2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("85% of the energy", [SVD(energy=0.85), heal], quick=True),
        _factored("30% of the energy", [SVD(energy=0.3), heal], breaking=True),
        _smaller("40% of the neurons removed", [Channels(sparsity=0.4), heal], quick=True),
        _smaller("95% of the neurons removed", [Channels(sparsity=0.95), heal], breaking=True),
    )


def _lenet_5() -> tuple[Row, ...]:
    heal = Tune(epochs=2, lr=1e-3, distil=0.7, temperature=3.0)
    long = Tune(epochs=3, lr=2e-3, distil=0.7, temperature=3.0)
    return (
        LOSSLESS,
        _sparse("90% zeros", [_ramp(0.9, long)]),
        _sparse("90% zeros at once, not tuned", [Magnitude(sparsity=0.9, scope="lamp")], breaking=True),
        _shared("16 values per layer", [KMeans(bits=4)]),
        _shared("2 values per layer", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("80% of the energy", [SVD(energy=0.8), heal]),
        _factored("30% of the energy, not tuned", [SVD(energy=0.3)], breaking=True),
        _smaller("30% of the channels removed", [Channels(sparsity=0.3), heal]),
        _smaller("75% of the channels, not tuned", [Channels(sparsity=0.75)], breaking=True),
    )


def _resnet() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=1e-3, distil=0.5, temperature=3.0)
    long = Tune(epochs=2, lr=2e-3, distil=0.5, temperature=3.0)
    return (
        LOSSLESS,
        _sparse("80% zeros", [_ramp(0.8, long)]),
        _sparse("90% zeros at once, not tuned", [Magnitude(sparsity=0.9, scope="lamp")], breaking=True),
        _shared("32 values per layer, tuned", [KMeans(bits=5), heal], quick=True),
        _shared("2 values per layer", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("3 bits, only rounded", [RoundToNearest(bits=3, group="channel")], breaking=True),
        _factored("90% of the energy", [SVD(energy=0.9), heal]),
        _factored("30% of the energy, not tuned", [SVD(energy=0.3)], breaking=True),
        _smaller("75% of the channels inside blocks, not tuned", [Channels(sparsity=0.75)], breaking=True),
    )


def _lstm() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=1e-3, distil=0.5, temperature=3.0, clip=1.0)
    long = Tune(epochs=3, lr=2e-3, distil=0.5, temperature=3.0, clip=1.0)
    return (
        LOSSLESS,
        _sparse("80% zeros", [_ramp(0.8, long)]),
        _sparse("80% zeros at once, not tuned", [Magnitude(sparsity=0.8, scope="lamp")], breaking=True),
        _shared("16 values per gate", [KMeans(bits=4)], quick=True),
        _shared("2 values per gate", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("90% of the energy", [SVD(energy=0.9), heal]),
        _factored("30% of the energy, not tuned", [SVD(energy=0.3)], breaking=True),
    )


def _minilm() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=2e-4)
    # Word embeddings are half the network; cutting them by rank or by zeros needs more training than an hour allows.
    layers = "encoder.*.weight"
    return (
        LOSSLESS,
        _sparse("30% zeros in the layers", [Magnitude(sparsity=0.3, only=layers)]),
        _sparse("99% zeros in the layers, not tuned", [Magnitude(sparsity=0.99, only=layers)]),
        _shared("16 values per tensor", [KMeans(bits=4)]),
        _shared("2 values per tensor", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits per channel", [RoundToNearest(bits=4, group="channel")], quick=True),
        _rounded("2 bits per channel", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("90% of the energy of the layers, tuned", [SVD(energy=0.9, only=layers), heal]),
        _factored("10% of the energy of the layers", [SVD(energy=0.1, only=layers)]),
    )


def _g2p() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=3e-4, clip=1.0)
    gentle = Tune(epochs=1, lr=1e-4, clip=1.0)
    return (
        LOSSLESS,
        _sparse("20% zeros", [Magnitude(sparsity=0.2, scope="lamp"), gentle]),
        _sparse("80% zeros at once, not tuned", [Magnitude(sparsity=0.8, scope="lamp")], breaking=True),
        _shared("64 values per gate", [KMeans(bits=6)], quick=True),
        _shared("4 values per gate", [KMeans(bits=2)], breaking=True),
        _rounded("6 bits per channel", [RoundToNearest(bits=6, group="channel")]),
        _rounded("2 bits per channel", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("97% of the energy, tuned", [SVD(energy=0.97), heal]),
        _factored("50% of the energy, not tuned", [SVD(energy=0.5)], breaking=True),
    )


_FASHION = ("benchmarks/zoo/fashion.py", "gossamer/demo/data.py", "gossamer/demo/networks.py")

# No settings that break: nothing is set.
_SMALL = Row("composed", "Preset", "small", presets.small)
_TINY = Row("composed", "Preset", "tiny", presets.tiny)
_FAST = Row("composed", "Preset", "fast", presets.fast)


NETWORKS = (
    Network(
        "LeNet-300-100",
        lenet_300_100_subject,
        _FASHION,
        (*_lenet_300_100(), *lenet_300_100_rows(), _SMALL, _TINY, _FAST),
    ),
    Network("LeNet-5", lenet_5_subject, _FASHION, (*_lenet_5(), *lenet_5_rows(), _SMALL, _TINY)),
    Network(
        "ResNet", resnet_subject, (*_FASHION, "benchmarks/zoo/resnet.py"), (*_resnet(), *resnet_rows(), _SMALL, _FAST)
    ),
    Network("LSTM", row_reader_subject, (*_FASHION, "benchmarks/zoo/lstm.py"), (*_lstm(), *lstm_rows(), _SMALL)),
    Network(
        "MiniLM",
        minilm_subject,
        ("benchmarks/zoo/checkpoints.py", "benchmarks/zoo/minilm.py", "benchmarks/zoo/spam.py"),
        (*_minilm(), *minilm_rows(), _SMALL),
        packaged=False,
    ),
    Network(
        "g2p",
        g2p_subject,
        ("benchmarks/zoo/checkpoints.py", "benchmarks/zoo/g2p.py"),
        (*_g2p(), *g2p_rows(), _SMALL),
        packaged=False,
    ),
)
