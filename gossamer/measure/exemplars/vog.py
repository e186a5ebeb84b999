"""Variance of gradients: which examples a network went on changing its mind about while it trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.exemplars.deciles import Decile, deciles, top_over_bottom
from gossamer.measure.exemplars.moments import GradientMoments
from gossamer.measure.exemplars.running import batches, check_data, input_gradient, predictions
from gossamer.measure.exemplars.steering import easiest_first, sampling_weights
from gossamer.measure.modes import evaluating

__all__ = ["Logit", "Vog", "normalised", "vog"]

Logit = Literal["predicted", "true", "final"]


@dataclass(frozen=True, eq=False)
class Vog:
    """Variance of gradients of every example.

    Args:
        logit: whose gradients: of the class that each checkpoint predicts, the true class, or the one predicted in the
            end.
        checkpoints: K, how many were seen.
        raw: float64 [n], the mean over input elements of the standard deviation over checkpoints.
        scores: float64 [n], ``raw`` as distance from the mean of its class, in standard deviations of that class.
        classes: int64 [n], the classes within which scores are normalised: true ones for "true", else those that the
            finished network predicts.
        wrong: bool [n], whether the finished network's answer was wrong.
    """

    logit: Logit
    checkpoints: int
    raw: Tensor
    scores: Tensor
    classes: Tensor
    wrong: Tensor

    @property
    def deciles(self) -> tuple[Decile, ...]:
        """Errors of the finished network by tenth of the scores, lowest first."""
        return deciles(self.scores, self.wrong)

    @property
    def top_over_bottom(self) -> float:
        """Error of the tenth with the highest scores over that of the lowest; infinite if the lowest has none."""
        return top_over_bottom(self.deciles)

    def highest(self, share: float = 0.1) -> Tensor:
        """The ⌈share · n⌉ examples with the highest scores, int64, highest first.

        Args:
            share: 0 to 1, not 0.
        """
        if not 0 < share <= 1:
            raise DataError(f"highest: share: found {share}, expected a number over 0, up to 1")
        order = self.scores.argsort(descending=True, stable=True)
        return order[: math.ceil(share * len(order) - 1e-9)]

    def weights(self, *, prefer: Literal["hard", "easy"] = "hard", strength: float = 1.0) -> Tensor:
        """Sampling weights for these examples: see `sampling_weights`."""
        return sampling_weights(self.scores, prefer=prefer, strength=strength)

    def curriculum(self, progress: float, *, start: float = 0.3) -> Tensor:
        """The examples to train on at this point of training, easiest first: see `easiest_first`."""
        return easiest_first(self.scores, progress, start=start)

    def to_json(self) -> dict[str, Any]:
        """The whole curve of deciles. ``top_over_bottom`` is None where the lowest tenth has no error."""
        ratio = self.top_over_bottom
        return {
            "logit": self.logit,
            "checkpoints": self.checkpoints,
            "deciles": [row.to_json() for row in self.deciles],
            "top_over_bottom": ratio if math.isfinite(ratio) else None,
        }


def vog(
    checkpoints: Iterable[nn.Module | Mapping[str, Tensor]],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    logit: Logit = "predicted",
    classes: int | None = None,
    batch: int = 500,
    dtype: torch.dtype = torch.float32,
) -> Vog:
    """Variance of gradients over the checkpoints of a training run.

    S_t = ∂A_c / ∂x at checkpoint t, with A_c the logit (before the softmax) of one class c of the example; element by
    element μ = 1/K Σ_t S_t and V = √(1/K Σ_t (S_t − μ)²); an example's raw value is the mean of V over all elements of
    its input, and its score is (raw − mean) / deviation over the examples of the same class.

    "predicted": c is what checkpoint t itself predicts, so that S_t explains the answer that it gives; an answer that
    changes from checkpoint to checkpoint changes what S_t is about, and adds to the variance. Needs no labels. "true":
    c is the label. "final": c is what ``model`` predicts, at all checkpoints. With the last two what varies is one
    function's gradient, whose size follows the size of the logit: examples of low scores are then often those whose
    logit was never raised, among them many mistakes, and the order can be the reverse.

    The classes within which scores are normalised follow: true ones for "true", those that ``model`` predicts for the
    other two.

    Which checkpoints count: those of early training show what is learned late, those of late training what is still
    not settled. Take them evenly spaced, and say which.

    Args:
        checkpoints: at least two networks, or state dicts for copies of ``model``; a generator is read once, and only
            one checkpoint is in memory at a time.
        model: the finished network, inputs → logits [n, classes], differentiable.
        inputs: floats [n, ...].
        targets: int64 [n].
        logit: "predicted", "true" or "final".
        classes: how many there are, checked against the network's; None: as many as that has.
        batch: examples at a time.
        dtype: in which running means are kept; see `GradientMoments` for what float32 costs.

    Returns:
        Scores, and the errors of ``model`` by tenth of them.

    Raises:
        DataError: fewer than two checkpoints or ten examples, a state dict of another network, a network without
            gradients, targets that do not fit.

    Cost: a forward and a backward pass over the inputs per checkpoint; memory for two numbers per input element and a
    copy of the network, however many checkpoints there are. Exact up to rounding.

    Example:
        >>> nets = [torch.nn.Linear(4, 3) for _ in range(5)]
        >>> found = vog(nets, nets[-1], torch.randn(60, 4), torch.randint(3, (60,)))
        >>> len(found.scores), len(found.deciles), round(abs(float(found.scores.mean())), 6)
        (60, 10, 0.0)

    Source: Agarwal, D'souza, Hooker 2022, arXiv 2008.11600, section 3.
    """
    _check(inputs, targets, logit, batch)
    predicted, width = predictions("vog", model, inputs, batch)
    chosen = {"predicted": None, "true": targets, "final": predicted}[logit]
    moments = GradientMoments(inputs.shape, dtype)
    if classes is not None and classes != width:
        raise DataError(f"vog: classes: found {classes}, expected the {width} of the network's outputs")
    if int(targets.min()) < 0 or int(targets.max()) >= width:
        raise DataError(f"vog: found targets {int(targets.min())} to {int(targets.max())}, expected 0 to {width - 1}")
    holder: list[nn.Module] = []
    for number, checkpoint in enumerate(checkpoints, 1):
        where = f"vog: checkpoint {number}"
        network = _network(where, checkpoint, model, holder)
        add_checkpoint(where, moments, network, inputs, chosen, batch)
    return finished(logit, moments, predicted, targets.cpu())


def add_checkpoint(
    where: str, moments: GradientMoments, network: nn.Module, inputs: Tensor, chosen: Tensor | None, batch: int
) -> None:
    """Put a network's gradients into running moments: of the chosen logits, None: of those that it predicts itself."""
    moments.begin()
    with evaluating(network):
        for rows in batches(len(inputs), batch):
            moments.add(
                rows.start, input_gradient(where, network, inputs[rows], None if chosen is None else chosen[rows])
            )


