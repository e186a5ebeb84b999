"""Weights that compute as a method will leave them while the numbers behind them train, in any loop.

Every holder of such a weight (`Attached.through`) knows what its method makes of it; nothing else does. So what the
symbols of a network would take (`rate`), and the network with its weights quantized for good (`settle`), follow from
the network alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gossamer.drive.one_shot import Planned, apply_plan, plan_method
from gossamer.drive.source import TreeSource
from gossamer.encoding.node import Encoding, Role
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method, Site
from gossamer.methods.straight import straight_through
from gossamer.network.attach import Attached, attach, attached
from gossamer.network.rebuild import small_tree

__all__ = ["Quantizer", "Slot", "learning", "quantizers", "rate", "settle", "settled"]


@dataclass
class Slot:
    """A site while it trains.

    Args:
        method: that quantizes it.
        site: which.
        grid: what the method last made of it: scales and centroids count, where the values lay does not.
        learned: holds the grid instead if its leaves train.
        fresh: the grid was made of the weights as they are now, so their places in it count too.
    """

    method: Method
    site: Site
    grid: Encoding
    learned: Attached | None = None
    fresh: bool = True

    def current(self) -> Encoding:
        """The grid."""
        return self.grid if self.learned is None else self.learned.tree

    def surrogate(self, latent: Encoding) -> Encoding:
        """What training computes with."""
        if self.fresh and self.learned is None:
            return straight_through(latent, self.grid)
        return self.method.surrogate(self.site, latent, self.current())

    def quantized(self, latent: Encoding) -> Encoding:
        """The same for good."""
        if self.fresh and self.learned is None:
            return self.grid
        return self.method.assign(self.site, latent, self.current()) or self.current()


@final
class Quantizer(nn.Module):
    """What a weight's latent tree goes through: every site of a method quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, Slot] = {}
        self.learned = nn.ModuleList()  # holders of grids whose leaves train

    def add(self, slot: Slot) -> None:
        """Quantize one more site."""
        if slot.method.learns:
            # In training steps are float32 whatever they are at rest: they change by less than half precision holds.
            wide = slot.method.opened(slot.grid).map_leaves(
                lambda f: f.tensor.float() if f.role is Role.TRAINABLE else f.tensor
            )
            slot.learned = Attached(wide, torch.float32, {})
            self.learned.append(slot.learned)
        self.slots[slot.site.path] = slot

    def forward(self, tree: Encoding) -> Encoding:
        """The tree that the layer multiplies with, differentiable in the latent leaves."""
        for path, slot in self.slots.items():
            tree = tree.put(path, slot.surrogate(tree.at(path)))
        return tree

    def bits(self, tree: Encoding) -> Tensor | None:
        """Of the symbols that the latent leaves stand for, differentiable; None: no method says."""
        said = [slot.method.symbol_bits(slot.site, tree.at(path), slot.current()) for path, slot in self.slots.items()]
        known = [bits for bits in said if bits is not None]
        return torch.stack(known).sum() if known else None

    def quantized(self, tree: Encoding) -> Encoding:
        """The same for good."""
        for path, slot in self.slots.items():
            tree = tree.put(path, slot.quantized(tree.at(path)))
        return tree


def quantizers(
    methods: Sequence[Method],
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    plan: Callable[[Method, TreeSource], Planned] = plan_method,
) -> tuple[dict[str, Quantizer], list[Planned], dict[str, Encoding]]:
    """What weights go through so that they compute as the methods leave them.

    Args:
        methods: on different tensors, each takes what those before it left.
        specs: all tensors.
        trees: per canonical name.
        plan: method, source → its plan.

    Returns:
        Quantizers per canonical name, the plans, and the trees as quantized now.
    """
    made = {spec.name: small_tree(trees[spec.name]) for spec in specs}
    through: dict[str, Quantizer] = {}
    plans = []
    for method in methods:
        source = TreeSource(tuple(specs), made)
        planned = plan(method, source)
        new = apply_plan(planned, source)
        for site in planned.sites.values():
            grid = new[site.spec.name].at(site.path)
            through.setdefault(site.spec.name, Quantizer()).add(Slot(planned.method, site, grid))
        made |= new  # so that the next method finds only what is left
        plans.append(planned)
    return through, plans, made


