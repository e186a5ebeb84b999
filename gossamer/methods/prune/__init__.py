"""Sparsification: fewer non-zeros. A pruning method is score × structure × budget × schedule."""

from gossamer.methods.prune.magnitude import Magnitude
from gossamer.methods.prune.structure import Block, Columns, NofM, Rows, Structure, Unstructured

__all__ = ["Block", "Columns", "Magnitude", "NofM", "Rows", "Structure", "Unstructured"]
