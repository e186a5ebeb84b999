"""An example of every method with every setting that changes what it makes, and a network with every kind of layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.methods.base import Method
from gossamer.methods.factorize import CP, SVD, LowRankPlusSparse, Monarch, TensorTrain, Tucker2
from gossamer.methods.prune import Block, Columns, Magnitude, NofM, Rows, Unstructured
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Blocks, Channels, Heads

STRUCTURES = {"weights": Unstructured(), "rows": Rows(), "columns": Columns(), "blocks": Block(3, 5)}

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
    **{f"kmeans-{bits}": KMeans(bits=bits) for bits in (1, 4, 8)},
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
    "svd-rank": SVD(rank=2),
    "svd-energy": SVD(energy=0.7),
    "svd-bytes": SVD(budget_bytes=9000),
    "tucker-ranks": Tucker2(ranks=(3, 2)),
    "tucker-energy": Tucker2(energy=0.5),
    "tucker-bytes": Tucker2(budget_bytes=1000),
    "tucker-macs": Tucker2(macs=0.7),
    "cp-rank": CP(rank=3),
    "cp-macs": CP(macs=0.6),
    "tensor-train-rank": TensorTrain(rank=2),
    "tensor-train-error": TensorTrain(error=0.9, cores=2),
    "tensor-train-bytes": TensorTrain(budget_bytes=6000, cores=2),
    "monarch": Monarch(blocks=4),
    "monarch-uneven": Monarch(blocks=(2, 4)),
    "low-rank-plus-sparse": LowRankPlusSparse(rank=1, density=0.1, rounds=3),
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


WEIGHTS = (
    *("linear.weight", "conv1d.weight", "conv2d.weight", "up.weight", "embedding.weight"),
    *("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
)


def usual(method: Method) -> str:
    """A weight of the network that the method handles."""
    if isinstance(method, Channels):
        return "fc1.weight"
    if isinstance(method, (Heads, Blocks)):
        return "attention.in_proj_weight" if isinstance(method, Heads) else "blocks.0.conv.weight"
    return "conv1d.weight" if isinstance(method, (Tucker2, CP)) else "linear.weight"


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


STRUCTURED = (Channels, Heads, Blocks)


def example(method: Method, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """Inputs for the network of a method that needs to run it."""
    if not isinstance(method, STRUCTURED):
        return None
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
        kinds: dict[type, type[nn.Module]] = {Channels: Chain, Heads: Attending, Blocks: Residual}
        model = kinds.get(type(method), Zoo)().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)
