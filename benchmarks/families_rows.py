"""What `benchmarks.families` measures: network, method, setting, recipe. One line adds a row.

Every method has a setting that loses little and one at its breaking point. Settings are chosen with ``--validate`` (on
training images, mails and words that are held out), never on the test data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.zoo import Subject, Zoo
from benchmarks.zoo.checkpoints import g2p_subject, minilm_subject
from benchmarks.zoo.fashion import lenet_5_subject, lenet_300_100_subject, resnet_subject, row_reader_subject
from gossamer.drive.gradual import Gradual
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.recipe import Recipe
from gossamer.drive.tune import Tune
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD, LowRankPlusSparse, Monarch, TensorTrain, Tucker2
from gossamer.methods.prune import Magnitude, Random
from gossamer.methods.quantize import (
    Cast,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    RoundToNearest,
    Ternary,
)
from gossamer.methods.share import Denil, Hashing, KMeans, ProductQuantization
from gossamer.methods.shrink import Channels

__all__ = ["NETWORKS", "Network", "Row"]


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        family: of the six, or "composed".
        method: its class, or what else it is called.
        setting: for people, like "25% stored".
        recipe: how.
        breaking: whether the method breaks here.
        quick: whether ``--quick`` runs it.
    """

    family: str
    method: str
    setting: str
    recipe: Recipe
    breaking: bool = False
    quick: bool = False


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


def _breadth_lenet_300_100() -> tuple[Row, ...]:
    """Methods beyond one a family, on the first layer or on the two large ones."""
    long = Tune(epochs=20, lr=2e-3, distil=0.5, temperature=3.0, warmup=0.1)
    heal = Tune(epochs=6, lr=1e-3, distil=0.5, temperature=3.0)
    first, large = "fc1.weight", ("fc1.weight", "fc2.weight")

    def train(rank: int) -> Method:  # a chain over image rows, neurons, image columns
        return TensorTrain(rank=rank, rows=(1, 300, 1), columns=(28, 1, 28), only=first)

    def denil(stored: float) -> Recipe:
        return [Denil(stored=stored, grid=(28, 28), only=first), replace(long, lr=3e-3)]

    def ramp(*methods: Method) -> Recipe:
        return [Gradual(methods=methods, tune=replace(heal, epochs=14, lr=3e-3), updates=40, ramp=0.7)]

    def aware(*methods: Method) -> Recipe:
        return [QuantizationAware(methods=methods, tune=heal)]

    return (
        Row("sharing", "Denil", "25% stored", denil(0.25)),
        Row("sharing", "Denil", "5% stored", denil(0.05)),
        Row("sharing", "Denil", "1% stored", denil(0.01), breaking=True),
        Row("sharing", "Hashing", "1 value for 4 weights", [Hashing(stored=0.25, only=large), long]),
        Row("sharing", "Hashing", "1 value for 100 weights", [Hashing(stored=0.01, only=large), long], breaking=True),
        Row(
            "sharing",
            "ProductQuantization",
            "4 weights of 256 vectors",
            [ProductQuantization(dim=4, bits=8, only=large), heal],
        ),
        Row(
            "sharing",
            "ProductQuantization",
            "14 or 10 weights of 16 vectors",
            [
                ProductQuantization(dim=14, bits=4, only=first),
                ProductQuantization(dim=10, bits=4, only="fc2.weight"),
                heal,
            ],
            breaking=True,
        ),
        Row("factorization", "TensorTrain", "image rows and columns, rank 6", [train(6), long]),
        Row(
            "factorization",
            "TensorTrain",
            "image rows and columns, rank 1",
            [train(1), long],
            breaking=True,
        ),
        Row("factorization", "Monarch", "4 blocks", [Monarch(blocks=4, only=large), heal]),
        Row("factorization", "Monarch", "20 blocks", [Monarch(blocks=20, only=large)], breaking=True),
        Row(
            "factorization",
            "LowRankPlusSparse",
            "rank 10 and 10% of the weights",
            [LowRankPlusSparse(rank=10, density=0.1, only=large), heal],
        ),
        Row(
            "factorization",
            "LowRankPlusSparse",
            "rank 1 and 0.5% of the weights",
            [LowRankPlusSparse(rank=1, density=0.005, only=large), heal],
            breaking=True,
        ),
        Row("quantization", "Ternary", "trained", aware(Ternary())),
        Row("quantization", "Ternary", "only rounded", [Ternary()], breaking=True),
        Row("quantization", "PowerOfTwo", "4 bits, trained", aware(PowerOfTwo(bits=4))),
        Row("quantization", "PowerOfTwo", "2 bits, only rounded", [PowerOfTwo(bits=2)], breaking=True),
        Row("quantization", "NormalFloat", "4 bits, 64 weights a scale", [NormalFloat(bits=4)]),
        Row("quantization", "NormalFloat", "2 bits, 64 weights a scale", [NormalFloat(bits=2)], breaking=True),
        Row("quantization", "LearnedStep", "3 bits, trained", aware(LearnedStep(bits=3))),
        Row("quantization", "LearnedStep", "2 bits, not trained", [LearnedStep(bits=2)], breaking=True),
        Row("quantization", "MixedBits", "4 bits on average", [MixedBits(average_bits=4)]),
        Row("quantization", "MixedBits", "2.1 bits on average", [MixedBits(average_bits=2.1)], breaking=True),
        Row("quantization", "Cast", "bfloat16", [Cast(dtype="bfloat16")]),
        Row("quantization", "Cast", "float8, 2 bits of mantissa", [Cast(dtype="float8_e5m2")], breaking=True),
        Row("sparsification", "Random", "50% zeros", ramp(Random(sparsity=0.5, scope="erk"))),
        Row("sparsification", "Random", "98% zeros", ramp(Random(sparsity=0.98, scope="erk")), breaking=True),
    )


