"""Adversarial inputs of one network, made once and tried on several."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.modes import Network
from gossamer.measure.robustness.attack import Attack, Scene
from gossamer.measure.robustness.ball import Norm
from gossamer.measure.robustness.probe import Probe

__all__ = ["Transfer"]

_Threat = tuple[Attack, float, Norm, tuple[float, float], int]


@final
class Transfer:
    """The network that files were compressed from, and the inputs on which it is most wrong.

    Given as ``dense`` to `robustness` for one compressed network after the other, it attacks every example and radius
    once, not once per network. Figures are those of the network itself given each time, but for the last digits of
    floating point, since batches may hold other examples.

    Args:
        network: the dense network. It must not change meanwhile.

    Raises:
        DataError: that is no network.

    Cost: keeps one copy of the inputs for each radius, seed and attack, until other inputs come.

    Example:
        >>> from gossamer.measure import PGD, robustness
        >>> x, y = torch.tensor([[0.75, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> dense = Transfer(lambda x: x)
        >>> networks = (lambda x: 2 * x), (lambda x: x + x.flip(1) / 4)
        >>> found = [robustness(n, x, y, epsilons=[0.2], attacks=[PGD(steps=2)], dense=dense) for n in networks]
        >>> [f.transfer[0].accuracy for f in found]
        [0.5, 0.5]
    """

    def __init__(self, network: Network) -> None:
        if not callable(network):
            raise DataError(f"Transfer: found {type(network).__name__}, expected a network: inputs to logits")
        self.network = network
        self._inputs: Tensor | None = None
        self._targets: Tensor | None = None
        self._points: dict[_Threat, Tensor] = {}
        self._made: dict[_Threat, Tensor] = {}

    def points(self, attack: Attack, scene: Scene, inputs: Tensor, targets: Tensor) -> Tensor:
        """The strongest inputs of a scene's examples, whether or not weaker ones fool the network already.

        Args:
            attack: makes them.
            scene: some of the examples, seen by the network as `probe` gives it.
            inputs: all examples, [n, …].
            targets: int64 [n].

        Returns:
            [len(scene.numbers), …].
        """
        if not self._knows(inputs, targets):
            self._inputs, self._targets = inputs.clone(), targets.clone()
            self.forget()
        low, high = scene.bounds
        threat = (attack, scene.epsilon, scene.norm, (float(low), float(high)), scene.seed)
        made = self._made.setdefault(threat, torch.zeros(len(inputs), dtype=torch.bool))
        points = self._points.setdefault(threat, inputs.clone())
        new = (~made[scene.numbers]).nonzero()[:, 0]
        if len(new):
            some = scene.take(new)
            points[some.numbers] = attack.find(some).points
            made[some.numbers] = True
        return points[scene.numbers]

    def probe(self, inputs: Tensor) -> Probe:
        """The network for `points`, asked once, so that one that does not take such inputs says so at once.

        Args:
            inputs: [n, …].
        """
        found = Probe(self.network, inputs, stops=False)
        found.logits(inputs[:1].clone())
        return found

    def forget(self) -> None:
        """Give the points' memory back."""
        self._points.clear()
        self._made.clear()

    def _knows(self, inputs: Tensor, targets: Tensor) -> bool:
        if self._inputs is None or self._targets is None or self._inputs.dtype != inputs.dtype:
            return False
        return torch.equal(self._inputs, inputs) and torch.equal(self._targets, targets)
