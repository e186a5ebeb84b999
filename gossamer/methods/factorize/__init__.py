"""Operator factorization: one big operator becomes several small ones."""

from gossamer.methods.factorize.cp import CP
from gossamer.methods.factorize.low_rank_plus_sparse import LowRankPlusSparse
from gossamer.methods.factorize.monarch import Monarch
from gossamer.methods.factorize.svd import SVD
from gossamer.methods.factorize.tensor_train import TensorTrain
from gossamer.methods.factorize.tucker import Tucker2
from gossamer.methods.factorize.whitened import WhitenedSVD

__all__ = ["CP", "SVD", "LowRankPlusSparse", "Monarch", "TensorTrain", "Tucker2", "WhitenedSVD"]
