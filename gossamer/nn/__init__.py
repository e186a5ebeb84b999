"""Layers whose parameters are the live weights only, for training that is sparse from the first step to the last."""

from gossamer.nn.conv import SparseConv2d
from gossamer.nn.layer import SparseLayer
from gossamer.nn.linear import SparseLinear
from gossamer.nn.recurrent import SparseGRU, SparseLSTM, SparseRecurrent
from gossamer.nn.topology import Topology

__all__ = [
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLayer",
    "SparseLinear",
    "SparseRecurrent",
    "Topology",
]
