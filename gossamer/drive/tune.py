"""Fine-tuning: one plain training loop, with labels, with the dense network as a teacher, or with both; early stop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from gossamer.drive.adversarial import Adversarial, divergence
from gossamer.drive.calls import call
from gossamer.drive.distil import Heard, soft_loss, widened
from gossamer.drive.frozen import frozen
from gossamer.drive.progress import Progress
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DERIVED

__all__ = ["Batches", "Loss", "Products", "Tune", "batches_of", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]
Products = Callable[[nn.Module], AbstractContextManager[None]]
"""Within the context, a network's products go another way."""


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

    The loss is (1 − distil) · loss(outputs, targets) + distil · T² · KL(teacher ‖ network) at temperature T
    + hidden_weight · Σ mean squared differences of hidden states + attention_weight · Σ ‖differences of attention
    maps‖²; the teacher is the dense network before the recipe. With distil 1 batches may be inputs alone.

    Args:
        epochs: passes over the data.
        lr: peak learning rate.
        optimizer: "adam" or "sgd" (Nesterov momentum 0.9).
        weight_decay: decoupled for adam.
        schedule: "cosine" to zero after ``warmup``, or "constant".
        warmup: share of the steps in which the rate rises from zero, 0 to 1.
        distil: share of the teacher in the loss, 0 to 1. With 1 targets are not used.
        temperature: T.
        taught_by: what the teacher's share is. "classes": the divergence of softened classes, as above. "outputs": the
            recipe's own loss(outputs, the teacher's outputs), for networks whose outputs are no classes, such as
            embeddings: with distil 1 nothing has to be computed before, and batches are inputs.
        clip: largest gradient norm, or None.
        skip: glob patterns of tensor names that do not train; methods beside it change them all the same, and
            statistics of normalisations go on. Adam moves what rarely has a gradient, such as the embedding of a rare
            word, by far more than ``lr`` each time.
        precision: of the arithmetic of forward and backward passes. With "bfloat16" matrix products round their factors
            to 8 bits (autocast); weights, the optimiser's moments, and outputs for the loss (tensors, tuples, lists and
            dicts of them) are float32. On processors with instructions for it, products take half the time or less.
        products: of forward and backward passes. With "live" Linear layers of which at most about a third of the
            weights are live multiply by these alone, on compiled kernels in float32; others, what kernels do not know,
            and weights that are quantized on their way stay as they are. From about 80% sparsity on this takes less
            time than dense products, even in bfloat16, and the dense weights are never made.
        hidden: module of the network → module of the teacher whose outputs it should have. Where the widths differ, a
            linear projection is trained along and thrown away.
        hidden_weight: of each pair of hidden states.
        attention: the same, for the positions at which they are large: Σ over channels of a², scaled to length 1.
        attention_weight: of each pair of attention maps.
        adversarial: train, and judge on ``held_out``, on the worst inputs nearby in the place of those that there are
            (a teacher sees them too); with its ``trades`` on both. See `Adversarial`; the loss is the recipe's own.
        held_out: batches to judge by after every epoch, or the fraction of the data (the last) that is kept for it;
            the best weights are put back in the end. None: the last weights stay.
        patience: stop after so many epochs without a better loss on ``held_out``; None: all epochs.
        watch: called with (network, step from 1 on, steps) after every step, such as a `VogCallback`; it must leave the
            network as it is. Not part of a recipe file.

    Source: Hinton et al. 2015, arXiv 1503.02531; Romero et al. 2015, FitNets, arXiv 1412.6550 (hidden states);
    Zagoruyko and Komodakis 2017, arXiv 1612.03928 (attention).
    """

    epochs: int = 1
    lr: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.0
    distil: float = 0.0
    temperature: float = 2.0
    taught_by: Literal["classes", "outputs"] = "classes"
    clip: float | None = None
    skip: str | tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    products: Literal["dense", "live"] = "dense"
    hidden: Mapping[str, str] = field(default_factory=dict)
    hidden_weight: float = 1.0
    attention: Mapping[str, str] = field(default_factory=dict)
    attention_weight: float = 1.0
    adversarial: Adversarial | None = None
    held_out: float | Batches | None = None
    patience: int | None = None
    # A function, not a setting: recipe files neither set nor show it.
    watch: Callable[[nn.Module, int, int], None] | None = field(
        default=None, compare=False, repr=False, metadata=DERIVED
    )

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.temperature <= 0:
            raise PlanError(f"Tune: found epochs {self.epochs}, lr {self.lr}, expected positive numbers")
        if not (0 <= self.distil <= 1 and 0 <= self.warmup <= 1):
            raise PlanError(f"Tune: found distil {self.distil}, warmup {self.warmup}, expected 0 to 1")
        if self.optimizer not in ("adam", "sgd") or self.schedule not in ("cosine", "constant"):
            raise PlanError(
                f"Tune: found {self.optimizer!r}, {self.schedule!r}, expected adam or sgd, cosine or constant"
            )
        if not isinstance(self.skip, str) and not all(isinstance(p, str) for p in self.skip):
            raise PlanError(f"Tune: skip: found {self.skip!r}, expected patterns of names")
        object.__setattr__(self, "skip", self.skip if isinstance(self.skip, str) else tuple(self.skip))
        if self.precision not in ("float32", "bfloat16"):
            raise PlanError(f"Tune: precision: found {self.precision!r}, expected 'float32' or 'bfloat16'")
        if self.taught_by not in ("classes", "outputs"):
            raise PlanError(f"Tune: taught_by: found {self.taught_by!r}, expected 'classes' or 'outputs'")
        if self.products not in ("dense", "live"):
            raise PlanError(f"Tune: products: found {self.products!r}, expected 'dense' or 'live'")
        if self.hidden_weight < 0 or self.attention_weight < 0:
            raise PlanError(
                f"Tune: found hidden_weight {self.hidden_weight}, attention_weight {self.attention_weight}, "
                "expected numbers from 0 on"
            )
        if isinstance(self.held_out, (int, float)) and not 0 < self.held_out < 1:
            raise PlanError(f"Tune: held_out: found {self.held_out}, expected a fraction between 0 and 1, or batches")
        if self.patience is not None and (self.patience < 1 or self.held_out is None):
            raise PlanError(
                f"Tune: found patience {self.patience}, held_out {self.held_out}, expected 1 or more with data to judge"
            )
        objective: object = self.adversarial
        if objective is not None and (not isinstance(objective, Adversarial) or self.distil == 1):
            found = f"{objective!r}, distil {self.distil}"
            raise PlanError(f"Tune: adversarial: found {found}, expected an Adversarial with a distil below 1")
        object.__setattr__(self, "hidden", dict(self.hidden))
        object.__setattr__(self, "attention", dict(self.attention))

    @property
    def taught(self) -> bool:
        """Whether the dense network takes part."""
        return bool(self.distil or self.hidden or self.attention)

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
    if isinstance(data, Tensor):
        raise DataError(f"{purpose}: found a tensor of shape {tuple(data.shape)}, expected a list of batches")
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
    penalty: Callable[[], Tensor] | None = None,
    done: int = 0,
    live: Products | None = None,
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
        penalty: another term of the loss, computed at every step; not of the loss on ``tune.held_out``.
        done: steps that an earlier run has made: their batches are passed over. What they left must be put in
            by ``before_step``.
        live: what makes a network multiply by its live values, for ``tune.products``.

    Raises:
        DataError: a batch that is not (inputs, targets), or a loss that is not finite.
        PlanError: a pattern of ``tune.skip`` that matches no tensor.
    """
    if tune.taught and teacher is None:
        raise PlanError("Tune: found a teacher's loss without a dense network to learn from")
    data, held_out = _held_out(data, tune.held_out)
    heard = Heard(model, teacher, tune.hidden, tune.attention) if teacher is not None and tune.taught else None
    if tune.products == "live" and live is None:
        raise PlanError("Tune: products: found 'live' without kernels at hand, expected it in a recipe of compress")
    faster = live(model) if live is not None and tune.products == "live" else nullcontext()
    with frozen(model, tune.skip), nullcontext() if heard is None else heard, faster:
        model.train()
        optimizer = tune.make_optimizer(model)
        if heard is not None and (tune.hidden or tune.attention):
            projections = heard.prepare(_inputs_and_targets(next(iter(data)), tune)[0])
            if projections:
                optimizer.add_param_group({"params": projections})
        _epochs(
            *(model, data, held_out, tune, teacher, heard, loss, optimizer, progress, title),
            *(before_step, after_backward, penalty, done),
        )
    model.eval()


