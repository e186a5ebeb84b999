"""Rows of `benchmarks.families` for the methods beyond one a family, each on a network that it suits."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.families_row import Row
from gossamer.drive.gradual import Gradual
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.recipe import Recipe, Stage
from gossamer.drive.tune import Tune
from gossamer.methods.base import Method
from gossamer.methods.factorize import CP, LowRankPlusSparse, Monarch, TensorTrain, Tucker2
from gossamer.methods.prune import (
    Block,
    HardThreshold,
    KernelPattern,
    Magnitude,
    Movement,
    NofM,
    Random,
    Rows,
    Structure,
    Taylor,
)
from gossamer.methods.quantize import (
    Cast,
    FoldBatchNorm,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    RoundToNearest,
    Ternary,
)
from gossamer.methods.share import Denil, Hashing, ProductQuantization, Tie, Translation
from gossamer.methods.shrink import Blocks, Channels, Heads

__all__ = ["g2p_rows", "lenet_5_rows", "lenet_300_100_rows", "lstm_rows", "minilm_rows", "resnet_rows"]

_FIRST, _LARGE = "fc1.weight", ("fc1.weight", "fc2.weight")


def _row(family: str, method: str, setting: str, *recipe: Method | Stage | Tune, breaking: bool = False) -> Row:
    return Row(family, method, setting, list(recipe), breaking)


def lenet_300_100_rows() -> tuple[Row, ...]:
    """Fully connected layers: cheap to train, so most methods are here."""
    return (*_shared(), *_factored(), *_rounded(), *_pruned(), *_scored(), *_differences())


def _long(lr: float = 2e-3, epochs: int = 14) -> Tune:
    return Tune(epochs=epochs, lr=lr, distil=0.5, temperature=3.0, warmup=0.1)


def _heal(epochs: int = 6, lr: float = 1e-3) -> Tune:
    return Tune(epochs=epochs, lr=lr, distil=0.5, temperature=3.0)


def _shared() -> tuple[Row, ...]:
    def denil(stored: float) -> Recipe:
        return [Denil(stored=stored, grid=(28, 28), only=_FIRST), _long(3e-3, 20)]

    def product(dim: int, bits: int) -> Method:
        return ProductQuantization(dim=dim, bits=bits, only=_LARGE)

    def local(tiles: int, tolerance: float) -> Method:
        """fc1's neurons as 3 channels of 10 × 10 positions, each tile of positions with kernels of its own."""
        return Translation(
            tolerance=tolerance,
            input_grid=(28, 28),
            output_grid=(10, 10),
            stride=2,
            tiles=(tiles, tiles),
            only=_FIRST,
        )

    return (
        Row("sharing", "Denil", "25% stored", denil(0.25)),
        Row("sharing", "Denil", "5% stored", denil(0.05)),
        Row("sharing", "Denil", "1% stored", denil(0.01), breaking=True),
        _row(
            "sharing",
            "Denil",
            "10% stored, covariance of the inputs",
            Denil(stored=0.1, kernel="covariance", groups=1, only=_FIRST),
            _long(3e-3),
        ),
        _row(
            "sharing",
            "Hashing",
            "1 value for 2 weights of the first layer",
            Hashing(stored=0.5, only=_FIRST),
            _long(3e-3, 20),
        ),
        _row(
            "sharing", "Hashing", "1 value for 100 weights", Hashing(stored=0.01, only=_LARGE), _long(), breaking=True
        ),
        _row("sharing", "ProductQuantization", "2 weights of 256 vectors", product(2, 8), _heal()),
        _row(
            "sharing",
            "ProductQuantization",
            "14 or 10 weights of 16 vectors",
            ProductQuantization(dim=14, bits=4, only=_FIRST),
            ProductQuantization(dim=10, bits=4, only="fc2.weight"),
            _heal(),
            breaking=True,
        ),
        _row("sharing", "Translation", "a kernel for each of 10 × 10 positions", local(10, 0.9), _long()),
        _row("sharing", "Translation", "one kernel for all positions", local(1, 0.995), _long(), breaking=True),
    )


