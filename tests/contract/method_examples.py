"""An example of every method with every setting that changes what it makes, and a network with every kind of layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.methods.base import Method
from gossamer.methods.factorize import CP, SVD, LowRankPlusSparse, Monarch, TensorTrain, Tucker2, WhitenedSVD
from gossamer.methods.prune import (
    SNIP,
    Block,
    Columns,
    GraSP,
    HardThreshold,
    KernelPattern,
    LatencyTable,
    Magnitude,
    Movement,
    NofM,
    OptimalBrain,
    PerTensor,
    Random,
    Rows,
    Scored,
    Sensitivity,
    SparseGPT,
    SynFlow,
    Taylor,
    Unstructured,
    Wanda,
    WoodFisher,
)
from gossamer.methods.quantize import (
    AWQ,
    GPTQ,
    HQQ,
    Cast,
    FoldBatchNorm,
    LearnedRate,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    RateDistortion,
    Rotate,
    RoundToNearest,
    SmoothQuant,
    Ternary,
    VectorRateDistortion,
)
from gossamer.methods.share import Denil, Hashing, KMeans, ProductQuantization, Tie, Translation
from gossamer.methods.shrink import Blocks, Channels, Heads, NarrowEmbedding

STRUCTURES = {"weights": Unstructured(), "rows": Rows(), "columns": Columns(), "blocks": Block(3, 5)}

NAMES = (
    *("linear.weight", "conv1d.weight", "conv2d.weight", "up.weight", "embedding.weight"),
    *("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
)
SENSITIVITY = Sensitivity(
    tuple((name, ((0.4, 0.1 * i), (0.8, 0.5 * i + 0.1), (1.0, 3.0 * i + 1.0))) for i, name in enumerate(NAMES))
)
LATENCY = LatencyTable(tuple((name, ((0.1, 0.2), (0.5, 0.6), (1.0, 1.0))) for name in NAMES))

METHODS: Mapping[str, Method] = {
    **{
        f"magnitude-{name}-uniform": Magnitude(sparsity=0.5, structure=structure)
        for name, structure in STRUCTURES.items()
    },
    **{  # a global threshold over whole rows soon kills a layer, which is refused
        f"magnitude-{name}-global": Magnitude(sparsity=0.3, structure=structure, scope="global")
        for name, structure in STRUCTURES.items()
    },
    "magnitude-2:4": Magnitude(structure=NofM(2, 4)),
    "magnitude-none": Magnitude(sparsity=0.0),
    "magnitude-lamp": Magnitude(sparsity=0.5, scope="lamp"),
    "magnitude-er": Magnitude(sparsity=0.7, scope="er"),
    "magnitude-erk": Magnitude(sparsity=0.7, scope="erk"),
    "magnitude-sensitivity": Magnitude(sparsity=0.6, scope=SENSITIVITY),
    "magnitude-bytes": Magnitude(budget_bytes=4000, scope="global"),
    "magnitude-macs": Magnitude(macs=0.5, scope="erk", weight_uses=tuple((n, i) for i, n in enumerate(NAMES))),
    "magnitude-ms": Magnitude(ms=4.0, latency=LATENCY, scope="lamp"),
    "magnitude-2:4-permuted": Magnitude(structure=NofM(2, 4, permute=True)),
    "magnitude-kernel-patterns": Magnitude(structure=KernelPattern(2, 3)),
    "magnitude-kernel-patterns-fewer-kernels": Magnitude(sparsity=0.6, structure=KernelPattern(2, 3), scope="global"),
    "random": Random(sparsity=0.5, seed=3),
    "random-rows": Random(sparsity=0.5, structure=Rows()),
    "taylor": Taylor(sparsity=0.5),
    "taylor-fisher": Taylor(sparsity=0.5, form="fisher", scope="lamp"),
    "movement": Movement(sparsity=0.5, scope="global"),
    "movement-blocks": Movement(sparsity=0.5, structure=Block(3, 5)),
    "wanda": Wanda(sparsity=0.5),
    "wanda-per-layer-global": Wanda(sparsity=0.5, per_row=False, scope="global"),
    "wanda-blocks": Wanda(sparsity=0.5, structure=Block(2, 3)),
    "wanda-2:4": Wanda(structure=NofM(2, 4)),
    "wanda-per-tensor": Wanda(scope=PerTensor(tuple((name, 0.1 * i) for i, name in enumerate(NAMES)))),
    **{f"sparsegpt-{name}": SparseGPT(sparsity=0.5, structure=s, block=8) for name, s in STRUCTURES.items()},
    "sparsegpt-global": SparseGPT(sparsity=0.5, scope="global"),
    "sparsegpt-lamp": SparseGPT(sparsity=0.5, scope="lamp"),
    "sparsegpt-2:4": SparseGPT(structure=NofM(2, 4)),
    "sparsegpt-2:4-permuted": SparseGPT(structure=NofM(2, 4, permute=True)),
    "sparsegpt-kernel-patterns": SparseGPT(structure=KernelPattern(2, 3)),
    "optimal-brain": OptimalBrain(sparsity=0.5),
    "optimal-brain-per-row": OptimalBrain(sparsity=0.5, per_row=True),
    "optimal-brain-global": OptimalBrain(sparsity=0.5, scope="global"),
    "optimal-brain-2:4": OptimalBrain(structure=NofM(2, 4)),
    "woodfisher": WoodFisher(sparsity=0.5),
    "woodfisher-global-blocks": WoodFisher(sparsity=0.3, structure=Block(2, 3), scope="global"),
    "woodfisher-2:4": WoodFisher(structure=NofM(2, 4)),
    "snip": SNIP(sparsity=0.5, scope="uniform"),
    "grasp": GraSP(sparsity=0.5, scope="uniform"),
    "synflow": SynFlow(sparsity=0.5, steps=3, scope="uniform"),
    "hard-threshold": HardThreshold(threshold=0.05),
    "hard-threshold-relative": HardThreshold(threshold=0.5, relative=True, structure=Block(1, 2)),
    **{f"kmeans-{bits}": KMeans(bits=bits) for bits in (1, 4, 8)},
    "kmeans-inputs": KMeans(bits=3, weighted="inputs"),
    "kmeans-fisher-grouped": KMeans(bits=2, group_size=8, weighted="fisher"),
    "kmeans-grouped": KMeans(bits=2, group_size=8),
    "kmeans-network-wide": KMeans(bits=5, network_wide=True),
    **{
        f"rtn-{bits}-{group}-{'symmetric' if symmetric else 'asymmetric'}": RoundToNearest(
            bits=bits,
            group=group,  # type: ignore[arg-type]
            symmetric=symmetric,
        )
        for bits in (2, 4, 8)
        for group in ("tensor", "channel", 5)
        for symmetric in (True, False)
    },
    "rtn-half-scales": RoundToNearest(bits=4, scale_dtype="float16"),
    "rtn-bfloat16-scales": RoundToNearest(bits=4, group=5, scale_dtype="bfloat16"),
    **{
        f"ternary-{threshold}-{group}": Ternary(threshold=threshold, group=group)  # type: ignore[arg-type]
        for threshold in (0.7, 1.5, "optimal")
        for group in ("tensor", "channel", 5)
    },
    "ternary-half-scales": Ternary(scale_dtype="bfloat16"),
    **{f"power-of-two-{bits}": PowerOfTwo(bits=bits) for bits in (2, 4, 6)},
    "power-of-two-log-grouped": PowerOfTwo(group=5, nearest="log"),
    **{f"normal-float-{bits}": NormalFloat(bits=bits, group=8) for bits in (2, 4, 8)},
    "normal-float-half-scales": NormalFloat(group="tensor", scale_dtype="float16"),
    **{f"learned-step-{bits}": LearnedStep(bits=bits) for bits in (2, 4, 8)},
    "learned-step-grouped-half-steps": LearnedStep(bits=3, group=5, scale_dtype="bfloat16"),
    **{f"learned-rate-{levels}": LearnedRate(levels=levels) for levels in (1, 7, 127)},
    "learned-rate-grouped-levels": LearnedRate(levels=3, group=5, start=0.5, zeros="level", scale_dtype="bfloat16"),
    "rate-distortion": RateDistortion(rate=1e-5),
    "rate-distortion-centroids-mask": RateDistortion(rate=1e-4, values="centroids", zeros="mask", entries=12),
    "rate-distortion-grouped-sq": RateDistortion(rate=1e-4, group=5, inputs="sq", scale_dtype="bfloat16"),
    "rate-distortion-gram": RateDistortion(rate=1e-4, group="channel", inputs="gram", zeros="mask"),
    "rate-distortion-loss": RateDistortion(rate=1e-4, inputs="gram", weighted="loss"),
    "rate-distortion-bytes": RateDistortion(target=12_600),
    "vector-rate-distortion": VectorRateDistortion(rate=1e-4, dim=(1, 2, 4), entries=64),
    "vector-rate-distortion-inputs-loss": VectorRateDistortion(
        rate=1e-4, dim=2, entries=16, inputs="sq", weighted="loss", scale_dtype="bfloat16"
    ),
    "vector-rate-distortion-bytes": VectorRateDistortion(target=12_600, dim=2, entries=32, scale_dtype="float32"),
    "mixed-bits-average": MixedBits(average_bits=3.7),
    "mixed-bits-bytes": MixedBits(budget_bytes=2400, bits=(2, 5, 8), symmetric=False, scale_dtype="float16"),
    "mixed-bits-inputs": MixedBits(average_bits=4, weighted="inputs"),
    **{
        f"gptq-{bits}-{group}-{'symmetric' if symmetric else 'asymmetric'}": GPTQ(
            bits=bits,
            group=group,  # type: ignore[arg-type]
            symmetric=symmetric,
        )
        for bits, group, symmetric in ((2, "tensor", True), (3, "channel", False), (4, 5, True), (8, "tensor", False))
    },
    "gptq-plain": GPTQ(bits=4, candidates=1, rounds=0, sweeps=0, act_order=False, scale_dtype="bfloat16"),
    "awq": AWQ(bits=4, group=5),
    "awq-symmetric-tensor": AWQ(bits=3, group="tensor", symmetric=True, scale_dtype="float16", steps=3),
    "smooth-quant": SmoothQuant(),
    "hqq": HQQ(bits=3, group=8),
    "hqq-symmetric": HQQ(bits=4, group="channel", symmetric=True, scale_dtype="bfloat16"),
    "rotate-rtn": Rotate(inner=RoundToNearest(bits=4)),
    "rotate-gptq": Rotate(inner=GPTQ(bits=3, group=8), seed=3),
    "rotate-normal-float": Rotate(inner=NormalFloat(bits=4, group=8)),
    **{f"cast-{dtype}": Cast(dtype=dtype) for dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")},
    "fold-batch-norm": FoldBatchNorm(),
    "svd-rank": SVD(rank=2),
    "svd-energy": SVD(energy=0.7),
    "svd-bytes": SVD(budget_bytes=9000),
    "whitened-rank": WhitenedSVD(rank=2, identity=False),
    "whitened-ranks": WhitenedSVD(rank=(("linear*", 3), ("*", 2))),
    "whitened-energy": WhitenedSVD(energy=0.7, damping=1e-2),
    "whitened-density": WhitenedSVD(density=0.6),
    "whitened-density-uniform": WhitenedSVD(density=0.5, scope="uniform", identity=False),
    "whitened-density-fisher": WhitenedSVD(density=0.5, outputs="fisher"),
    "tucker-ranks": Tucker2(ranks=(3, 2)),
    "tucker-energy": Tucker2(energy=0.5),
    "tucker-bytes": Tucker2(budget_bytes=1000),
    "tucker-gram": Tucker2(ranks=(3, 2), inputs="gram"),
    "tucker-gram-energy": Tucker2(energy=0.5, inputs="gram"),
    "tucker-macs": Tucker2(macs=0.7),
    "cp-rank": CP(rank=3),
    "cp-macs": CP(macs=0.6),
    "tensor-train-rank": TensorTrain(rank=2),
    "tensor-train-error": TensorTrain(error=0.9, cores=2),
    "tensor-train-bytes": TensorTrain(budget_bytes=6000, cores=2),
    "monarch": Monarch(blocks=4),
    "monarch-gram": Monarch(blocks=(2, 4), inputs="gram"),
    "monarch-uneven": Monarch(blocks=(2, 4)),
    "low-rank-plus-sparse": LowRankPlusSparse(rank=1, density=0.1, rounds=3),
    "low-rank-plus-sparse-scaled": LowRankPlusSparse(rank=1, density=0.1, rounds=2, inputs="scaled"),
    "low-rank-plus-sparse-gram": LowRankPlusSparse(rank=1, density=0.1, rounds=2, inputs="gram"),
    "product": ProductQuantization(dim=4, bits=4),
    "product-per-subspace": ProductQuantization(dim=2, bits=2, per_subspace=True, iterations=2),
    "product-across-kernels": ProductQuantization(dim=2, bits=5, kernels=False, seed=1),
    "product-gram": ProductQuantization(dim=4, bits=3, inputs="gram"),
    "product-gram-per-subspace": ProductQuantization(dim=2, bits=2, per_subspace=True, inputs="gram"),
    "hashing": Hashing(stored=0.25),
    "hashing-seed": Hashing(stored=1.0, seed=3),
    "tie-found": Tie(threshold=0.5),
    "tie-found-corrected": Tie(threshold=0.5, rank=2),
    "tie-named": Tie(pairs=(("linear2.weight", "linear.weight"), ("conv1d.weight", "conv1d2.weight")), rank=1),
    "tie-gram": Tie(threshold=0.5, inputs="gram"),
    "tie-gram-corrected": Tie(threshold=0.5, rank=2, inputs="gram"),
    "denil": Denil(stored=0.5),
    "denil-grid": Denil(stored=0.5, grid=(2, 4), sigma=0.7, ridge=1e-3, groups=3, seed=5),
    "denil-covariance": Denil(stored=0.35, kernel="covariance", groups=1),
    "denil-weights": Denil(stored=0.35, kernel="weights", groups=1),
    "translation": Translation(tolerance=0.05),
    "translation-tiles": Translation(tolerance=0.05, tiles=(1, 2)),
    "channels": Channels(sparsity=0.5),
    "channels-parameters": Channels(parameters=0.6),
    "channels-multiple": Channels(sparsity=0.5, multiple=1),
    "channels-batchnorm": Channels(sparsity=0.5, score="batchnorm"),
    "channels-influence": Channels(sparsity=0.5, score="influence"),
    "channels-taylor": Channels(sparsity=0.5, score="taylor"),
    "channels-apoz": Channels(sparsity=0.5, score="apoz"),
    "channels-reconstruction": Channels(sparsity=0.5, score="reconstruction"),
    "channels-merge": Channels(sparsity=0.5, score="merge"),
    "channels-global": Channels(sparsity=0.5, scope="global"),
    "heads-taylor": Heads(sparsity=0.5, score="taylor", scope="uniform"),
    "heads": Heads(sparsity=0.5),
    "heads-influence": Heads(macs=0.8, score="influence", scope="uniform"),
    "blocks": Blocks(sparsity=0.5),
    "blocks-parameters": Blocks(parameters=0.7),
    "narrow-embedding": NarrowEmbedding(),
}


class Zoo(nn.Module):
    """Every kind of weight that methods handle, and things that they must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 20)
        self.conv1d = nn.Conv1d(8, 16, 3)
        self.conv2d = nn.Conv2d(3, 24, 2)
        self.up = nn.ConvTranspose2d(16, 6, 2)
        self.embedding = nn.Embedding(40, 8)
        self.lstm = nn.LSTM(12, 16)
        self.norm = nn.LayerNorm(6)
        self.batch = nn.BatchNorm2d(24)


