"""What the methods with a dense phase have in common: a layer sees its weight through a relaxation of a mask.

One design for all of them. Dense weights stay ordinary parameters and train with any loop and optimiser; what a method
is lies in (1) a *relaxation*, a parametrization between the dense weight and the layer (a mask, a gate, a threshold,
noise, nothing), which may have parameters of its own and a penalty, and (2) what happens *between steps* (`advance`): a
phase ends, a mask is chosen anew, weights are rewound. They are no stages of a recipe because the loss has a term more
and steps come between, which only the user's loop can do; a recipe would need a copy of that loop for each.

All of this costs dense arithmetic and dense memory, and more: `dense_share` says in how many of the steps. What is
sparse at the end pays afterwards: `harvest` gives encodings, `live_masks` a start for ``gs.train.sparsify``.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.api import Compressed
from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.source import TreeSource
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method, matches
from gossamer.network.inspect import owner_of, plain_tree, specs, tensors

__all__ = ["DenseMethod", "FromDense", "Relaxation", "harvest", "live_masks", "penalty", "prepare", "relaxed"]


class Relaxation(nn.Module, ABC):
    """How a layer sees its dense weight.

    Args:
        spec: of the weight.
    """

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer multiplies with; in eval mode that of the harvested network."""

    def penalty(self, weight: Tensor) -> Tensor:
        """What the loss is increased by; a scalar."""
        return weight.new_zeros(())

    @abstractmethod
    def live(self, weight: Tensor) -> Tensor:
        """Which weights live if training ended now; bool of the weight's shape."""


