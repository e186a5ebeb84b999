"""Training that has gone wrong is stopped at once: the step, the layer and the last good state are named."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.errors import DataError

__all__ = ["check_health", "finite"]


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, in one pass if they are and their sum is."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def check_health(model: nn.Module, step: int, loss: Tensor | float | None, good: Path | None) -> None:
    """Refuse to go on with a loss or weights that are not finite.

    Gradients that are not finite are none of our business as long as the weights stay finite: a gradient scaler
    skips such steps.

    Args:
        model: after the step.
        step: its number.
        loss: of the step, if told.
        good: the last good state, if one was written.

    Raises:
        DataError: names step, layer and state.

    Cost: one pass over the weights.
    """
    parameters = [p.detach() for p in model.parameters() if p.is_floating_point()]
    sums = torch.stack([p.sum(dtype=torch.float32) for p in parameters]) if parameters else torch.zeros(1)
    told = None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
    if bool(sums.isfinite().all()) and (told is None or math.isfinite(told)):
        return
    bad = [(n, int((~p.detach().isfinite()).sum())) for n, p in model.named_parameters() if p.is_floating_point()]
    broken = [(name, count) for name, count in bad if count]
    if not broken and (told is None or math.isfinite(told)):
        return  # a sum beyond float32's range
    reasons = [] if told is None or math.isfinite(told) else [f"loss {told}"]
    if broken:
        name, count = broken[0]
        reasons.append(f"{count} values that are not finite in {name!r}")
    else:
        grads = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
        first = next((n for n, g in grads if not bool(g.isfinite().all())), None)
        reasons += [] if first is None else [f"gradients that are not finite in {first!r}"]
    state = "no checkpoint was written" if good is None else f"the last good state is {good}"
    raise DataError(f"step {step}: found {' and '.join(reasons)}, expected finite numbers; {state}")
