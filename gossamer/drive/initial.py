"""Evidence of a network before it is trained: derivatives of the loss, of the gradient's norm, and synaptic flow."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gossamer.drive.tune import Loss
from gossamer.errors import DataError

__all__ = ["AT_START", "initial"]

AT_START = frozenset({"initial_grad", "hessian_grad", "flow"})

_TEMPERATURE = 200.0
"""Of the outputs for "hessian_grad": Wang et al. 2020, section 4."""


def initial(
    model: nn.Module, needs: frozenset[str], batches: Sequence[Any], loss: Loss
) -> dict[str, dict[str, Tensor]]:
    """Derivatives of a network before training, per parameter.

    - "initial_grad": Σ dL/dw over batches;
    - "hessian_grad": H·g of L(outputs / 200), g the sum of gradients over batches, H that of Hessians;
    - "flow": d log R/d|w|, R the sum of the outputs of the network of absolute parameters for one input of ones.

    Dropout is off. For the first two batch normalisation works on the batch; for the flow on its running statistics.

    Args:
        model: in eval mode; parameters will ask for gradients, values stay.
        needs: which.
        batches: (inputs, targets); for "flow" only the shape of the first is used.
        loss: (outputs, targets) → scalar.

    Returns:
        Name → statistic → float32 of the parameter's shape; parameters that the outputs do not depend on are absent.

    Raises:
        DataError: no batch, batches without targets, inputs that are no numbers to flow, or no flow.
    """
    if not batches:
        raise DataError("found no batches to look at, expected at least one")
    found: dict[str, dict[str, Tensor]] = {}
    with torch.enable_grad():
        if "initial_grad" in needs:
            _put(found, "initial_grad", _gradients(model, batches, loss, 1.0))
        if "hessian_grad" in needs:
            _put(found, "hessian_grad", _hessian_gradient(model, batches, loss))
        if "flow" in needs:
            _put(found, "flow", _flow(model, batches[0]))
    return found


def _put(found: dict[str, dict[str, Tensor]], key: str, gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise DataError(f"tensor {name!r}: found {key!r} that is not finite")
        found.setdefault(name, {})[key] = gradient.detach().float()


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    for parameter in named.values():
        parameter.requires_grad_(True)
    return named


@contextmanager
def _on_the_batch(model: nn.Module) -> Iterator[None]:
    """Batch normalisations use the batch and keep their running statistics as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.training, m.momentum, copy.deepcopy(dict(m.named_buffers()))) for m in norms]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, (training, momentum, buffers) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = momentum
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)


def _loss(model: nn.Module, batch: Any, loss: Loss, temperature: float) -> Tensor:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise DataError(f"found a batch of {type(batch).__name__}, expected (inputs, targets) for gradients")
    return loss(cast(Tensor, model(batch[0])) / temperature, batch[1])


def _gradients(model: nn.Module, batches: Sequence[Any], loss: Loss, temperature: float) -> dict[str, Tensor]:
    named = _parameters(model)
    sums: dict[str, Tensor] = {}
    with _on_the_batch(model):
        for batch in batches:
            value = _loss(model, batch, loss, temperature)
            gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    sums[name] = sums[name] + gradient if name in sums else gradient
    return sums


def _hessian_gradient(model: nn.Module, batches: Sequence[Any], loss: Loss) -> dict[str, Tensor]:
    named = _parameters(model)
    whole = _gradients(model, batches, loss, _TEMPERATURE)
    sums: dict[str, Tensor] = {}
    with _on_the_batch(model):
        for batch in batches:
            value = _loss(model, batch, loss, _TEMPERATURE)
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                value, list(named.values()), create_graph=True, allow_unused=True
            )
            terms = [(whole[n] * g).sum() for n, g in zip(named, gradients, strict=True) if g is not None]
            along = torch.stack(terms).sum()  # gᵀ·(gradient of this batch): its derivative is H·g
            if not along.requires_grad:
                continue
            products = torch.autograd.grad(along, list(named.values()), allow_unused=True)
            for name, product in zip(named, products, strict=True):
                if product is not None:
                    sums[name] = sums[name] + product if name in sums else product
    return {n: sums.get(n, torch.zeros_like(g)) for n, g in whole.items()}


def _flow(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        what = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"flow: found inputs of {what}, expected a tensor of floats, which ones can take the place of")
    positive = copy.deepcopy(model).double()
    with torch.no_grad():
        for tensor in (*positive.parameters(), *positive.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
    named = _parameters(positive)
    outputs = cast(Tensor, positive(torch.ones_like(inputs[:1], dtype=torch.float64)))
    total = outputs.sum()
    if not bool(torch.isfinite(total)) or float(total.detach()) <= 0:
        raise DataError(f"flow: found a sum of outputs of {float(total.detach())}, expected a positive number")
    gradients: Sequence[Tensor | None] = torch.autograd.grad(total.log(), list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, gradients, strict=True) if g is not None}