def _factored() -> tuple[Row, ...]:
    def train(rank: int) -> Method:  # a chain over image rows, neurons, image columns
        return TensorTrain(rank=rank, rows=(1, 300, 1), columns=(28, 1, 28), only=_FIRST)

    return (
        _row("factorization", "TensorTrain", "image rows and columns, rank 6", train(6), _long(epochs=20)),
        _row("factorization", "TensorTrain", "image rows and columns, rank 12", train(12), _long()),
        _row("factorization", "TensorTrain", "image rows and columns, rank 1", train(1), _long(), breaking=True),
        _row("factorization", "Monarch", "60 × 56 blocks", Monarch(blocks=(60, 56), only=_FIRST), _long(epochs=10)),
        _row("factorization", "Monarch", "20 × 28 blocks", Monarch(blocks=(20, 28), only=_FIRST), _long(epochs=10)),
        _row("factorization", "Monarch", "4 × 4 blocks, not tuned", Monarch(blocks=4, only=_FIRST), breaking=True),
        _row(
            "factorization",
            "LowRankPlusSparse",
            "rank 10 and 10% of the weights",
            LowRankPlusSparse(rank=10, density=0.1, only=_LARGE),
            _heal(),
        ),
        _row(
            "factorization",
            "LowRankPlusSparse",
            "rank 1 and 0.5% of the weights",
            LowRankPlusSparse(rank=1, density=0.005, only=_LARGE),
            _heal(),
            breaking=True,
        ),
    )


