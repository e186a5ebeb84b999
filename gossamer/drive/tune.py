"""Fine-tuning: one plain training loop, with labels, with the dense network as a teacher, or with both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.progress import Progress
from gossamer.errors import DataError, PlanError

__all__ = ["Batches", "Loss", "Tune", "batches_of", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Batches(Protocol):
    """Training data: pairs (inputs, targets), iterated once per epoch, of known length. A DataLoader is one."""

    def __iter__(self) -> Iterator[Any]:
        """One pass."""

    def __len__(self) -> int:
        """Batches per pass."""


@final
@dataclass(frozen=True, kw_only=True)
class Tune:
    """How to fine-tune.

    The loss is (1 − distil) · loss(outputs, targets) + distil · T² · KL(teacher ‖ network) at temperature T; the
    teacher is the dense network before the recipe.

    Args:
        epochs: passes over the data.
        lr: peak learning rate.
        optimizer: "adam" or "sgd" (Nesterov momentum 0.9).
        weight_decay: decoupled for adam.
        schedule: "cosine" to zero after ``warmup``, or "constant".
        warmup: share of the steps in which the rate rises from zero, 0 to 1.
        distil: share of the teacher in the loss, 0 to 1. With 1 targets are not used.
        temperature: T.
        clip: largest gradient norm, or None.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """

    epochs: int = 1
    lr: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.0
    distil: float = 0.0
    temperature: float = 2.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.temperature <= 0:
            raise PlanError(f"Tune: found epochs {self.epochs}, lr {self.lr}, expected positive numbers")
        if not (0 <= self.distil <= 1 and 0 <= self.warmup <= 1):
            raise PlanError(f"Tune: found distil {self.distil}, warmup {self.warmup}, expected 0 to 1")
        if self.optimizer not in ("adam", "sgd") or self.schedule not in ("cosine", "constant"):
            raise PlanError(
                f"Tune: found {self.optimizer!r}, {self.schedule!r}, expected adam or sgd, cosine or constant"
            )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over everything that trains."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise DataError("found no trainable parameter in the network, expected at least one")
        if self.optimizer == "adam":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(parameters, self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step of the whole run."""
        rising = max(1, round(self.warmup * steps))
        if self.warmup and step < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "constant":
            return self.lr
        done = (step - (rising if self.warmup else 0)) / max(1, steps - (rising if self.warmup else 0))
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def batches_of(data: Iterable[Any] | None, purpose: str) -> Batches:
    """Training data as `Batches`.

    Raises:
        DataError: none given, or of unknown or zero length.
    """
    if data is None:
        raise DataError(f"{purpose}: found no data, expected data=… with (inputs, targets) batches")
    if not isinstance(data, Batches):
        raise DataError(f"{purpose}: found {type(data).__name__}, expected something with a length, like a DataLoader")
    try:
        length = len(data)
    except TypeError as error:
        raise DataError(f"{purpose}: found data without a length, expected one that knows it: {error}") from error
    if length == 0:
        raise DataError(f"{purpose}: found no batches, expected at least one")
    return data


def train(
    model: nn.Module,
    data: Batches,
    tune: Tune,
    *,
    teacher: nn.Module | None = None,
    loss: Loss = F.cross_entropy,
    progress: Progress,
    title: str = "fine-tuning",
    before_step: Callable[[int, int, torch.optim.Optimizer], None] | None = None,
    after_backward: Callable[[], None] | None = None,
) -> None:
    """Train ``model`` in place; it is left in eval mode.

    Args:
        model: anything with trainable parameters.
        data: see `Batches`.
        tune: how.
        teacher: for ``tune.distil``.
        loss: (outputs, targets) → scalar.
        progress: where to say how far it is.
        title: what to say.
        before_step: called with (step, steps, optimiser) before every step; may change the network's topology.
        after_backward: called when a step's gradients are there, before they are clipped and used.

    Raises:
        DataError: a batch that is not (inputs, targets), or a loss that is not finite.
    """
    if tune.distil and teacher is None:
        raise PlanError("Tune: found distil without a dense network to learn from")
    model.train()
    optimizer = tune.make_optimizer(model)
    steps, step = tune.epochs * len(data), 0
    for _ in range(tune.epochs):
        for batch in data:
            if before_step is not None:
                before_step(step, steps, optimizer)
            for group in optimizer.param_groups:
                group["lr"] = tune.rate(step, steps)
            value = _loss(model, batch, tune, teacher, loss)
            if not math.isfinite(float(value.detach())):
                raise DataError(f"{title}: found loss {float(value.detach())} at step {step}, expected a finite one")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            if after_backward is not None:
                after_backward()
            if tune.clip is not None:
                nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], tune.clip)
            optimizer.step()
            step += 1
            progress.update(title, step, steps)
    model.eval()


def _loss(model: nn.Module, batch: Any, tune: Tune, teacher: nn.Module | None, loss: Loss) -> Tensor:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise DataError(f"found a batch of {type(batch).__name__}, expected (inputs, targets)")
    inputs, targets = batch
    outputs = cast(Tensor, model(inputs))
    if not isinstance(outputs, Tensor) and (loss is F.cross_entropy or tune.distil):
        found = type(outputs).__name__
        raise DataError(
            f"found a network that returns {found}, expected a tensor: wrap it, or pass loss= without distil"
        )
    value = torch.zeros(())
    if tune.distil < 1:
        value = (1 - tune.distil) * loss(outputs, targets)
    if teacher is not None and tune.distil:
        with torch.no_grad():
            soft = F.log_softmax(cast(Tensor, teacher(inputs)) / tune.temperature, -1)
        student = F.log_softmax(outputs / tune.temperature, -1)
        divergence = F.kl_div(student, soft, reduction="batchmean", log_target=True)
        value = value + tune.distil * tune.temperature**2 * divergence
    return value