WEIGHTS = NAMES


def usual(method: Method) -> str:
    """A weight of the network that the method handles."""
    if isinstance(method, (Channels, FoldBatchNorm)):
        return "fc1.weight"
    if isinstance(method, NarrowEmbedding):
        return "tokens.weight"
    if isinstance(method, (Heads, Blocks)):
        return "attention.in_proj_weight" if isinstance(method, Heads) else "blocks.0.conv.weight"
    if isinstance(method, Scored) and isinstance(method.structure, KernelPattern):
        return "conv2d.weight"
    return "conv1d.weight" if isinstance(method, (Tucker2, CP)) else "linear.weight"


class Twins(nn.Module):
    """Layers that come in nearly equal pairs, and one of a shape of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.linear2 = nn.Linear(12, 10), nn.Linear(12, 10)
        self.conv1d, self.conv1d2 = nn.Conv1d(4, 8, 3), nn.Conv1d(4, 8, 3)
        self.linear3 = nn.Linear(10, 12)
        with torch.no_grad():
            self.linear2.weight.copy_(self.linear.weight + 0.02 * self.linear2.weight)
            self.conv1d2.weight.copy_(self.conv1d.weight + 0.02 * self.conv1d2.weight)


class Shifts(nn.Module):
    """Linear layers that are convolutions written out, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        plain = nn.Conv2d(2, 3, 3, bias=False)
        strided = nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False)
        sequence = nn.Conv1d(2, 1, 5, padding=2, bias=False)
        self.linear = written_out(plain, (2, 6, 6))
        self.linear2 = written_out(strided, (1, 8, 8))
        self.linear3 = written_out(sequence, (2, 16))
        self.linear4 = nn.Linear(16, 16)


