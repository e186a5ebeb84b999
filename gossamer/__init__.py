"""Gossamer makes PyTorch networks small and sparse, and makes it pay.

>>> import gossamer as gs
>>> from torch import nn
>>> small = gs.compress(nn.Linear(64, 64), [gs.prune.Magnitude(sparsity=0.9), gs.share.KMeans(bits=4)])
>>> small.ledger(zstd=False).ratio > 10
True
"""

from gossamer import measure, methods, presets
from gossamer.api import Compressed, compress, load
from gossamer.drive.adversarial import Adversarial
from gossamer.drive.allocate import allocate
from gossamer.drive.gradual import Gradual
from gossamer.drive.learning import rate
from gossamer.drive.norms import ReestimateNorms
from gossamer.drive.packing import pack, unpack
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.relative_entropy import RelativeEntropy
from gossamer.drive.sequential import BlockByBlock
from gossamer.drive.tune import Tune
from gossamer.errors import CompositionError, DataError, FormatError, GossamerError, PlanError
from gossamer.methods import code, factorize, prune, quantize, share, shrink
from gossamer.store.packed_file import PackedFile

__all__ = [
    "Adversarial",
    "BlockByBlock",
    "CompositionError",
    "Compressed",
    "DataError",
    "FormatError",
    "GossamerError",
    "Gradual",
    "PackedFile",
    "PlanError",
    "QuantizationAware",
    "ReestimateNorms",
    "RelativeEntropy",
    "Tune",
    "allocate",
    "code",
    "compress",
    "factorize",
    "load",
    "lower",
    "measure",
    "methods",
    "nn",
    "pack",
    "presets",
    "prune",
    "quantize",
    "rate",
    "report",
    "search",
    "share",
    "shrink",
    "train",
    "unpack",
]


def __getattr__(name: str) -> object:
    # `lower`, `nn` and `train` bring the compiler along, `report` what draws it, `search` stands above all these; the
    # rest starts without them.
    if name == "lower":
        from gossamer.runtime.lower import lower

        return lower
    if name in ("nn", "report", "search", "train"):
        import importlib

        return importlib.import_module(f"gossamer.{name}")
    raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
