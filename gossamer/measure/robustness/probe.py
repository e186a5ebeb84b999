"""A network as an attack sees it: logits, and the gradient of a loss with respect to the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.errors import DataError
from gossamer.measure.modes import Network, evaluating
from gossamer.measure.robustness.losses import Objective

__all__ = ["Probe", "gives_gradients", "parts", "undisturbed"]


def parts(count: int, batch: int) -> Iterator[Tensor]:
    """The numbers 0 to count − 1, int64, so many at a time."""
    for start in range(0, count, batch):
        yield torch.arange(start, min(start + batch, count))


@contextmanager
def undisturbed(*networks: Network | None) -> Iterator[None]:
    """Within the context networks are in eval mode and nothing but inputs has gradients; afterwards all is as before.

    Weights that are computed from others (`torch.nn.utils.parametrize`) are computed once.
    """
    parameters = [p for n in networks if isinstance(n, nn.Module) for p in n.parameters()]
    wanted = [p.requires_grad for p in parameters]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # A cache of a context around this one holds weights with their own graph, or none yet: it waits untouched.
        outer, parametrize._cache = parametrize._cache, {}
        stack.callback(setattr, parametrize, "_cache", outer)
        stack.enter_context(parametrize.cached())
        stack.enter_context(evaluating(*networks))
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, want in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(want)


def gives_gradients(model: Network, inputs: Tensor) -> bool:
    """Whether the outputs for these inputs can be differentiated with respect to them.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> gives_gradients(nn.Linear(2, 2), x), gives_gradients(lambda x: x.detach(), x)
        (True, False)
    """
    with torch.enable_grad():
        outputs = model(inputs.detach().clone().requires_grad_())
    said: object = outputs  # a network may return anything
    return isinstance(said, Tensor) and said.requires_grad


def _channels_innermost(images: Tensor) -> Tensor:
    """The same numbers in another order of memory, also where there is one channel: convolutions follow it."""
    c, height, width = images.shape[1:]
    return torch.empty_strided(images.shape, (c * height * width, 1, width * c, c), dtype=images.dtype).copy_(images)


def _takes_channels_innermost(network: Network, inputs: Tensor) -> bool:
    """Whether a network may be asked in that order, which takes up to half the time where there is pooling."""
    if inputs.dim() != 4 or not isinstance(network, nn.Module) or not gives_gradients(network, inputs[:2]):
        return False
    try:
        with torch.enable_grad():
            leaf = inputs[:2].detach().clone().requires_grad_()
            outputs = network(_channels_innermost(leaf))
            torch.autograd.grad(outputs.sum(), leaf)
        with torch.no_grad():
            return torch.allclose(outputs, network(inputs[:2]), rtol=1e-3, atol=1e-4 * float(outputs.abs().max()))
    except RuntimeError:  # such as view() of what lies in another order
        return False


@final
class Probe:
    """Asks a network; for use within `undisturbed`.

    Args:
        model: judged: which inputs fool it.
        examples: inputs like those it will be asked about.
        gradients: differentiated in its place: a surrogate with useful gradients. None: the model itself.
        stops: False: no input counts as fooling, so that attacks go on to the strongest inputs (for transfer).
    """

    def __init__(
        self, model: Network, examples: Tensor, gradients: Network | None = None, *, stops: bool = True
    ) -> None:
        self._model, self._gradients, self._stops = model, gradients, stops
        self._innermost = {
            id(network): _takes_channels_innermost(network, examples)
            for network in (model, gradients)
            if network is not None
        }

    def logits(self, points: Tensor) -> Tensor:
        """[n, classes], without gradients."""
        with torch.no_grad():
            return self._checked(self._model(self._laid_out(self._model, points)), points)

    def _laid_out(self, network: Network, points: Tensor) -> Tensor:
        return _channels_innermost(points) if self._innermost[id(network)] else points

    def ascend(self, points: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the objective's values, and the gradients of those with respect to the points."""
        leaf = points.detach().requires_grad_()
        with torch.enable_grad():
            source = self._model if self._gradients is None else self._gradients
            outputs = self._checked(source(self._laid_out(source, leaf)), points)
            values = objective(outputs)
            if not values.requires_grad:
                raise DataError("found outputs without gradients, expected a differentiable network or a surrogate")
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        if self._gradients is None:
            return outputs.detach(), values.detach(), gradient
        logits = self.logits(points)
        return logits, objective(logits), gradient

    def fooled(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mask [n]: another class has the largest logit."""
        if not self._stops:
            return torch.zeros(len(logits), dtype=torch.bool)
        return logits.argmax(1) != targets

    def _checked(self, outputs: object, points: Tensor) -> Tensor:
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(points) or outputs.shape[1] < 2:
            found = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise DataError(f"found outputs of {found}, expected logits [{len(points)}, classes], two classes or more")
        return outputs
