"""Layers whose parameters are the live weights only, for training that is sparse from the first step to the last."""

from gossamer.nn.layer import SparseLayer
from gossamer.nn.linear import SparseLinear
from gossamer.nn.topology import Topology

__all__ = ["SparseLayer", "SparseLinear", "Topology"]
