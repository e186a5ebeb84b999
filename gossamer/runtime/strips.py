"""Convolutions of images that are too wide for one call: strip by strip."""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import PlanError
from gossamer.runtime.conv_product import PlaneProduct

__all__ = ["in_strips"]


def in_strips(product: PlaneProduct, x: Tensor, residual: Tensor | None) -> Tensor:
    """f(W ⊛ x + b + R), in halves where rows are too long for the kernel's 16-bit distances, and in halves of these.

    A kernel is packed for images of about one size; one lowered for small images may meet wide ones later.

    Args:
        product: of the weight.
        x: float32 [N, C, rows, columns], contiguous.
        residual: float32, of the result's shape, contiguous, or None.

    Returns:
        float32 [N, M, rows', columns'], contiguous.

    Raises:
        PlanError: a single column is too much.

    Cost: that of the product; strips copy their part of x, and overlap by less than a kernel's width.
    """
    try:
        return product(x, residual)
    except PlanError:
        rows, columns = product.geometry.outputs((x.shape[2], x.shape[3]))
        if columns < 2:
            raise
    middle = columns // 2
    y = x.new_empty(x.shape[0], product.rows, rows, columns)
    for first, last in ((0, middle), (middle, columns)):
        y[..., first:last] = _strip(product, x, residual, first, last)
    return y


def _strip(product: PlaneProduct, x: Tensor, residual: Tensor | None, first: int, last: int) -> Tensor:
    """Columns [first, last) of the result."""
    geometry = product.geometry
    stride, padding = geometry.stride[1], geometry.padding[1]
    reach = geometry.dilation[1] * (geometry.kernel[1] - 1)
    # A strip is padded like a whole image: it begins so early that this does not show in what is wanted of it.
    early = min(first, -(-padding // stride))
    begin = (first - early) * stride
    end = min(x.shape[3], (last - 1) * stride - padding + reach + 1)
    if end <= begin:  # the last columns lie in the padding
        begin, end = max(0, x.shape[3] - 1) // stride * stride, x.shape[3]
        early = first - begin // stride
    part = x[..., begin:end].contiguous()
    if residual is not None:
        columns = geometry.outputs((x.shape[2], end - begin))[1]
        residual = residual[..., first - early : first - early + columns].contiguous()
    return in_strips(product, part, residual)[..., early : early + last - first]
