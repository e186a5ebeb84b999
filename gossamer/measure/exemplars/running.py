"""How measures of single examples run a network: in eval mode, batch by batch, leaving it as it was found."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.finite import check_finite
from gossamer.measure.modes import Network, evaluating

__all__ = ["batches", "check_data", "input_gradient", "logits", "predictions", "told"]


def check_data(where: str, inputs: object, targets: object, batch: int) -> None:
    """Refuse what is no set of examples.

    Args:
        where: beginning of messages.
        inputs: [n, ...].
        targets: int64 [n] or [n, positions], or None.
        batch: examples at a time, from 1 on.

    Raises:
        DataError: nothing to measure on, numbers that do not agree, targets that are no classes.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
        raise DataError(f"{where}: inputs: found {told(inputs)}, expected a tensor of at least one example")
    if batch < 1:
        raise DataError(f"{where}: batch: found {batch}, expected at least 1")
    if targets is None:
        return
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        raise DataError(f"{where}: targets: found {told(targets)}, expected a tensor of torch.int64")
    if len(targets) != len(inputs):
        raise DataError(f"{where}: found {len(inputs)} inputs and {len(targets)} targets, expected as many of both")


def told(value: object) -> str:
    """A value as messages name it."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def batches(count: int, batch: int) -> list[slice]:
    """Rows 0 to count − 1, so many at a time."""
    return [slice(start, start + batch) for start in range(0, count, batch)]


def logits(where: str, model: Network, inputs: Tensor, rows: slice) -> Tensor:
    """The network's outputs for a batch of the inputs, without gradients; within `evaluating`.

    Raises:
        DataError: outputs that are not one row of scores per example (and position), or not finite.
    """
    part = inputs[rows]
    with torch.no_grad():
        scores: object = model(part)
    if not isinstance(scores, Tensor) or scores.dim() not in (2, 3) or len(scores) != len(part):
        raise DataError(f"{where}: outputs: found {told(scores)}, expected [{len(part)}, classes] for a batch")
    if not bool(torch.isfinite(scores).all()):
        check_finite(inputs, f"{where}: inputs")
        raise DataError(f"{where}: outputs: found scores that are not finite")
    return scores


def predictions(where: str, model: Network, inputs: Tensor, batch: int) -> tuple[Tensor, int]:
    """The class with the highest score of every example, of equal ones the first, and how many classes there are.

    Returns:
        int64 [n] on the processor, and the number of classes.

    Raises:
        DataError: outputs that are not [n, classes].
    """
    found, classes = [], 0
    with evaluating(model):
        for rows in batches(len(inputs), batch):
            scores = logits(where, model, inputs, rows)
            if scores.dim() != 2:
                wanted = f"[{len(scores)}, classes]"
                raise DataError(f"{where}: outputs: found {told(scores)}, expected {wanted} for a batch")
            classes = scores.shape[1]
            found.append(scores.argmax(1).cpu())
    return torch.cat(found), classes


def input_gradient(where: str, model: Network, part: Tensor, chosen: Tensor | None) -> Tensor:
    """d logit / d input of one logit per example, before any softmax, for a batch; within `evaluating`.

    Gradients of parameters are neither computed nor touched. A sum over a batch has the gradients of its examples as
    they are in eval mode, where no example depends on another.

    Args:
        where: beginning of messages.
        model: inputs → logits [n, classes], differentiable.
        part: floats [n, ...].
        chosen: int64 [n], the logits' classes; None: of every example the class that this network predicts.

    Raises:
        DataError: inputs that are no floats, a network without gradients, outputs or classes that do not fit,
            gradients that are not finite.

    Cost: a forward and a backward pass.
    """
    if not part.is_floating_point():
        raise DataError(f"{where}: inputs: found {part.dtype}, expected floats, which have gradients")
    with torch.enable_grad():
        moved = part.detach().clone().requires_grad_()
        scores: object = model(moved)
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(part):
            raise DataError(f"{where}: outputs: found {told(scores)}, expected [{len(part)}, classes] for a batch")
        if not scores.requires_grad:
            raise DataError(f"{where}: found outputs without gradients, expected a network like that of dense()")
        own = scores.detach().argmax(1) if chosen is None else chosen.to(scores.device)
        low, high = int(own.min()), int(own.max())
        if low < 0 or high >= scores.shape[1]:
            raise DataError(f"{where}: found classes {low} to {high}, expected 0 to {scores.shape[1] - 1}")
        wanted = scores.gather(1, own.unsqueeze(1)).sum()
        # Outputs need not depend on the inputs: those of parameters alone have gradients too.
        (gradient,) = torch.autograd.grad(wanted, moved, allow_unused=True, materialize_grads=True)
    if not bool(torch.isfinite(gradient).all()):
        raise DataError(f"{where}: found a gradient that is not finite")
    return gradient
