"""Products of a network in training by the live values of its pruned weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.encoding.node import Pattern
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.network.attach import Attached, attached
from gossamer.nn.laid_out import compiled
from gossamer.nn.linear import live_product
from gossamer.runtime.live import LiveMatrix, live_math

__all__ = ["live_products"]

_WORTH = 0.35
"""Share of live values below which their kernels should take less time than making the dense weight and multiplying
with it in bfloat16, both gradients included: by proportion from a fifth (384 × 384 to 1536 × 384, 512 tokens, Zen 4),
where it was measured; the crossing itself was not."""


@contextmanager
def live_products(network: nn.Module) -> Iterator[None]:
    """Within it, Linear layers whose attached weight is sparse multiply by their live values on compiled kernels.

    Parameters stay the same objects, and the topology may change at any time (`evolve`): each call looks at the tree
    that is attached now. A layer keeps its dense product while more than about a third of its weights are live, while
    its inputs are not on the CPU, where no kernels can be compiled, and if its weight is anything but a mask over plain
    float32 values. Under autocast live products are float32 as in `SparseLinear`.

    Args:
        network: as made by `attach`.

    Cost: three products of live · tokens multiply-adds per call and backward pass; some dozen nanoseconds per live
        value where the topology is new.
    Exact: sums in float32 in another order than the dense product's.

    Example:
        >>> from gossamer.api import compress
        >>> from gossamer.methods.prune import Magnitude
        >>> network = compress(nn.Sequential(nn.Linear(64, 32)), [Magnitude(sparsity=0.9)]).trainable()
        >>> x = torch.ones(8, 64)
        >>> dense = network(x)
        >>> with live_products(network):
        ...     torch.allclose(network(x), dense, atol=1e-5)
        True
    """
    changed: list[nn.Linear] = []
    if compiled():
        for name, holder in attached(network).items():
            owner, _, key = name.rpartition(".")
            module = network.get_submodule(owner)
            if isinstance(module, nn.Linear) and key == "weight" and holder.through is None and _plain(module):
                module.__dict__["forward"] = _Product(module, holder)
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _plain(module: nn.Linear) -> bool:
    """Whether nobody else has a hand in its product: another forward pass, a second parametrization of the weight."""
    parametrizations: Any = module.parametrizations
    own = type(module).forward is nn.Linear.forward and "forward" not in module.__dict__
    return own and len(parametrizations["weight"]) == 1


@final
class _Product:
    """The forward pass of one layer."""

    def __init__(self, module: nn.Linear, holder: Attached) -> None:
        self._module, self._holder = module, holder
        self._laid_out: tuple[Pattern, LiveMatrix] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        module, tree = self._module, self._holder.tree
        if not (isinstance(tree, Masked) and isinstance(tree.value, Dense) and _suits(x, tree.value.array)):
            return F.linear(x, module.weight, module.bias)
        values = tree.value.array
        if values.numel() > _WORTH * prod(tree.dense_shape()):
            return F.linear(x, module.weight, module.bias)
        matrix = self._matrix(tree.where)
        with torch.autocast(x.device.type, enabled=False):
            return live_product(x.float(), values, module.bias, matrix)

    def _matrix(self, where: Pattern) -> LiveMatrix:
        if self._laid_out is None or self._laid_out[0] is not where:
            rows, columns = where.dense_shape()
            self._laid_out = where, LiveMatrix((rows, columns), where.positions().numpy(), live_math())
        return self._laid_out[1]


def _suits(x: Tensor, values: Tensor) -> bool:
    """Whether the kernels can multiply these."""
    return x.is_cpu and values.is_cpu and values.dtype is torch.float32 and x.is_floating_point() and x.numel() > 0
