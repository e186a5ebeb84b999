"""Sparse training: networks that are sparse from the first step to the last, or become so on the way.

`sparsify` replaces layers, `Sparsifier.step` moves their live weights after the optimiser's steps, `harvest` gives
encodings back. A method is a drop score, a grow score and a schedule (`Parts`); those of the literature have names.
`from_dense` has the methods that hold dense weights for some of their steps, `callbacks` steps inside other people's
loops; `gossamer.train.wire` has sparse gradients between processes.
"""

from gossamer.train import allocation, callbacks, drop, from_dense, grow, schedule, scope, structure
from gossamer.train.checkpoint import Checkpoint
from gossamer.train.convert import harvest, masks_of, sparse_layers, sparsify
from gossamer.train.method import Parts, PruneAndGrow, SparseTraining
from gossamer.train.methods import (
    DSR,
    ITOP,
    SET,
    SNFS,
    DeepR,
    Developmental,
    GradualMagnitude,
    NofM,
    RigL,
    SRigL,
    Static,
    TopKAST,
)
from gossamer.train.sparsifier import Sparsifier, Update
from gossamer.train.winners import KWinners

__all__ = [
    "DSR",
    "ITOP",
    "SET",
    "SNFS",
    "Checkpoint",
    "DeepR",
    "Developmental",
    "GradualMagnitude",
    "KWinners",
    "NofM",
    "Parts",
    "PruneAndGrow",
    "RigL",
    "SRigL",
    "SparseTraining",
    "Sparsifier",
    "Static",
    "TopKAST",
    "Update",
    "allocation",
    "callbacks",
    "drop",
    "from_dense",
    "grow",
    "harvest",
    "masks_of",
    "schedule",
    "scope",
    "sparse_layers",
    "sparsify",
    "structure",
]
