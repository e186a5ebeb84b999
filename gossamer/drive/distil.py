"""What a network learns from its teacher besides the outputs: hidden states and where it attends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.calls import call
from gossamer.errors import DataError, PlanError

__all__ = ["Heard", "attention_map", "hidden_loss", "soft_loss", "widened"]


def soft_loss(outputs: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(outputs / T)), mean over the batch; ``dim`` is that of the classes.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    soft = F.log_softmax(teacher / temperature, dim)
    student = F.log_softmax(outputs / temperature, dim)
    return temperature**2 * F.kl_div(student, soft, reduction="batchmean", log_target=True)


def attention_map(activation: Tensor) -> Tensor:
    """Σ over channels of a², per position, scaled to length 1: [batch, positions].

    Args:
        activation: [batch, channels, *space], or [batch, time, channels] when it has three dimensions.

    Example:
        >>> attention_map(torch.tensor([[[3.0], [4.0]]])).mul(337**0.5).round().tolist()
        [[9.0, 16.0]]

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, section 3.1.
    """
    energy = activation.square().sum(_channel_dim(activation))
    return F.normalize(energy.flatten(1), dim=1)


def hidden_loss(student: Tensor, teacher: Tensor, projection: nn.Module | None) -> Tensor:
    """Mean squared difference, after ``projection`` of the student's channels where widths differ."""
    if projection is not None:
        dim = _channel_dim(student)
        student = projection(student.movedim(dim, -1)).movedim(-1, dim)
    return F.mse_loss(student, teacher)


def widened(outputs: Any) -> Any:
    """Tensors of half precision in float32, in which losses are summed, in tuples, lists and dicts too."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if type(outputs) in (tuple, list):
        return type(outputs)(map(widened, outputs))
    return {key: widened(value) for key, value in outputs.items()} if type(outputs) is dict else outputs


def _channel_dim(activation: Tensor) -> int:
    return 1 if activation.dim() != 3 else 2


@final
class Heard:
    """Hooks on pairs of modules of a network and its teacher; the sum of what they differ by is a loss.

    Args:
        student: the network in training.
        teacher: the dense one.
        hidden: module of the student → module of the teacher, compared by `hidden_loss`.
        attention: the same, compared by `attention_map`.

    Raises:
        PlanError: a module that is not there.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, hidden: Mapping[str, str], attention: Mapping[str, str]
    ) -> None:
        self.hidden, self.attention = dict(hidden), dict(attention)
        self.projections = nn.ModuleDict()
        self._heard: dict[tuple[str, str], Tensor] = {}
        self._nets = {"network": student, "teacher": teacher}
        self._names = {
            "network": {*self.hidden, *self.attention},
            "teacher": {*self.hidden.values(), *self.attention.values()},
        }
        for who, names in self._names.items():
            known = dict(self._nets[who].named_modules())
            for name in sorted(names - known.keys()):
                raise PlanError(f"Tune: found no module {name!r} in the {who}, expected one of its module names")
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for who, names in self._names.items():
            for name in names:
                hook = self._hook(who, name)
                self._handles.append(self._nets[who].get_submodule(name).register_forward_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._heard.clear()

    def _hook(self, who: str, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hear(module: nn.Module, inputs: Any, found: Any) -> None:
            del module, inputs
            first = found[0] if isinstance(found, tuple) else found
            if not isinstance(first, Tensor):
                raise DataError(f"module {name!r}: found outputs of {type(found).__name__}, expected a tensor")
            self._heard[who, name] = widened(first)

        return hear

    def prepare(self, inputs: Any) -> list[nn.Parameter]:
        """Run both networks once and make the projections that are needed.

        Returns:
            Their parameters; they train with the network and are thrown away afterwards.

        Raises:
            DataError: activations that cannot be compared.
        """
        training = self._nets["network"].training
        with torch.no_grad():
            for net in self._nets.values():
                call(net.eval(), inputs)
        self._nets["network"].train(training)
        for (mine, theirs), kind in self._pairs():
            a, b = self._pair(mine, theirs)
            dim = _channel_dim(a)
            rest = [(x.dim(), tuple(n for d, n in enumerate(x.shape) if d != dim)) for x in (a, b)]
            if rest[0] != rest[1]:
                found = f"{tuple(a.shape)} and {tuple(b.shape)}"
                raise DataError(
                    f"{mine!r} learns from {theirs!r}: found {found}, expected shapes that differ in channels only"
                )
            if kind == "hidden" and a.shape[dim] != b.shape[dim]:
                layer = nn.Linear(a.shape[dim], b.shape[dim], dtype=a.dtype, device="meta").to_empty(device=a.device)
                nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))
                nn.init.zeros_(layer.bias)
                self.projections[mine.replace(".", "/")] = layer
        return list(self.projections.parameters())

    def loss(self, hidden_weight: float, attention_weight: float) -> Tensor:
        """Weighted sum over all pairs of what the last forward passes of both differ by."""
        total = torch.zeros(())
        for (mine, theirs), kind in self._pairs():
            a, b = self._pair(mine, theirs)
            if kind == "hidden":
                key = mine.replace(".", "/")
                projection = dict(self.projections.items()).get(key)
                total = total + hidden_weight * hidden_loss(a, b.detach(), projection)
            else:
                apart = attention_map(a) - attention_map(b.detach())
                total = total + attention_weight * apart.square().sum(1).mean()
        return total

    def _pairs(self) -> list[tuple[tuple[str, str], str]]:
        return [(p, "hidden") for p in self.hidden.items()] + [(p, "attention") for p in self.attention.items()]

    def _pair(self, mine: str, theirs: str) -> tuple[Tensor, Tensor]:
        for who, name in (("network", mine), ("teacher", theirs)):
            if (who, name) not in self._heard:
                raise DataError(f"module {name!r} of the {who}: found no call in a forward pass, expected one")
        return self._heard["network", mine], self._heard["teacher", theirs]
