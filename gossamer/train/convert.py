"""From a dense network to one with sparse layers, and back to encodings."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gossamer.api import Compressed, compress
from gossamer.drive.tune import Loss
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.random import key_of
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method, matches
from gossamer.network.inspect import plain_tree, specs
from gossamer.nn.conv import SparseConv2d
from gossamer.nn.layer import SparseLayer
from gossamer.nn.linear import SparseLinear
from gossamer.train.method import Parts, SparseTraining

__all__ = ["harvest", "masks_of", "sparse_layers", "sparsify"]


class LayerKind(ABC):
    """A kind of dense layer that has a sparse counterpart."""

    @abstractmethod
    def accepts(self, module: nn.Module) -> bool:
        """Whether a module is of this kind and computes nothing beside it."""

    @abstractmethod
    def sparse(self, module: nn.Module, mask: Tensor) -> SparseLayer:
        """Its sparse counterpart; parameters are copied."""

    @abstractmethod
    def is_sparse(self, layer: SparseLayer) -> bool:
        """Whether a layer is such a counterpart."""

    @abstractmethod
    def dense(self, layer: SparseLayer) -> nn.Module:
        """The way back."""


@final
class _Linear(LayerKind):
    def accepts(self, module: nn.Module) -> bool:
        # Subclasses are welcome as long as they multiply as Linear does.
        return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward

    def sparse(self, module: nn.Module, mask: Tensor) -> SparseLayer:
        return SparseLinear.of(cast(nn.Linear, module), mask)

    def is_sparse(self, layer: SparseLayer) -> bool:
        return isinstance(layer, SparseLinear)

    def dense(self, layer: SparseLayer) -> nn.Module:
        return cast(SparseLinear, layer).to_linear()


@final
class _Conv2d(LayerKind):
    def accepts(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
            return False
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def sparse(self, module: nn.Module, mask: Tensor) -> SparseLayer:
        return SparseConv2d.of(cast(nn.Conv2d, module), mask)

    def is_sparse(self, layer: SparseLayer) -> bool:
        return isinstance(layer, SparseConv2d)

    def dense(self, layer: SparseLayer) -> nn.Module:
        return cast(SparseConv2d, layer).to_conv()


LAYERS: tuple[LayerKind, ...] = (_Linear(), _Conv2d())


def sparsify(
    model: nn.Module,
    method: SparseTraining | Method,
    *,
    start: Mapping[str, Tensor] | Method | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss = F.cross_entropy,
) -> nn.Module:
    """Replace a network's Linear and Conv2d layers by sparse ones, **in place**; make the optimiser afterwards.

    All Linear and Conv2d layers (without groups) are meant, the first and the last one too, unless ``only`` or ``skip``
    of the method say otherwise. Left as they are: layers that the allocation leaves full (small ones, under
    Erdős–Rényi), frozen ones, those that share their weight, have hooks or parametrizations, or lie inside attention
    modules, which read their weights themselves.

    Args:
        model: on the CPU, float32.
        method: of sparse training; or a pruning method, whose mask is then trained as it is.
        start: where the first topology comes from, if not at random: masks (True = kept) by layer or tensor name, or
            a pruning method such as ``gs.prune.Magnitude`` (iterative ones too). Their counts are used as they are.
        data: for a pruning method that needs data.
        loss: for the same.

    Returns:
        ``model``, or the sparse layer if the model is itself a single Linear.

    Raises:
        PlanError: no layer matches, one would be empty, or a structure does not fit; nothing was changed then.

    Example:
        >>> from gossamer.train import Static
        >>> sparsify(nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)), Static(sparsity=0.8))
        Sequential(
          (0): SparseLinear(50, 100, bias=True, live=786, sparsity=0.8428)
          (1): ReLU()
          (2): SparseLinear(10, 50, bias=True, live=314, sparsity=0.3720)
        )
    """
    training = method if isinstance(method, SparseTraining) else None
    if training is None:
        if not isinstance(method, Method):
            expected = (
                "a method of gs.train such as RigL, or of gs.prune; those of gs.train.from_dense go to its prepare()"
            )
            raise PlanError(f"sparsify: found {type(method).__name__}, expected {expected}")
        if start is not None:
            raise PlanError(f"start: found one beside {type(method).__name__}, expected a method of sparse training")
        start = method
    else:
        training.check()
    if isinstance(start, Method):
        start = masks_of(compress(model, [start], data=data, loss=loss))
    only, skip, seed = method.only, method.skip, training.seed if training else 0
    given = start
    found = _matching(model, only, skip)
    if given is not None:
        found = [f for f in found if f.mask_in(given) is not None]
        if not found:
            raise PlanError(f"start: found masks of {', '.join(list(given)[:4])}, expected some of the Linear layers")
    names, shapes = [f.names[0] for f in found], [f.shape for f in found]
    if given is not None:
        masks = [_checked(f, cast(Tensor, f.mask_in(given))) for f in found]
    else:
        assert training is not None
        structure = training.parts().structure
        counts = training.live_counts(names, shapes)
        masks = []
        for name, shape, live in zip(names, shapes, counts, strict=True):
            mask = torch.zeros(prod(shape), dtype=torch.bool)
            mask[structure.start(shape, live, key_of(seed, name, "start"))] = True
            masks.append(mask.view(shape))
    if training is not None and given is not None:
        for name, shape, mask in zip(names, shapes, masks, strict=True):
            live = int(mask.sum())
            if training.parts().structure.count(name, shape, live) != live:
                raise PlanError(f"start: {name}: found a mask that {training.parts().structure} does not allow")
    keeps = training is None or (given is None and _leaves_full_ones_dense(training.parts()))
    rescale = training is not None and (given is None if training.rescale is None else training.rescale)
    for each, mask in zip(found, masks, strict=True):
        if keeps and bool(mask.all()):
            continue
        layer = each.kind.sparse(each.module, mask)
        if rescale:
            _rescale(layer, mask)
        model = each.put(model, layer)
    if not sparse_layers(model):
        raise PlanError(f"{type(method).__name__}: found every layer full, expected a sparsity that leaves some zeros")
    return model


def _leaves_full_ones_dense(parts: Parts) -> bool:
    """Whether a layer that starts full never has a zero."""
    return parts.keeps_counts and parts.exploration is None


@final
@dataclass(frozen=True)
class _Found:
    """A dense layer under all its names."""

    names: tuple[str, ...]
    module: nn.Module
    kind: LayerKind

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(cast(Tensor, self.module.weight).shape)

    def mask_in(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        keys = [key for name in self.names for key in (name, _tensor_name(name))]
        return next((masks[key] for key in keys if key in masks), None)

    def put(self, model: nn.Module, layer: SparseLayer) -> nn.Module:
        for name in self.names:
            if not name:
                return layer
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, layer)
        return model


def _tensor_name(module: str) -> str:
    return f"{module}.weight" if module else "weight"


def _matching(model: nn.Module, only: str | tuple[str, ...], skip: str | tuple[str, ...]) -> list[_Found]:
    """The layers that are meant.

    Raises:
        PlanError: none is.
    """
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    listed: dict[int, tuple[list[str], nn.Module]] = {}
    inside: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        listed.setdefault(id(module), ([], module))[0].append(name)
        if isinstance(module, nn.MultiheadAttention):
            inside |= {id(child) for child in module.modules()}
    found, reasons, others = [], [], []
    for names, module in listed.values():
        kind = next((k for k in LAYERS if k.accepts(module)), None)
        if kind is None:
            continue
        keys = [key for name in names for key in (name, _tensor_name(name))]
        if matches(keys, skip) or (only and not matches(keys, only)):
            others.append(f"{names[0]}: not meant by only={only!r}, skip={skip!r}")
            continue
        reason = _refused(module, inside, owners)
        if reason:
            reasons.append(f"{names[0]}: {reason}")
            continue
        found.append(_Found(tuple(names), module, kind))
    if not found:
        why = [*reasons, *others, "it has no Linear layer"][0]
        raise PlanError(f"sparsify: found no layer to make sparse, expected at least one: {why}")
    return found


def _refused(module: nn.Module, inside: set[int], owners: Mapping[int, set[int]]) -> str:
    """Why a layer stays as it is; empty: it does not."""
    if id(module) in inside:
        return "an attention module reads its weight"
    if parametrize.is_parametrized(module):
        return "its weight has a parametrization"
    weight = cast(Tensor, module.weight)
    if weight.dtype is not torch.float32 or weight.device.type != "cpu":
        return f"found {weight.dtype} on {weight.device}, expected float32 on the CPU"
    if not weight.requires_grad:
        return "it is frozen"
    if any(len(owners[id(p)]) > 1 for p in module._parameters.values() if p is not None):
        return "it shares a parameter with another module"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "it has hooks, which a new module would not have" if any(hooks) else ""


def _checked(found: _Found, mask: Tensor) -> Tensor:
    name = found.names[0]
    if mask.dtype is not torch.bool or tuple(mask.shape) != found.shape:
        raise PlanError(f"start: {name}: found {tuple(mask.shape)} {mask.dtype}, expected {found.shape} torch.bool")
    if not bool(mask.any()):
        raise PlanError(f"start: {name}: found a mask that keeps nothing, expected at least one weight")
    return mask


def _rescale(layer: SparseLayer, mask: Tensor) -> None:
    rows = mask.reshape(len(mask), -1)
    live = rows.sum(1)
    factor = (rows.shape[1] / live.clamp(min=1)).sqrt()
    with torch.no_grad():
        layer.values.mul_(factor.float()[layer.positions.long() // rows.shape[1]])


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a network by module name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def masks_of(small: Compressed) -> dict[str, Tensor]:
    """The masks of a pruned network, bool by tensor name, for ``sparsify(…, start=…)``."""
    return {name: tree.where.mask() for name, tree in small.trees.items() if isinstance(tree, Masked)}


def harvest(model: nn.Module, method: SparseTraining | None = None) -> Compressed:
    """A trained network as encodings, to save, to inspect and to run.

    Args:
        model: with sparse layers; not changed. Wrapped in DistributedDataParallel: the network inside is meant.
        method: that it was trained with; N:M layers are then stored as such. None: as free masks.

    Returns:
        Live weights as `Masked` trees, also those that are zero; everything else as it is. Save it with ``.save``.

    Raises:
        CompositionError: a network without sparse layers.

    Exact: the weights of ``harvest(model).dense()`` are those of the model, bit for bit.

    Example:
        >>> from gossamer.train import Static
        >>> model = sparsify(nn.Sequential(nn.Linear(64, 32)), Static(sparsity=0.75))
        >>> harvest(model).dense()
        Sequential(
          (0): Linear(in_features=64, out_features=32, bias=True)
        )
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = cast(nn.Module, model.module)
    layers = sparse_layers(model)
    if not layers:
        raise CompositionError("harvest: found no sparse layer, expected a network from sparsify")
    # Layers are stood in for while the rest is copied, so that no sparse one is copied only to be thrown away.
    memo: dict[int, Any] = {}
    for layer in layers.values():
        kind = next(k for k in LAYERS if k.is_sparse(layer))
        memo[id(layer)] = kind.dense(layer)
    dense = copy.deepcopy(model, memo)
    by_name = {_tensor_name(name): layer for name, layer in layers.items()}
    listed = specs(dense)
    trees: dict[str, Encoding] = {}
    tensors = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    for spec in listed:
        layer_or_none = next((by_name[n] for n in spec.names if n in by_name), None)
        if layer_or_none is None:
            trees[spec.name] = plain_tree(tensors[spec.name].detach().clone(), spec)
            continue
        mask = layer_or_none.topology.mask()
        pattern = Mask.of(mask) if method is None else method.parts().structure.pattern(mask)
        trees[spec.name] = Masked(pattern, Dense(layer_or_none.values.detach().clone()))
    return Compressed(listed, trees, dense.eval())
