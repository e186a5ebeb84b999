"""How far results are from float64's."""

import torch
from torch import Tensor

__all__ = ["error"]


def error(y: Tensor, exact: Tensor) -> float:
    """max|y − y64| / max|y64|."""
    assert y.shape == exact.shape and y.dtype == torch.float32
    if exact.numel() == 0:
        return 0.0
    return float((y - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