def _breadth_lenet_5() -> tuple[Row, ...]:
    """Ternary weights from training, the first layer and the biases rounded."""
    tune = Tune(epochs=4, lr=1e-3, distil=0.7, temperature=3.0)

    def ternary(threshold: float) -> Recipe:
        layers = Ternary(threshold=threshold, scale_dtype="float16", only=("conv2.*", "fc*.weight"))
        first = RoundToNearest(bits=4, group="tensor", only="conv1.weight")
        biases = RoundToNearest(bits=8, group="tensor", symmetric=False, only="*.bias")
        return [QuantizationAware(methods=(layers, first), tune=tune), biases]

    return (
        Row("quantization", "Ternary", "trained, three in four weights zero", ternary(1.4)),
        Row("quantization", "Ternary", "trained, nearly all weights zero", ternary(3.5), breaking=True),
    )


def _breadth_resnet() -> tuple[Row, ...]:
    """Half the multiplications by channels and by Tucker-2."""
    tune = Tune(epochs=4, lr=2e-3, distil=0.5, temperature=3.0)
    return (
        _smaller("half of the multiplications, tuned", [Channels(macs=0.5), tune]),
        Row("factorization", "Tucker2", "45% of the multiplications, tuned", [Tucker2(macs=0.45), tune]),
        Row("factorization", "Tucker2", "10% of the multiplications", [Tucker2(macs=0.1)], breaking=True),
    )