@dataclass(frozen=True, kw_only=True)
class DenseMethod(ABC):
    """A method of which some steps are dense.

    Args:
        only: glob patterns of tensors' names; empty: the weights of all Linear and convolution layers.
        skip: glob patterns of tensors to leave alone.
    """

    only: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()

    @abstractmethod
    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A new one for one weight."""

    def dense_share(self, steps: int) -> float:
        """Share of so many steps in which every weight has to be there: takes part, or is updated. Here all of them."""
        del steps
        return 1.0

    def advance(self, run: FromDense) -> None:
        """After step number ``run.done``: begin a phase, choose masks anew. Here nothing."""
        del run


def prepare(model: nn.Module, method: DenseMethod) -> nn.Module:
    """Put a method's relaxations between a network's weights and its layers, **in place**; then make the optimiser.

    Args:
        model: any network; weights under several names are left alone.
        method: which.

    Returns:
        ``model``.

    Raises:
        PlanError: no weight is meant, or the network has parametrizations already.

    Example:
        >>> from gossamer.train.from_dense import SoftThreshold
        >>> model = prepare(nn.Sequential(nn.Linear(6, 4)), SoftThreshold())
        >>> sorted(relaxed(model))
        ['0.weight']
    """
    if not isinstance(method, DenseMethod):
        found = f"found {type(method).__name__}, expected a method of gs.train.from_dense such as Feedback"
        raise PlanError(f"prepare: {found}; RigL and the like go to gs.train.sparsify()")
    if relaxed(model):
        raise PlanError(f"{type(method).__name__}: found a network that was prepared already, expected a plain one")
    held = tensors(model)
    meant = [s for s in specs(model) if _meant(s, method)]
    if not meant:
        names = ", ".join(s.name for s in specs(model)[:4])
        raise PlanError(f"{type(method).__name__}: found no weight that is meant among {names}, expected at least one")
    for spec in meant:
        owner, key = owner_of(spec.name)
        module = model.get_submodule(owner)
        parametrize.register_parametrization(module, key, method.relaxation(spec, held[spec.name]))
    return model


def _meant(spec: TensorSpec, method: DenseMethod) -> bool:
    named = not method.only or matches(spec.names, method.only)
    weight = spec.kind in (Kind.LINEAR, Kind.CONV) and len(spec.shape) >= 2 and not spec.aliases
    return weight and not spec.output_first and named and not matches(spec.names, method.skip)


def relaxed(model: nn.Module) -> dict[str, tuple[Relaxation, nn.Parameter]]:
    """The relaxations of a prepared network and the dense weights beneath, by tensor name."""
    return {name: (relaxation, weight) for name, _, relaxation, weight in _places(model)}


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, Relaxation, nn.Parameter]]:
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for key, parts in cast(nn.ModuleDict, module.parametrizations).items():
            first = cast(nn.ModuleList, parts)[0]
            if isinstance(first, Relaxation):
                yield (name + "." if name else "") + key, module, first, cast(nn.Parameter, parts.original)


def penalty(model: nn.Module) -> Tensor:
    """The sum of all penalties, to be added to the loss; zero for methods without one.

    Raises:
        CompositionError: a network that was not prepared.
    """
    terms = [relaxation.penalty(weight) for relaxation, weight in _prepared(model).values()]
    return torch.stack(terms).sum()


def live_masks(model: nn.Module) -> dict[str, Tensor]:
    """Which weights live, bool by tensor name: what ``gs.train.sparsify(dense, method, start=…)`` starts from."""
    with torch.no_grad():
        return {name: relaxation.live(weight) for name, (relaxation, weight) in _prepared(model).items()}


def _prepared(model: nn.Module) -> dict[str, tuple[Relaxation, nn.Parameter]]:
    found = relaxed(model)
    if not found:
        raise CompositionError("found no relaxation in the network, expected one from prepare")
    return found


def harvest(model: nn.Module) -> Compressed:
    """A prepared and trained network as encodings; the network is not changed.

    Returns:
        What lives as `Masked` trees, with the values that the layers see in eval mode; everything else as it is.

    Raises:
        PlanError: a layer of which nothing lives.
        CompositionError: a network that was not prepared.
    """
    own = copy.deepcopy(model).eval()
    masks = live_masks(own)
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise PlanError(f"{name}: found no live weight, expected at least one: lower the penalty or the sparsity")
    with torch.no_grad():
        for _, module, relaxation, _ in list(_places(own)):
            _make_plain(module, owner_of(relaxation.spec.name)[1])
    listed, held = specs(own), tensors(own)
    trees: dict[str, Encoding] = {}
    for spec in listed:
        if spec.name not in masks:
            trees[spec.name] = plain_tree(held[spec.name].clone(), spec)
            continue
        where = Mask.of(masks[spec.name])
        trees[spec.name] = Masked(where, Dense(held[spec.name].reshape(-1)[where.positions().long()].clone()))
    return Compressed(listed, trees, own)


def _make_plain(module: nn.Module, key: str) -> None:
    """A parametrized tensor as the parameter that it is now.

    `parametrize.remove_parametrizations` would take the property off a class that copies of the module share.
    """
    value = cast(Tensor, getattr(module, key)).detach().clone()
    held = cast(nn.ModuleDict, module.parametrizations)
    if list(held) != [key]:
        raise CompositionError(f"harvest: found parametrizations of {', '.join(held)}, expected one of {key} alone")
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    others = dict(module._parameters)
    module._parameters.clear()
    for name, parameter in {key: nn.Parameter(value), **others}.items():
        module.register_parameter(name, parameter)


def chosen(method: Method, places: Mapping[str, tuple[Relaxation, Tensor]], *, within: bool) -> dict[str, Tensor]:
    """The masks that a pruning method chooses for dense weights; with ``within`` only among what lives already.

    Raises:
        PlanError: the method needs data, or would empty a layer.
    """
    # By their names now: the network may have become part of another one since `prepare`.
    listed = [dataclasses.replace(relaxation.spec, name=name) for name, (relaxation, _) in places.items()]
    trees: dict[str, Encoding] = {}
    for name, (relaxation, weight) in places.items():
        own = Dense(weight.detach().clone())
        if within:
            where = Mask.of(relaxation.live(weight))
            own_values = weight.detach().reshape(-1)[where.positions().long()].clone()
            trees[name] = Masked(where, Dense(own_values))
        else:
            trees[name] = own
    source = TreeSource(listed, trees)
    new = apply_plan(plan_method(method, source), source)
    return {name: cast(Masked, new[name]).where.mask() for name in places if isinstance(new.get(name), Masked)}


@final
class FromDense:
    """The part of a method that happens between steps, beside a user's loop.

    Args:
        model: from `prepare`.
        optimizer: over its parameters.
        method: the same as in `prepare`.

    Example:
        >>> from gossamer.methods.prune import Magnitude
        >>> from gossamer.train.from_dense import Feedback
        >>> method = Feedback(prune=Magnitude(sparsity=0.5), every=2, ramp=4)
        >>> model = prepare(nn.Sequential(nn.Linear(8, 8)), method)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> run = FromDense(model, optimizer, method)
        >>> for _ in range(6):
        ...     loss = model(torch.ones(2, 8)).square().sum() + penalty(model)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     run.step()
        >>> int((harvest(model).dense()[0].weight != 0).sum())
        32
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, method: DenseMethod) -> None:
        self.model, self.optimizer, self.method = model, optimizer, method
        self.places = _prepared(model)
        self.done = 0
        self.kept: dict[str, Any] = {}  # what a method remembers: tensors and numbers, for `state_dict`
        method.advance(self)

    def step(self) -> None:
        """After ``optimizer.step()``, and after that of a learning-rate scheduler."""
        self.done += 1
        self.method.advance(self)

    def clear_state(self, name: str, mask: Tensor) -> None:
        """Set the optimiser's state of a weight to zero where the mask is False."""
        weight = self.places[name][1]
        for value in self.optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """Step number and what the method remembers; masks are in the model's own."""
        return {"done": self.done, "kept": copy.deepcopy(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the model and the optimiser loaded as well."""
        self.done, self.kept = int(state["done"]), copy.deepcopy(dict(state["kept"]))
