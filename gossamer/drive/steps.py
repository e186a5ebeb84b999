"""Evidence from training steps: what gradients say of the live weights, at no extra pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import final

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding, Pattern
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.methods.base import Evidence
from gossamer.network.attach import attached
from gossamer.network.evolve import carried

__all__ = ["FROM_STEPS", "StepEvidence", "nothing_yet"]

FROM_STEPS = frozenset({"movement", "grad", "grad_sq"})
_LASTING = frozenset({"movement"})


@final
class StepEvidence:
    """Sums over steps for each masked weight of an attached network, over its live positions.

    "movement" is −Σ w · dL/dw over all steps so far, "grad" Σ dL/dw and "grad_sq" Σ (dL/dw)² over those since the last
    `update`. A gradient says what the loss does here and now, an old one misleads; what has moved where adds up.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], needs: frozenset[str]) -> None:
        """Start from nothing.

        Args:
            network: as made by `attach`.
            names: canonical names of tensors; others are passed over.
            needs: which of the sums.
        """
        self._network, self._names, self._needs = network, frozenset(names), needs & FROM_STEPS
        self._sums: dict[tuple[str, str], tuple[Pattern, dict[str, Tensor]]] = {}

    def update(self) -> None:
        """Follow a change of the topology: gradients start again, survivors keep their movement, what is new has 0."""
        for (name, path), (before, sums) in list(self._sums.items()):
            node = attached(self._network)[name].tree.at(path)
            kept = {key: total for key, total in sums.items() if key in _LASTING}
            if not kept or not isinstance(node, Masked):
                del self._sums[name, path]
                continue
            was, now = before.positions(), node.where.positions()
            moved = {key: carried(total, was, now) for key, total in kept.items()}
            self._sums[name, path] = node.where, moved

    def gather(self) -> None:
        """Add one step; between its backward pass and the optimiser's step, while weights are those of the loss."""
        for name, holder in attached(self._network).items():
            if name not in self._names:
                continue
            for path, node in holder.tree.nodes():
                if isinstance(node, Masked) and isinstance(node.value, Dense) and node.value.array.grad is not None:
                    self._add((name, path), node.where, node.value.array)

    def _add(self, key: tuple[str, str], where: Pattern, parameter: Tensor) -> None:
        assert parameter.grad is not None
        weight, gradient = parameter.detach().float(), parameter.grad.float()
        sums = self._sums.setdefault(key, (where, {}))[1]
        for name in sorted(self._needs):
            total = sums.setdefault(name, torch.zeros_like(weight))
            if name == "movement":
                total.addcmul_(weight, gradient, value=-1)
            elif name == "grad":
                total.add_(gradient)
            else:
                total.addcmul_(gradient, gradient)

    def evidence(self) -> dict[str, Evidence]:
        """The sums by site key, of its dense shape, zero where a weight is dead."""
        found: dict[str, Evidence] = {}
        for (name, path), (where, sums) in self._sums.items():
            shape, at = where.dense_shape(), where.positions().cpu()
            found[name + ("#" + path if path else "")] = {
                key: torch.zeros(prod(shape)).index_add(0, at, total.cpu()).view(shape) for key, total in sums.items()
            }
        return found


def nothing_yet(trees: Mapping[str, Encoding], needs: frozenset[str]) -> dict[str, Evidence]:
    """Zeros for everything that could be a site, before any step; they take no memory."""
    return {
        name + ("#" + path if path else ""): {key: torch.zeros(()).expand(node.dense_shape()) for key in needs}
        for name, tree in trees.items()
        for path, node in tree.nodes()
    }