def _bits(
    setting: str, bits: int, *others: Method, only: str | tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> Row:
    """Rounding alone, a scale per channel: what the presets' bits are chosen by."""
    method = RoundToNearest(bits=bits, group="channel", only=only, skip=skip)
    return _row("quantization", "RoundToNearest", setting, method, *others)


def _rounded() -> tuple[Row, ...]:
    def aware(*methods: Method) -> QuantizationAware:
        return QuantizationAware(methods=methods, tune=_heal())

    rounding = RoundToNearest(bits=3, group="channel")
    return (
        _row("quantization", "RoundToNearest", "3 bits, trained", aware(rounding)),
        *(_bits(f"{bits} bits, only rounded", bits) for bits in (3, 4, 5)),
        _row("quantization", "Ternary", "trained", aware(Ternary())),
        _row("quantization", "Ternary", "only rounded", Ternary(), breaking=True),
        _row("quantization", "PowerOfTwo", "4 bits, trained", aware(PowerOfTwo(bits=4))),
        _row("quantization", "PowerOfTwo", "2 bits, only rounded", PowerOfTwo(bits=2), breaking=True),
        _row("quantization", "NormalFloat", "4 bits, 64 weights a scale", NormalFloat(bits=4)),
        _row("quantization", "NormalFloat", "2 bits, 64 weights a scale", NormalFloat(bits=2), breaking=True),
        _row("quantization", "LearnedStep", "3 bits, trained", aware(LearnedStep(bits=3))),
        _row("quantization", "LearnedStep", "2 bits, not trained", LearnedStep(bits=2), breaking=True),
        _row("quantization", "MixedBits", "5 bits on average", MixedBits(average_bits=5)),
        _row("quantization", "MixedBits", "2.1 bits on average", MixedBits(average_bits=2.1), breaking=True),
        _row("quantization", "Cast", "bfloat16", Cast(dtype="bfloat16")),
        _row("quantization", "Cast", "float8, 2 bits of mantissa", Cast(dtype="float8_e5m2")),
    )


def _pruned() -> tuple[Row, ...]:
    def ramp(*methods: Method) -> Gradual:
        return Gradual(methods=methods, tune=_heal(14, 3e-3), updates=40, ramp=0.7)

    def shaped(structure: Structure, sparsity: float) -> Gradual:
        return ramp(Magnitude(sparsity=sparsity, structure=structure, scope="erk", only=_LARGE))

    threes = Magnitude(structure=NofM(2, 4, permute=True), only=_LARGE)
    ones = Magnitude(structure=NofM(1, 16), only="fc1.weight", skip="fc2.weight")
    return (
        _row("sparsification", "Random", "50% zeros", ramp(Random(sparsity=0.5, scope="erk"))),
        _row("sparsification", "Random", "98% zeros", ramp(Random(sparsity=0.98, scope="erk")), breaking=True),
        _row("sparsification", "Movement", "50% zeros", ramp(Movement(sparsity=0.5, scope="erk"))),
        _row("sparsification", "Movement", "98% zeros", ramp(Movement(sparsity=0.98, scope="erk")), breaking=True),
        _row("sparsification", "Taylor", "85% zeros", ramp(Taylor(sparsity=0.85, form="fisher", scope="lamp"))),
        _row(
            "sparsification",
            "Taylor",
            "99.5% zeros",
            ramp(Taylor(sparsity=0.995, form="fisher", scope="lamp")),
            breaking=True,
        ),
        _row(
            "sparsification",
            "HardThreshold",
            "1 deviation, tuned",
            HardThreshold(threshold=1.0, relative=True),
            _heal(),
        ),
        _row(
            "sparsification",
            "HardThreshold",
            "2.5 deviations, not tuned",
            HardThreshold(threshold=2.5, relative=True),
            breaking=True,
        ),
        _row("sparsification", "Magnitude N:M", "2:4, columns reordered, tuned", threes, _heal()),
        _row("sparsification", "Magnitude N:M", "1:16, not tuned", ones, breaking=True),
        _row("sparsification", "Magnitude blocks", "80% of 4 × 1 blocks", shaped(Block(4, 1), 0.8)),
        _row("sparsification", "Magnitude blocks", "99% of 4 × 1 blocks", shaped(Block(4, 1), 0.99), breaking=True),
        _row("sparsification", "Magnitude vectors", "20% of the rows", shaped(Rows(), 0.2)),
        _row("sparsification", "Magnitude vectors", "95% of the rows", shaped(Rows(), 0.95), breaking=True),
    )


def _scored() -> tuple[Row, ...]:
    """The other scores of channels, at one size."""
    rows = []
    for score in ("taylor", "apoz", "reconstruction", "merge", "influence"):
        cut = Channels(sparsity=0.4, score=score)
        rows.append(_row("down-sizing", "Channels", f"40% of the neurons, by {score}", cut, _heal()))
    return tuple(rows)


def _differences() -> tuple[Row, ...]:
    """A short fine-tune stored as its difference to the network that it began from."""

    def tuned(setting: str, tune: Tune, *, breaking: bool = False) -> Row:
        return Row("value-compression", "Delta", setting, [tune], breaking, delta=True)

    return (
        tuned("a fine-tune of one epoch at 1e-6", Tune(epochs=1, lr=1e-6)),
        tuned("a fine-tune of three epochs at 1e-3", Tune(epochs=3, lr=1e-3), breaking=True),
    )


def lenet_5_rows() -> tuple[Row, ...]:
    """Ternary weights from training, the first layer and the biases rounded; kernels in a few shapes."""
    tune = Tune(epochs=4, lr=1e-3, distil=0.7, temperature=3.0)
    heal = replace(tune, epochs=2)

    def ternary(threshold: float) -> Recipe:
        layers = Ternary(threshold=threshold, scale_dtype="float16", only=("conv2.*", "fc*.weight"))
        first = RoundToNearest(bits=4, group="tensor", only="conv1.weight")
        biases = RoundToNearest(bits=8, group="tensor", symmetric=False, only="*.bias")
        return [QuantizationAware(methods=(layers, first), tune=tune), biases]

    def kernels(entries: int, patterns: int) -> Method:
        return Magnitude(structure=KernelPattern(entries, patterns), only="conv2.weight")

    return (
        Row("quantization", "Ternary", "trained, three in four weights zero", ternary(1.4)),
        Row("quantization", "Ternary", "nearly all weights zero, not trained", [Ternary(threshold=3.5)], breaking=True),
        _row("sparsification", "Magnitude kernels", "9 of 25 entries in 12 shapes", kernels(9, 12), heal),
        _row("sparsification", "Magnitude kernels", "1 of 25 entries, not tuned", kernels(1, 4), breaking=True),
    )


def resnet_rows() -> tuple[Row, ...]:
    """Half the multiplications by channels and by Tucker-2; CP, blocks, ties, folding."""
    tune = Tune(epochs=4, lr=2e-3, distil=0.5, temperature=3.0, warmup=0.1)
    heal = replace(tune, epochs=2)
    rounding = RoundToNearest(bits=8, group="channel")
    ends = RoundToNearest(bits=8, group="channel", only=("stem.weight", "head.weight"))
    crude = RoundToNearest(bits=3, group="tensor")
    pair = (("stages.0.0.conv1.weight", "stages.0.0.conv2.weight"),)
    return (
        _row(
            "down-sizing",
            "Channels",
            "less than half of the multiplications, tuned",
            Channels(macs=0.47),
            replace(tune, epochs=6, lr=3e-3),
        ),
        _row(
            "factorization", "Tucker2", "45% of the multiplications, tuned", Tucker2(macs=0.45), replace(tune, lr=4e-3)
        ),
        _row("factorization", "Tucker2", "10% of the multiplications", Tucker2(macs=0.1), breaking=True),
        _row(
            "factorization",
            "CP",
            "half of the multiplications of one layer",
            CP(macs=0.5, only="stages.2.0.conv1.weight"),
            heal,
        ),
        _row("factorization", "CP", "30% of the multiplications", CP(macs=0.3), breaking=True),
        _row(
            "down-sizing",
            "Blocks",
            "the one block without a convolution beside it, tuned",
            Blocks(sparsity=1.0),
            replace(tune, epochs=6, lr=3e-3),
        ),
        _row("down-sizing", "Blocks", "the same block, not tuned", Blocks(sparsity=1.0), breaking=True),
        _row("sharing", "Tie", "two layers, rank 16 between them", Tie(pairs=pair, rank=16), heal),
        _row("sharing", "Tie", "two layers, not tuned", Tie(pairs=pair), breaking=True),
        _bits("4 bits, only rounded", 4),
        *(_bits(f"{n} bits, stem and head 8, only rounded", n, ends, skip=("stem.*", "head.*")) for n in (4, 5)),
        _row("quantization", "FoldBatchNorm", "then 8 bits", FoldBatchNorm(), rounding),
        _row("quantization", "FoldBatchNorm", "then 3 bits per tensor", FoldBatchNorm(), crude, breaking=True),
    )


def lstm_rows() -> tuple[Row, ...]:
    """Gates in the families that the first rows leave out."""
    heal = Tune(epochs=3, lr=2e-3, distil=0.5, temperature=3.0, clip=1.0)
    return (
        _row("down-sizing", "Channels", "25% of the units, tuned", Channels(sparsity=0.25), heal),
        _row("down-sizing", "Channels", "88% of the units, tuned", Channels(sparsity=0.88), heal, breaking=True),
        _row("quantization", "Ternary", "trained", QuantizationAware(methods=(Ternary(),), tune=heal)),
    )


def minilm_rows() -> tuple[Row, ...]:
    """Heads and blocks of a transformer. The probe hears mostly the words: no loss of layers alone breaks it."""
    heal = Tune(epochs=1, lr=2e-4)
    return (
        _row("down-sizing", "Heads", "an eighth of the heads, tuned", Heads(sparsity=0.125), heal),
        _row("down-sizing", "Heads", "90% of the heads, not tuned", Heads(sparsity=0.9)),
        _row("down-sizing", "Blocks", "three of four blocks, not tuned", Blocks(sparsity=0.75)),
        _row("quantization", "NormalFloat", "4 bits, 64 weights a scale", NormalFloat(bits=4)),
    )


def g2p_rows() -> tuple[Row, ...]:
    """A GRU that decodes: short tuning on other words does not make up for what is taken from its state."""
    return (
        _row("down-sizing", "Channels", "50% of the units", Channels(sparsity=0.5), breaking=True),
        _row("quantization", "Cast", "float8, 2 bits of mantissa", Cast(dtype="float8_e5m2")),
        *(_bits(f"gates alone, {bits} bits", bits, only=("enc.*", "dec.*")) for bits in (4, 5, 6)),
        _bits("embeddings and head alone, 4 bits", 4, only=("*_emb.weight", "fc.weight")),
        _row("quantization", "MixedBits", "6 bits on average", MixedBits(average_bits=6)),
    )
