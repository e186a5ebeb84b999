"""What quantizers know of a layer's inputs: its Gram matrix where the data show one, else less."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.encoding.spec import Kind
from gossamer.methods.base import Site
from gossamer.methods.second_order import grams_of

__all__ = ["matrix_shape", "seen_grams"]

# Each row of an embedding is an output by itself; biases and gains have no inputs: squared error is exact for them.
_NO_INPUTS = frozenset({Kind.EMBEDDING, Kind.BIAS, Kind.NORM})


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight seen as a matrix; a vector is one row."""
    rows = shape[0] if len(shape) >= 2 else 1
    return rows, torch.Size(shape).numel() // max(1, rows)


def seen_grams(where: str, site: Site, evidence: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
    """The Gram matrices of a site's inputs, one for each group of its rows, and whether they are diagonal.

    In this order: "gram"; a diagonal of "sq"; the identity, with a warning unless the tensor has no inputs.

    Args:
        where: method and tensor, for messages.
        site: whose.
        evidence: of the site.

    Returns:
        float64 [groups, n, n]; True: only diagonals are other than zero.

    Raises:
        DataError: evidence of a wrong size or not finite.

    Warns:
        UserWarning: no evidence, or a Gram matrix of fewer rows than inputs.
    """
    if len(site.shape) >= 2 and "gram" in evidence:
        grams = grams_of(where, site.shape, evidence)
        return grams, not bool((grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))).any())
    if len(site.shape) >= 2 and "sq" in evidence:
        squares = evidence["sq"].double()  # [n], or [groups, n] of a grouped convolution
        return grams_of(where, site.shape, {**evidence, "gram": torch.diag_embed(squares)}), True
    if site.spec.kind not in _NO_INPUTS:
        warnings.warn(
            f"{where}: found no statistics of its inputs, expected data that reach this layer; all inputs count alike",
            stacklevel=2,
        )
    return torch.eye(matrix_shape(site.shape)[1], dtype=torch.float64)[None], True
