"""Where a weight is not zero, as a small picture of densities."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gossamer.report.png import data_uri, tinted_png

__all__ = ["density_map", "input_picture", "mask_picture"]

_INK = (47, 121, 196)  # mid-blue: 4.5:1 on white is not asked of pictures, but both backgrounds carry it

Shares = npt.NDArray[np.float64]


def density_map(live: npt.NDArray[np.bool_], rows: int, columns: int) -> Shares:
    """Shares of live weights in cells that divide a matrix as evenly as can be.

    Args:
        live: bool [out, in].
        rows: of the map, at most.
        columns: of the map, at most.

    Returns:
        [min(rows, out), min(columns, in)], 0 to 1; the mean weighted by cell sizes is the density, exactly.

    Example:
        >>> density_map(np.array([[True, True, False, False]] * 2), 1, 2).tolist()
        [[1.0, 0.0]]
    """
    edges = [
        np.arange(min(most, size)) * size // min(most, size)
        for most, size in zip((rows, columns), live.shape, strict=True)
    ]
    down = np.add.reduceat(live, edges[0], axis=0, dtype=np.int64)
    sums = np.add.reduceat(down, edges[1], axis=1)
    sizes = [np.diff(np.append(edge, size)) for edge, size in zip(edges, live.shape, strict=True)]
    shares: Shares = sums / (sizes[0][:, None] * sizes[1])
    return shares


def mask_picture(weight: Tensor, most: int) -> dict[str, Any]:
    """The live weights of a matrix [out, rest].

    Args:
        weight: dense, two dimensions or more.
        most: pixels along a side.

    Returns:
        JSON: pixels ("height", "width"), "darkest" (the density at full ink) and "uri".
    """
    live = (weight.detach() != 0).flatten(1).cpu().numpy()
    return _picture(density_map(live, most, most))


def input_picture(weight: Tensor, sample: Sequence[int]) -> dict[str, Any] | None:
    """Per pixel of the input the share of neurons that look at it, for a first layer on flattened images.

    Args:
        weight: [out, in].
        sample: shape of an input without the batch.

    Returns:
        JSON as of `mask_picture`, or None if inputs are no images of that many pixels.
    """
    if weight.dim() != 2 or len(sample) != 3 or min(sample[1:]) < 4 or prod(sample) != weight.shape[1]:
        return None
    share = (weight.detach() != 0).double().mean(0).view(*sample).mean(0)
    return _picture(share.cpu().numpy())


def _picture(shares: Shares) -> dict[str, Any]:
    darkest = float(shares.max(initial=0.0))
    height, width = shares.shape
    uri = data_uri(tinted_png(shares / darkest if darkest > 0 else shares, _INK))
    return {"height": height, "width": width, "darkest": darkest, "uri": uri}
