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
    columns = matrix_shape(site.shape)[1]
    if len(site.shape) >= 2 and "gram" in evidence:
        return grams_of(where, site.shape, evidence), False
    if len(site.shape) >= 2 and "sq" in evidence and evidence["sq"].numel() == columns:
        return grams_of(where, site.shape, {**evidence, "gram": evidence["sq"].reshape(-1).double().diag()}), True
    if site.spec.kind not in _NO_INPUTS:
        warnings.warn(
            f"{where}: found no statistics of its inputs, expected data that reach this layer; all inputs count alike",
            stacklevel=2,
        )
    return torch.eye(columns, dtype=torch.float64)[None], True