def _epochs(
    model: nn.Module,
    data: Batches,
    held_out: Batches | None,
    tune: Tune,
    teacher: nn.Module | None,
    heard: Heard | None,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    title: str,
    before_step: Callable[[int, int, torch.optim.Optimizer], None] | None,
    after_backward: Callable[[], None] | None,
    penalty: Callable[[], Tensor] | None,
    done: int,
) -> None:
    steps, step = tune.epochs * len(data), 0
    best, best_state, worse = math.inf, None, 0
    for _ in range(tune.epochs):
        for batch in data:
            if step < done:
                step += 1
                continue
            if before_step is not None:
                before_step(step, steps, optimizer)
            for group in optimizer.param_groups:
                group["lr"] = tune.rate(step, steps)
            value = _loss(model, batch, tune, teacher, heard, loss)
            if penalty is not None:
                value = value + penalty()
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
            if tune.watch is not None:
                tune.watch(model, step, steps)
            progress.update(title, step, steps)
        if held_out is None:
            continue
        model.eval()
        with torch.no_grad():
            judged = [float(_loss(model, batch, tune, teacher, heard, loss)) for batch in held_out]
        model.train()
        now = sum(judged) / len(judged)
        if now < best:
            best, best_state, worse = now, copy.deepcopy(model.state_dict()), 0
        else:
            worse += 1
        if tune.patience is not None and worse >= tune.patience:
            progress.update(title, steps, steps)
            break
    if best_state is not None:
        model.load_state_dict(best_state)


