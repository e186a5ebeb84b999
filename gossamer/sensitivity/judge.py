"""How bad a network's outputs are: a loss where there are targets, else their distance to the network's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.calls import call, inputs_of, rejected
from gossamer.drive.packed import tensors_in
from gossamer.errors import DataError, PlanError

__all__ = ["Distance", "Judge", "Metric"]

Distance = Literal["auto", "kl", "squares"]
Metric = Literal["loss", "kl", "squares"]


def _labelled(batches: Sequence[Any], *, given: bool) -> bool:
    """Whether batches have targets; with a loss of the caller's own they are pairs, whatever the second is."""
    pairs = [isinstance(batch, (tuple, list)) and len(batch) == 2 for batch in batches]
    if given:
        if not all(pairs):
            raise DataError(f"batch {pairs.index(False)}: found no pair, expected (inputs, targets) for the loss")
        return True
    found = {pair and batch[1] is not None for pair, batch in zip(pairs, batches, strict=True)}
    if len(found) > 1:
        raise DataError("found batches with targets and batches without, expected one or the other")
    return found == {True}


@final
class Judge:
    """Runs a network on a few batches and says in one number how bad the outputs are, mean over the batches.

    With targets that is the loss. Without it is how far the outputs are from those of the network as it was given:

    - "kl": Σ p · (log p − log q) over the last dimension, mean over all others, p = softmax(outputs then), q now;
    - "squares": Σ (y − ŷ)² / Σ y² over all tensors of floats in the outputs.

    Args:
        network: as it is now; only without targets it is run.
        batches: (inputs, targets), or inputs.
        loss: (outputs, targets) → scalar; None: cross entropy where there are targets.
        distance: which where there are none; "auto": "kl" of outputs that have ``logits``, else "squares".

    Raises:
        DataError: batches that the network rejects, or outputs that cannot be compared.

    Cost: without targets one pass over the batches, whose outputs are held in memory.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[Any],
        loss: Callable[[Any, Any], Tensor] | None = None,
        distance: Distance = "auto",
    ) -> None:
        if distance not in ("auto", "kl", "squares"):
            raise PlanError(f"distance: found {distance!r}, expected auto, kl or squares")
        self._batches, self._loss = batches, loss if loss is not None else F.cross_entropy
        self._then: list[list[Tensor]] = []
        self.metric: Metric = "loss"
        if _labelled(batches, given=loss is not None):
            if distance != "auto":
                found = f"found {distance!r} for batches with targets"
                raise PlanError(f"distance: {found}, expected auto, whose measure is their loss, or inputs alone")
        else:
            outputs = [_run(network, batch, i) for i, batch in enumerate(batches)]
            logits = all(isinstance(getattr(found, "logits", None), Tensor) for found in outputs)
            self.metric = distance if distance != "auto" else "kl" if logits else "squares"
            self._then = [self._compared(found, i, keep=True) for i, found in enumerate(outputs)]  # may be parameters

    def _compared(self, outputs: Any, number: int, *, keep: bool = False) -> list[Tensor]:
        logits = getattr(outputs, "logits", outputs)
        found = tensors_in(logits if self.metric == "kl" else outputs)
        floats = [t.detach().to(torch.float32, copy=keep) for t in found if t.is_floating_point()]
        if not floats or (self.metric == "kl" and len(floats) != 1):
            expected = "one tensor of logits" if self.metric == "kl" else "a tensor of floats"
            raise DataError(f"batch {number}: found {len(floats)} tensors in the outputs, expected {expected}")
        return floats

    def __call__(self, network: nn.Module) -> float:
        """Mean over the batches; infinite if any is not a number.

        Args:
            network: of the same outputs.
        """
        total = torch.zeros((), dtype=torch.float64)
        for i, batch in enumerate(self._batches):
            outputs = _run(network, batch, i)
            with torch.no_grad():
                total += self._of(outputs, batch, i)
        mean = float(total / len(self._batches))
        return float("inf") if math.isnan(mean) else mean

    def _of(self, outputs: Any, batch: Any, number: int) -> float:
        if self.metric == "loss":
            try:
                return float(self._loss(outputs, batch[1]))
            except Exception as error:  # the user's code raises whatever it raises
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise DataError(f"batch {number}: the loss of outputs and targets fails: {reason}") from error
        now, then = self._compared(outputs, number), self._then[number]
        if [t.shape for t in now] != [t.shape for t in then]:
            raise DataError(f"batch {number}: found outputs of other shapes than before, expected the same every time")
        if self.metric == "kl":
            p, q = F.log_softmax(then[0], -1), F.log_softmax(now[0], -1)
            # What is impossible (a masked word, −inf) adds nothing, whatever it is now.
            return float(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1).mean())
        apart = sum(float((a - b).double().square().sum()) for a, b in zip(now, then, strict=True))
        whole = sum(float(b.double().square().sum()) for b in then)
        return apart / whole if whole > 0 else (0.0 if apart == 0 else float("inf"))


def _run(network: nn.Module, batch: Any, number: int) -> Any:
    try:
        with torch.no_grad():
            return call(network, inputs_of(batch))
    except Exception as error:  # the network raises whatever it raises
        raise rejected(f"batch {number}", error) from error
