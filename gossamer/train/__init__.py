"""Sparse training: networks that are sparse from the first step to the last, or become so on the way.

`sparsify` replaces layers, `Sparsifier.step` moves their live weights after the optimiser's steps, `harvest` gives
encodings back. A method is a drop score, a grow score and a schedule (`Parts`); those of the literature have names.
"""

from gossamer.train import allocation, drop, grow, schedule, scope, structure
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

__all__ = [
    "DSR",
    "ITOP",
    "SET",
    "SNFS",
    "Checkpoint",
    "DeepR",
    "Developmental",
    "GradualMagnitude",
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
    "drop",
    "grow",
    "harvest",
    "masks_of",
    "schedule",
    "scope",
    "sparse_layers",
    "sparsify",
    "structure",
]