def written_out(layer: nn.Module, shape: tuple[int, ...]) -> nn.Linear:
    """The fully connected layer, without bias, that does what a convolution does to inputs of this shape."""
    inputs = torch.Size(shape).numel()
    with torch.no_grad():
        columns = layer(torch.eye(inputs).view(inputs, *shape)).flatten(1)  # one row per input
        linear = nn.Linear(inputs, columns.shape[1], bias=False)
        linear.weight.copy_(columns.T)
    return linear


class Chain(nn.Module):
    """Convolution, normalisation, pooling, flattening, two linear layers: channels can go, and a few things stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 2 * 2, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.batch(self.conv(x)))
        x = torch.flatten(nn.functional.max_pool2d(x, 3), 1)
        return self.fc2(torch.relu(self.fc1(x)))


def weights_of(method: Method) -> tuple[str, ...]:
    """Names of the weights in `network` that the method may change."""
    if isinstance(method, Tie):
        return ("linear.weight", "linear2.weight", "conv1d.weight", "conv1d2.weight")
    if isinstance(method, Translation):
        return ("linear.weight", "linear2.weight", "linear3.weight")
    return WEIGHTS


def choosable(method: Method) -> tuple[str, ...]:
    """Weights that it can change on their own."""
    if isinstance(method, STRUCTURED):
        return (usual(method),)
    if isinstance(method, Tie):
        return ("conv1d.weight", "conv1d2.weight")
    return ("linear.weight",) if isinstance(method, (Translation, TensorTrain, Monarch)) else ("conv1d.weight",)


class Attending(nn.Module):
    """Attention between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        return self.fc2(self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.batch = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.batch(self.conv(x)))


