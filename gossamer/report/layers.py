"""What a file keeps of each tensor: bytes, density, bits, rank, encoding and a picture of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from gossamer.encoding.factors import CP, LowRank, TensorTrain, Tucker
from gossamer.encoding.node import Encoding
from gossamer.errors import CompositionError
from gossamer.measure.ledger import Ledger
from gossamer.network.inspect import specs
from gossamer.report.masks import input_picture, mask_picture
from gossamer.store.container import Container

__all__ = ["dense_layers", "layers_of", "rank_of"]

_NEARLY_FULL = 0.999
_SMALL = 64  # weights of a mask worth a look


def layers_of(
    container: Container, ledger: Ledger, *, pictures: int, pixels: int, sample: Sequence[int] | None
) -> list[dict[str, Any]]:
    """One row per tensor, in the network's order.

    Args:
        container: the file as read.
        ledger: of the same file.
        pictures: masks to draw, of the largest tensors that have zeros.
        pixels: along a side of these.
        sample: shape of an input, for a picture of what the first layer looks at; or None.
    """
    accounts = {account.name: account for account in ledger.tensors}
    drawn = sorted(
        (s for s in container.specs if len(s.shape) >= 2 and s.elements >= _SMALL),
        key=lambda s: -s.elements,
    )
    drawn = [s for s in drawn if accounts[s.name].nonzero < _NEARLY_FULL][:pictures]
    chosen = {s.name for s in drawn}
    rows = []
    for spec in container.specs:
        account, tree = accounts[spec.name], container.trees[spec.name]
        row: dict[str, Any] = {
            "name": spec.name,
            "shape": list(spec.shape),
            "bytes": account.file_bytes,
            "dense_bytes": account.dense_bytes,
            "density": account.nonzero,
            "bits": account.bits_per_weight,
            "rank": rank_of(tree),
            "full_rank": _full_rank(spec.shape),
            "encoding": account.encoding,
            "mask": None,
        }
        if spec.name in chosen:
            row |= _pictures(tree, pixels, sample)
        rows.append(row)
    return rows


def dense_layers(network: nn.Module) -> list[dict[str, Any]]:
    """The same rows for a network that is not compressed."""
    held = network.state_dict()
    return [
        {
            "name": spec.name,
            "shape": list(spec.shape),
            "bytes": spec.nbytes,
            "dense_bytes": spec.nbytes,
            "density": float((held[spec.name] != 0).float().mean()) if spec.elements else 0.0,
            "bits": 8.0 * spec.nbytes / max(1, spec.elements),
            "rank": None,
            "full_rank": _full_rank(spec.shape),
            "encoding": "Dense",
            "mask": None,
        }
        for spec in specs(network)
        if spec.name in held
    ]


def rank_of(tree: Encoding) -> int | None:
    """Width of the narrowest bottleneck of a factorized weight, or None: it is not factorized.

    Example:
        >>> import torch
        >>> from gossamer.encoding.values import Dense
        >>> rank_of(LowRank(Dense(torch.ones(4, 2)), Dense(torch.ones(2, 5))))
        2
    """
    ranks = [rank for _, node in tree.nodes() if (rank := _own_rank(node)) is not None]
    return min(ranks) if ranks else None


def _own_rank(node: Encoding) -> int | None:
    if isinstance(node, LowRank):
        return node.rank
    if isinstance(node, CP):
        return node.factors[0].dense_shape()[1]
    if isinstance(node, Tucker):
        held = zip(node.core.dense_shape(), node.factors, strict=True)
        return min((size for size, factor in held if factor is not None), default=None)
    if isinstance(node, TensorTrain):
        return max(core.dense_shape()[3] for core in node.cores)
    return None


def _full_rank(shape: Sequence[int]) -> int | None:
    return min(shape[0], prod(shape[1:])) if len(shape) >= 2 else None


def _pictures(tree: Encoding, pixels: int, sample: Sequence[int] | None) -> dict[str, Any]:
    try:
        weight: Tensor = tree.to_dense().detach()
    except CompositionError:  # a difference to a checkpoint that is not at hand
        return {}
    found: dict[str, Any] = {"mask": mask_picture(weight, pixels)}
    inputs = None if sample is None else input_picture(weight, sample)
    return found if inputs is None else {**found, "input_mask": inputs}