def learning(
    model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding], methods: Sequence[Method]
) -> nn.Module:
    """A network whose weights compute as the methods leave them; the numbers behind them and the steps train.

    Args:
        model: of the architecture; changed in place.
        specs: its tensors.
        trees: per canonical name.
        methods: that learn their steps, on different tensors.

    Returns:
        The model.

    Raises:
        PlanError: a method whose scales would have to be fitted anew as weights move.
        CompositionError: a method that matches nothing.
    """
    for method in methods:
        checked: object = method
        if not isinstance(checked, Method) or not checked.learns or checked.needs:
            found = type(method).__name__
            raise PlanError(f"trainable: found {found}, expected methods that learn, LearnedRate or LearnedStep")
    through, _, _ = quantizers([m.bind(model, None) for m in methods], specs, trees)
    return attach(model, specs, trees, through)


def rate(network: nn.Module) -> Tensor:
    """Bits of the symbols that a network's weights stand for now, differentiable: the λ · bits of a loss.

    Σ over weights of −log2 of the share that a weight's symbol has in its tensor, which is what a static coder takes
    for it; the gradients are those that `gs.quantize.LearnedRate` says. Tables, steps and headers, a few hundred bytes,
    are not in it.

    Args:
        network: from ``trainable`` with `gs.quantize.LearnedRate`, also within another module.

    Returns:
        float32 [], bits; a weight under several names counts once. Divide by 8 for bytes, by the number of weights for
        bits per weight. A price λ of 0.01 to 0.1 per bit per weight is usual beside a cross entropy; let it rise from 0
        over the first half of the training.

    Raises:
        CompositionError: no weight of the network has bits.

    Cost: about 10 operations per weight, forwards and backwards.

    Exact: what an order-0 coder takes for these symbols, up to half a count for each symbol that does not occur.

    Example:
        >>> import gossamer as gs
        >>> small = gs.compress(nn.Linear(64, 64), [])
        >>> network = small.trainable([gs.quantize.LearnedRate(only="weight", start=0.5)])
        >>> bits = rate(network)
        >>> 2 < float(bits.detach()) / 4096 < 4
        True
        >>> bits.backward()
        >>> all(p.grad is not None for n, p in network.named_parameters() if n != "bias")
        True

    Source: Oktay et al. 2020, arXiv 1906.06624, section 2.
    """
    said = [quantizer.bits(holders[0].tree) for quantizer, holders in _quantized(network)]
    known = [bits for bits in said if bits is not None]
    if not known:
        raise CompositionError("rate: found no weights with bits, expected .trainable([gs.quantize.LearnedRate(…)])")
    return torch.stack(known).sum()


def settle(network: nn.Module) -> None:
    """Replace the latent weights by the quantized ones, for good and in place."""
    for quantizer, aliases in _quantized(network):
        quantized = quantizer.quantized(aliases[0].tree)
        for alias in aliases:
            alias.through = None
            alias.replace(quantized)


def settled(network: nn.Module) -> nn.Module:
    """A copy with its weights quantized for good; the network itself where none go through a method."""
    if not _quantized(network):
        return network
    made = copy.deepcopy(network)
    settle(made)
    return made


def _quantized(network: nn.Module) -> list[tuple[Quantizer, list[Attached]]]:
    """Every quantizer of a network once, with all holders whose tree goes through it."""
    found: dict[int, tuple[Quantizer, list[Attached]]] = {}
    for holder in attached(network).values():
        if isinstance(holder.through, Quantizer):
            found.setdefault(id(holder.through), (holder.through, []))[1].append(holder)
    return list(found.values())
