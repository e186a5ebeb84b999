"""Which inputs a network looks at: the gradient of one logit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.exemplars.running import batches, check_data, input_gradient
from gossamer.measure.modes import evaluating

__all__ = ["saliency"]


def saliency(
    model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor | None = None, *, batch: int = 500
) -> Tensor:
    """Input gradients: how much each input would move one logit.

    S = ∂A_c / ∂x with A_c the logit of class c before the softmax. The same ``targets`` for the dense and for the
    compressed network make their maps comparable; with None each network explains its own answer.

    Args:
        model: inputs → logits [n, classes], differentiable (``dense()`` or ``trainable()``, not ``lower()``).
        inputs: floats [n, ...].
        targets: int64 [n], the classes c; None: what this network predicts.
        batch: examples at a time.

    Returns:
        As the inputs, signed. For a picture take absolute values, and the largest one over channels.

    Raises:
        DataError: inputs without gradients, or targets that do not fit.

    Cost: a forward and a backward pass. Exact in eval mode; the network keeps its mode and its gradients.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> found = saliency(layer, torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> bool((found[1] == layer.weight[1]).all())
        True

    Source: Simonyan, Vedaldi, Zisserman 2014, arXiv 1312.6034, section 3.
    """
    check_data("saliency", inputs, targets, batch)
    if targets is not None and targets.dim() != 1:
        raise DataError(f"saliency: targets: found {tuple(targets.shape)}, expected [{len(inputs)}]")
    with evaluating(model):
        parts = [
            input_gradient("saliency", model, inputs[rows], None if targets is None else targets[rows])
            for rows in batches(len(inputs), batch)
        ]
    return torch.cat(parts)