def finished(logit: Logit, moments: GradientMoments, predicted: Tensor, targets: Tensor) -> Vog:
    """Scores from running moments.

    Args:
        logit: which was taken.
        moments: of its gradients.
        predicted: int64 [n], what the finished network predicts.
        targets: int64 [n].
    """
    raw = moments.deviation()
    classes = targets if logit == "true" else predicted
    return Vog(logit, moments.count, raw, normalised(raw, classes), classes, predicted != targets)


def normalised(raw: Tensor, classes: Tensor) -> Tensor:
    """(raw − mean) / standard deviation (of the population, divided by n) within every class.

    Args:
        raw: floats [n].
        classes: int64 [n].

    Returns:
        float64 [n]; 0 where all of a class are equal, as in a class of one.

    Example:
        >>> normalised(torch.tensor([1.0, 3.0, 7.0, 7.0]), torch.tensor([0, 0, 1, 2])).tolist()
        [-1.0, 1.0, 0.0, 0.0]
    """
    values, found = raw.double(), torch.zeros(len(raw), dtype=torch.float64)
    for number in sorted(set(classes.tolist())):
        mine = classes == number
        members = values[mine]
        deviation = members.std(correction=0)
        # Equal numbers may leave a deviation of a rounding, which must not be divided by.
        if float(deviation) > 1e-12 * float(members.abs().max()):
            found[mine] = (members - members.mean()) / deviation
    return found


def _check(inputs: Tensor, targets: Tensor, logit: str, batch: int) -> None:
    check_data("vog", inputs, targets, batch)
    if logit not in ("predicted", "true", "final"):
        raise DataError(f"vog: logit: found {logit!r}, expected 'predicted', 'true' or 'final'")
    if len(inputs) < 10 or targets.dim() != 1:
        raise DataError(f"vog: found targets of shape {tuple(targets.shape)}, expected [n] with n of 10 or more")


def _network(
    where: str, checkpoint: nn.Module | Mapping[str, Tensor], model: nn.Module, holder: list[nn.Module]
) -> nn.Module:
    """A network for a checkpoint; state dicts are loaded one after the other into the one copy in ``holder``."""
    if isinstance(checkpoint, nn.Module):
        return checkpoint
    if not isinstance(checkpoint, Mapping):
        raise DataError(f"{where}: found {type(checkpoint).__name__}, expected a network or a state dict")
    if not holder:
        holder.append(copy.deepcopy(model).requires_grad_(False))
    try:
        holder[0].load_state_dict(dict(checkpoint))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{where}: found a state dict of another network, expected {reason}") from error
    return holder[0]
