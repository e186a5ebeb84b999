"""An example of every method with every setting that changes what it makes, and a network with every kind of layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import (
    Block,
    Columns,
    HardThreshold,
    KernelPattern,
    LatencyTable,
    Magnitude,
    Movement,
    NofM,
    Random,
    Rows,
    Sensitivity,
    Taylor,
    Unstructured,
)
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels

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
    "hard-threshold": HardThreshold(threshold=0.05),
    "hard-threshold-relative": HardThreshold(threshold=0.5, relative=True, structure=Block(1, 2)),
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
    "channels": Channels(sparsity=0.5),
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


def network(method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with random weights that the method can handle."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = (Chain() if isinstance(method, Channels) else Zoo()).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)
