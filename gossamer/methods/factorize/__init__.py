"""Operator factorization: one big operator becomes several small ones."""

from gossamer.methods.factorize.svd import SVD

__all__ = ["SVD"]