def _lenet_5() -> tuple[Row, ...]:
    heal = Tune(epochs=2, lr=1e-3, distil=0.7, temperature=3.0)
    long = Tune(epochs=3, lr=2e-3, distil=0.7, temperature=3.0)
    return (
        LOSSLESS,
        _sparse("90% zeros", [_ramp(0.9, long)]),
        _sparse("99.6% zeros", [_ramp(0.996, long)], breaking=True),
        _shared("16 values per layer", [KMeans(bits=4)]),
        _shared("2 values per layer", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("80% of the energy", [SVD(energy=0.8), heal]),
        _factored("30% of the energy", [SVD(energy=0.3), heal], breaking=True),
        _smaller("30% of the channels removed", [Channels(sparsity=0.3), heal]),
        _smaller("95% of the channels removed", [Channels(sparsity=0.95), heal], breaking=True),
    )


def _resnet() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=1e-3, distil=0.5, temperature=3.0)
    long = Tune(epochs=2, lr=2e-3, distil=0.5, temperature=3.0)
    return (
        LOSSLESS,
        _sparse("80% zeros", [_ramp(0.8, long)]),
        _sparse("99% zeros", [_ramp(0.99, long)], breaking=True),
        _shared("32 values per layer", [KMeans(bits=5)], quick=True),
        _shared("2 values per layer", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("3 bits, only rounded", [RoundToNearest(bits=3, group="channel")], breaking=True),
        _factored("90% of the energy", [SVD(energy=0.9), heal]),
        _factored("30% of the energy", [SVD(energy=0.3), heal], breaking=True),
        _smaller("40% of the channels inside blocks removed", [Channels(sparsity=0.4), heal]),
        _smaller("95% of the channels inside blocks removed", [Channels(sparsity=0.95), heal], breaking=True),
    )


def _lstm() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=1e-3, distil=0.5, temperature=3.0, clip=1.0)
    long = Tune(epochs=3, lr=2e-3, distil=0.5, temperature=3.0, clip=1.0)
    return (
        LOSSLESS,
        _sparse("80% zeros", [_ramp(0.8, long)]),
        _sparse("99% zeros", [_ramp(0.99, long)], breaking=True),
        _shared("16 values per gate", [KMeans(bits=4)], quick=True),
        _shared("2 values per gate", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits, scales tuned", [RoundToNearest(bits=4, group="channel"), heal]),
        _rounded("2 bits, only rounded", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("90% of the energy", [SVD(energy=0.9), heal]),
        _factored("30% of the energy", [SVD(energy=0.3), heal], breaking=True),
    )


def _minilm() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=2e-4)
    # Word embeddings are half the network; cutting them by rank or by zeros needs more training than an hour allows.
    layers = "encoder.*.weight"
    return (
        LOSSLESS,
        _sparse("30% zeros in the layers", [Magnitude(sparsity=0.3, only=layers)]),
        _sparse("80% zeros in the layers", [Magnitude(sparsity=0.8, only=layers)], breaking=True),
        _shared("16 values per tensor", [KMeans(bits=4)]),
        _shared("2 values per tensor", [KMeans(bits=1)], breaking=True),
        _rounded("4 bits per channel", [RoundToNearest(bits=4, group="channel")], quick=True),
        _rounded("2 bits per channel", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("90% of the energy of the layers, tuned", [SVD(energy=0.9, only=layers), heal]),
        _factored("30% of the energy of the layers", [SVD(energy=0.3, only=layers)], breaking=True),
    )


def _g2p() -> tuple[Row, ...]:
    heal = Tune(epochs=1, lr=3e-4, clip=1.0)
    return (
        LOSSLESS,
        _sparse("50% zeros", [_ramp(0.5, heal)]),
        _sparse("95% zeros", [_ramp(0.95, heal)], breaking=True),
        _shared("64 values per gate", [KMeans(bits=6)], quick=True),
        _shared("4 values per gate", [KMeans(bits=2)], breaking=True),
        _rounded("6 bits per channel", [RoundToNearest(bits=6, group="channel")]),
        _rounded("2 bits per channel", [RoundToNearest(bits=2, group="channel")], breaking=True),
        _factored("95% of the energy, tuned", [SVD(energy=0.95), heal]),
        _factored("50% of the energy, tuned", [SVD(energy=0.5), heal], breaking=True),
    )


_FASHION = ("benchmarks/zoo/fashion.py", "gossamer/demo/data.py", "gossamer/demo/networks.py")

NETWORKS = (
    Network("LeNet-300-100", lenet_300_100_subject, _FASHION, (*_lenet_300_100(), *_breadth_lenet_300_100())),
    Network("LeNet-5", lenet_5_subject, _FASHION, (*_lenet_5(), *_breadth_lenet_5())),
    Network("ResNet", resnet_subject, (*_FASHION, "benchmarks/zoo/resnet.py"), (*_resnet(), *_breadth_resnet())),
    Network("LSTM", row_reader_subject, (*_FASHION, "benchmarks/zoo/lstm.py"), _lstm()),
    Network(
        "MiniLM",
        minilm_subject,
        ("benchmarks/zoo/checkpoints.py", "benchmarks/zoo/minilm.py", "benchmarks/zoo/spam.py"),
        _minilm(),
        packaged=False,
    ),
    Network("g2p", g2p_subject, ("benchmarks/zoo/checkpoints.py", "benchmarks/zoo/g2p.py"), _g2p(), packaged=False),
)
