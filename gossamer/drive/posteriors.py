"""All Gaussians of a network in training: the whole comes down to a budget, blocks find theirs, blocks are coded."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import nn

from gossamer.drive.posterior import Posterior, Sampled
from gossamer.drive.prices import Prices
from gossamer.encoding.node import Category, Child, Encoding, declarations
from gossamer.encoding.random import key_of, uniform_bits
from gossamer.encoding.skeleton import Skeleton, skeleton_of
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.network.attach import attach, attached
from gossamer.network.rebuild import small_tree

__all__ = ["Places", "Posteriors", "Timetable", "divided", "number_paths", "places_in"]

_EVERY = 4  # steps between updates of prices
_FIRST_PRICE = 1e-5
_ANNEALED = 0.6  # share of the steps before coding in which the whole comes down to its budget

Places = Mapping[str, tuple[tuple[str, str], ...]]


def number_paths(skeleton: Skeleton, above: str = "") -> Iterator[str]:
    """Paths of a tree's `Dense` nodes, those that are scales or positions left out.

    Example:
        >>> from gossamer.encoding.generated import Hashed
        >>> list(number_paths(Skeleton(Hashed, (("table", Skeleton(Dense)),))))
        ['/table']
    """
    if skeleton.kind is Dense:
        yield above
    for name, below in skeleton.children:
        declared = declarations(skeleton.kind)[name.partition(".")[0]]
        if isinstance(declared, Child) and declared.category not in (Category.SCALES, Category.POSITIONS):
            yield from number_paths(below, f"{above}/{name}")


def places_in(specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> Places:
    """Where some tensors have numbers that could train.

    Args:
        specs: the tensors.
        trees: theirs; of shrunk ones what is inside counts.

    Returns:
        Name of the stream of random numbers → (tensor, path) of each place that holds the very same numbers.
    """
    found: dict[int, list[tuple[str, str]]] = {}
    for spec in specs:
        tree = small_tree(trees[spec.name])
        for path in number_paths(skeleton_of(tree)):
            node = tree.at(path)
            if isinstance(node, Dense) and not node.fixed and node.array.is_floating_point() and node.array.numel():
                found.setdefault(id(node.array), []).append((spec.name, path))
    return {"#".join(filter(None, at[0])): tuple(at) for at in found.values()}


def divided(total: int, shares: Sequence[float], most: Sequence[int]) -> list[int]:
    """A number of blocks in proportion to shares, at least 1 and at most ``most`` each.

    Example:
        >>> divided(10, [0.0, 1.0, 3.0], [5, 5, 7])
        [1, 2, 7]
    """
    whole = sum(shares)
    exact = [total * share / whole if whole > 0 else 0.0 for share in shares]
    found = [min(max(1, math.floor(x)), cap) for x, cap in zip(exact, most, strict=True)]
    while sum(found) != min(max(total, len(found)), sum(most)):
        step = 1 if sum(found) < total else -1
        can = [i for i, n in enumerate(found) if (n < most[i] if step > 0 else n > 1)]
        found[max(can, key=lambda i: step * (exact[i] - found[i]))] += step
    return found


@final
class Timetable:
    """Which step does what.

    Args:
        steps: of the whole run.
        ramp: share of them before the first block is coded.
    """

    def __init__(self, steps: int, ramp: float) -> None:
        self.first = round(ramp * steps)
        self.annealed = round(ramp * steps * _ANNEALED)
        self.steps = steps
        if not 0 < self.annealed < self.first < steps:
            raise PlanError(
                f"RelativeEntropy: found {steps} steps at ramp {ramp}, expected more of them: epochs or data"
            )

    def coded(self, step: int, blocks: int) -> int:
        """How many of all blocks are coded when a step begins."""
        return max(0, step + 1 - self.first) * blocks // (self.steps - self.first)


@final
class Posteriors:
    """A network whose weights are random, and what makes them say no more than a budget.

    Args:
        model: the dense network; not changed.
        specs: its tensors.
        trees: of all of them.
        places: as `places_in` finds them.
        blocks: to divide all weights into.
        bits: of a block's index.
        table: when.
        seed: of all that is random.

    Raises:
        PlanError: a tensor that is not to be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        specs: Sequence[TensorSpec],
        trees: Mapping[str, Encoding],
        places: Places,
        *,
        blocks: int,
        bits: int,
        table: Timetable,
        seed: int,
    ) -> None:
        self._places, self._blocks, self._bits, self._table = places, blocks, bits, table
        arrays = {name: _array(small_tree(trees[at[0][0]]), at[0][1]) for name, at in places.items()}
        self.each = {name: Posterior(array.float(), name, seed) for name, array in arrays.items()}
        random: dict[str, dict[str, Posterior]] = {}
        for name, at in places.items():
            for tensor, path in at:
                random.setdefault(tensor, {})[path] = self.each[name]
        # Numbers of half precision would not feel the steps of an optimiser.
        held, memo = {id(a) for a in arrays.values()}, dict[int, tuple[Any, Any]]()
        wide = {
            name: tree.map_leaves(lambda f: f.tensor.float() if id(f.tensor) in held else f.tensor, memo)
            for name, tree in trees.items()
        }
        self._through = {tensor: Sampled(posteriors) for tensor, posteriors in random.items()}
        self.network = attach(copy.deepcopy(model), specs, wide, self._through)
        holders = attached(self.network)
        for name, at in places.items():
            mean = _array(holders[at[0][0]].tree, at[0][1])
            assert isinstance(mean, nn.Parameter)
            if not mean.requires_grad:
                raise PlanError(f"RelativeEntropy: found {at[0][0]!r}, which does not train, expected it in skip")
            self.each[name].mean = mean
        self._price = Prices(_FIRST_PRICE, 1)
        self._at_first = 0.0  # nats
        self._sequence: list[tuple[Posterior, int]] = []
        self._seed = seed

    def before_step(self, step: int) -> None:
        """New noise; prices; from a certain step on, blocks."""
        for posterior in self.each.values():
            posterior.draw_noise(step)
        if step % _EVERY == 0 or step == self._table.annealed:
            self._steer(step)
        begin, end = (self._table.coded(s, len(self._sequence)) for s in (step - 1, step))
        for posterior, block in self._sequence[begin:end]:
            posterior.code(block, self._bits)

    def after_backward(self) -> None:
        """Add what the nats cost to the gradients."""
        for posterior in self.each.values():
            posterior.add_gradient(float(self._price.each))

    def _steer(self, step: int) -> None:
        nats = self._bits * math.log(2)
        divergence = {name: posterior.divergence() for name, posterior in self.each.items()}
        if not self._sequence and step < self._table.annealed:
            total = torch.stack([d.double().sum() for d in divergence.values()]).sum()
            budget, share = self._blocks * nats, step / self._table.annealed
            self._at_first = self._at_first or max(float(total), budget)
            self._price.update(total[None], self._at_first ** (1 - share) * budget**share)
            return
        if not self._sequence:
            shares = [float(d.double().sum()) for d in divergence.values()]
            counts = divided(self._blocks, shares, [p.mean.numel() for p in self.each.values()])
            for posterior, count in zip(self.each.values(), counts, strict=True):
                posterior.divide(count, float(self._price.each))
            self._put_in_sequence()
        for name, posterior in self.each.items():
            posterior.prices.update(posterior.of_blocks(divergence[name]), nats)

    def _put_in_sequence(self) -> None:
        every = [(posterior, block) for posterior in self.each.values() for block in range(posterior.blocks)]
        words = uniform_bits(key_of(self._seed, "sequence"), len(every))
        self._sequence = [every[i] for i in np.argsort(words, kind="stable")]

    def settle(self) -> None:
        """Put what is stored in the place of random weights."""
        made = {name: posterior.encoding(self._bits) for name, posterior in self.each.items()}
        trees = {tensor: holder.tree for tensor, holder in attached(self.network).items() if tensor in self._through}
        for name, at in self._places.items():
            for tensor, path in at:
                trees[tensor] = trees[tensor].put(path, made[name])
        for holder in attached(self.network).values():
            for tensor, through in self._through.items():
                if holder.through is through:
                    holder.through = None
                    holder.replace(trees[tensor])

    # -- killed and resumed ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything but the optimiser's state and PyTorch's random numbers."""
        return {
            "network": self.network.state_dict(),
            "posteriors": {name: posterior.rest() for name, posterior in self.each.items()},
            "price": self._price.state(),
            "at first": self._at_first,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of the same run."""
        self.network.load_state_dict(state["network"])
        for name, posterior in self.each.items():
            posterior.take(state["posteriors"][name])
        self._price.take(state["price"])
        self._at_first = state["at first"]
        if all(posterior.blocks for posterior in self.each.values()):
            self._put_in_sequence()


def _array(tree: Encoding, path: str) -> torch.Tensor:
    node = tree.at(path)
    assert isinstance(node, Dense)
    return node.array
