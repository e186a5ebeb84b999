"""Drivers: who runs a method, on what, when. One-shot over a source, and inside training."""

from gossamer.drive.allocate import allocate
from gossamer.drive.gradual import Gradual
from gossamer.drive.norms import ReestimateNorms
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.recipe import Recipe, Stage, State, run
from gossamer.drive.relative_entropy import RelativeEntropy
from gossamer.drive.sequential import BlockByBlock
from gossamer.drive.source import ModelSource, Source, TreeSource
from gossamer.drive.tune import Tune

__all__ = [
    "BlockByBlock",
    "Gradual",
    "ModelSource",
    "QuantizationAware",
    "Recipe",
    "ReestimateNorms",
    "RelativeEntropy",
    "Source",
    "Stage",
    "State",
    "TreeSource",
    "Tune",
    "allocate",
    "run",
]
