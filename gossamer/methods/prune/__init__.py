"""Sparsification: fewer non-zeros. A pruning method is score × structure × allocation × budget × schedule."""

from gossamer.methods.prune.allocate import PerTensor, Sensitivity
from gossamer.methods.prune.budgeted import Budgeted
from gossamer.methods.prune.grasp import GraSP
from gossamer.methods.prune.kernel_pattern import KernelPattern
from gossamer.methods.prune.latency import LatencyTable
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.methods.prune.movement import Movement
from gossamer.methods.prune.optimal_brain import OptimalBrain
from gossamer.methods.prune.random import Random
from gossamer.methods.prune.reconstruct import Reconstruct
from gossamer.methods.prune.scored import Scored
from gossamer.methods.prune.snip import SNIP
from gossamer.methods.prune.sparsegpt import SparseGPT
from gossamer.methods.prune.structure import Block, Columns, NofM, Rows, Structure, Unstructured
from gossamer.methods.prune.synflow import SynFlow
from gossamer.methods.prune.taylor import Taylor
from gossamer.methods.prune.threshold import HardThreshold
from gossamer.methods.prune.wanda import Wanda
from gossamer.methods.prune.woodfisher import WoodFisher

__all__ = [
    "SNIP",
    "Block",
    "Budgeted",
    "Columns",
    "GraSP",
    "HardThreshold",
    "KernelPattern",
    "LatencyTable",
    "Magnitude",
    "Movement",
    "NofM",
    "OptimalBrain",
    "PerTensor",
    "Random",
    "Reconstruct",
    "Rows",
    "Scored",
    "Sensitivity",
    "SparseGPT",
    "Structure",
    "SynFlow",
    "Taylor",
    "Unstructured",
    "Wanda",
    "WoodFisher",
]