class Residual(nn.Module):
    """Two residual blocks between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc2 = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Reading(nn.Module):
    """Two embeddings of few tokens, each read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.segments = nn.Embedding(6, 10), nn.Embedding(2, 4)
        self.linear, self.rnn = nn.Linear(10, 5), nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tokens(x)).mean(1) + self.rnn(self.segments(x % 2))[0].mean(1)


STRUCTURED = (Channels, Heads, Blocks, NarrowEmbedding)


def example(method: Method, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """Inputs for the network of a method that needs to run it."""
    if not isinstance(method, STRUCTURED):
        return None
    if isinstance(method, NarrowEmbedding):
        return torch.arange(12).view(3, 4) % 6
    shape = (3, 4, 5) if isinstance(method, Heads) else (3, 2, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def data(method: Method, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]] | None:
    """The same as one batch."""
    inputs = example(method, dtype)
    return None if inputs is None else [(inputs, torch.zeros(len(inputs), dtype=torch.int64))]


def network(method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with random weights that the method can handle."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kinds: dict[type, type[nn.Module]] = {
            Channels: Chain,
            FoldBatchNorm: Chain,
            Tie: Twins,
            Translation: Shifts,
            Heads: Attending,
            Blocks: Residual,
            NarrowEmbedding: Reading,
        }
        model = kinds.get(type(method), Zoo)().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)