def _held_out(data: Batches, held_out: float | Batches | None) -> tuple[Batches, Batches | None]:
    """Data to train with and to judge by.

    Raises:
        DataError: a fraction of data that cannot be divided, or that leaves nothing.
    """
    if held_out is None or not isinstance(held_out, (int, float)):
        return data, None if held_out is None else batches_of(held_out, "held_out")
    if isinstance(data, DataLoader) and isinstance(data.sampler, (RandomSampler, SequentialSampler)):
        count = len(cast(Any, data.dataset))
        first = count - round(held_out * count)
        parts = [range(first), range(first, count)]
        shuffles = isinstance(data.sampler, RandomSampler)
        made: list[Batches] = [
            DataLoader(
                Subset(data.dataset, part),
                batch_size=data.batch_size,
                shuffle=shuffles and i == 0 and len(part) > 0,
                collate_fn=data.collate_fn,
                num_workers=data.num_workers,
                generator=data.generator if i == 0 else None,
            )
            for i, part in enumerate(parts)
        ]
    elif isinstance(data, (list, tuple)):
        first = len(data) - round(held_out * len(data))
        made = [data[:first], data[first:]]
    else:
        found = type(data).__name__
        raise DataError(f"held_out: found data of {found}, expected a DataLoader or a list, or held_out=batches")
    if not (len(made[0]) and len(made[1])):
        raise DataError(f"held_out: found {held_out} of {len(data)} batches, expected some of them on both sides")
    return made[0], made[1]


def _inputs_and_targets(batch: Any, tune: Tune) -> tuple[Any, Any]:
    """The parts of a batch; with the teacher's outputs alone in the loss there need not be targets."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if tune.distil == 1 and isinstance(batch, (Tensor, Mapping)):
        return batch, None
    if tune.distil == 1 and isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    raise DataError(f"found a batch of {type(batch).__name__}, expected (inputs, targets), or inputs with distil=1")


def _loss(
    model: nn.Module, batch: Any, tune: Tune, teacher: nn.Module | None, heard: Heard | None, loss: Loss
) -> Tensor:
    inputs, targets = _inputs_and_targets(batch, tune)
    with _arithmetic(model, tune):
        if tune.adversarial is not None and tune.adversarial.trades is None:
            inputs = tune.adversarial.inputs(model, inputs, targets, loss)
        outputs = cast(Tensor, widened(call(model, inputs)))
    soft = tune.distil and tune.taught_by == "classes"
    if not isinstance(outputs, Tensor) and (loss is F.cross_entropy or soft):
        found = type(outputs).__name__
        raise DataError(
            f"found a network that returns {found}, expected a tensor: wrap it, or pass loss= without distil"
        )
    value = torch.zeros(())
    if tune.distil < 1:
        value = loss(outputs, targets)
        if tune.adversarial is not None and tune.adversarial.trades is not None:
            with _arithmetic(model, tune):
                others = cast(Tensor, widened(call(model, tune.adversarial.inputs(model, inputs, targets, loss))))
            value = value + tune.adversarial.trades * divergence(outputs, others)
        value = (1 - tune.distil) * value
    if teacher is not None and tune.taught:
        with torch.no_grad(), _arithmetic(teacher, tune):
            taught = cast(Tensor, widened(call(teacher, inputs)))
        if tune.distil:
            own = tune.taught_by == "outputs"
            told = loss(outputs, taught) if own else soft_loss(outputs, taught, tune.temperature)
            value = value + tune.distil * told
        if heard is not None and (tune.hidden or tune.attention):
            value = value + heard.loss(tune.hidden_weight, tune.attention_weight)
    return value


def _arithmetic(network: nn.Module, tune: Tune) -> ExitStack:
    """In which precision a network is run."""
    stack = ExitStack()
    if tune.precision == "bfloat16":
        device = next((p.device.type for p in network.parameters()), "cpu")
        stack.enter_context(torch.autocast(device, torch.bfloat16))
        if device == "cpu" and torch.is_grad_enabled():
            # PyTorch's fused attention goes backward through bfloat16 slower than through float32.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack
