"""How often a network multiplies with each weight, counted in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.errors import DataError

__all__ = ["uses_of"]


def uses_of(model: nn.Module, example: Tensor) -> tuple[tuple[str, int], ...]:
    """Multiplications per weight and sample of Linear, convolution, embedding (0) and recurrent layers.

    Args:
        model: not changed; runs once in eval mode.
        example: inputs, first dimension samples.

    Returns:
        (tensor name, uses), of layers that were called.

    Raises:
        DataError: inputs that the network rejects.

    Example:
        >>> uses_of(nn.Conv2d(1, 2, 3), torch.zeros(5, 1, 8, 8))
        (('weight', 36),)
    """
    samples = max(1, example.shape[0])
    uses: dict[str, int] = {}

    def hook(prefix: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for name, times in _uses(module, inputs[0], output).items():
                uses[prefix + name] = uses.get(prefix + name, 0) + times // samples

        return count

    handles = [
        module.register_forward_hook(hook(name + "." if name else ""))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd, nn.Embedding, nn.RNNBase))
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"example inputs: the network rejects them: {str(error).splitlines()[0][:160]}") from error
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return tuple(uses.items())


def _uses(module: nn.Module, inputs: Tensor, output: Any) -> dict[str, int]:
    """Uses of each weight by all samples together."""
    if isinstance(module, nn.Embedding):
        return {"weight": 0}
    if isinstance(module, nn.RNNBase):
        steps = prod(inputs.shape[:-1])
        return {name: steps for name, _ in module.named_parameters() if name.startswith("weight")}
    if isinstance(module, _ConvTransposeNd):
        return {"weight": inputs.numel() // module.in_channels}
    if isinstance(module, _ConvNd):
        return {"weight": output.numel() // module.out_channels}
    return {"weight": prod(output.shape[:-1])}
