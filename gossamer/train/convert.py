"""From a dense network to one with sparse layers, and back to encodings."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
from gossamer.encoding.weights import Concat, Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method, matches
from gossamer.network.inspect import plain_tree, specs
from gossamer.nn.layer import SparseLayer
from gossamer.train.kinds import KINDS, LayerKind, keys_of
from gossamer.train.method import Parts, SparseTraining

__all__ = ["harvest", "masks_of", "sparse_layers", "sparsify"]

_NEAR = 0.01
"""Two sparsities that differ by less are the same: counts are rounded, layers differ."""


def sparsify(
    model: nn.Module,
    method: SparseTraining | Method,
    *,
    start: Mapping[str, Tensor] | Method | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss = F.cross_entropy,
) -> nn.Module:
    """Replace Linear, Conv2d, LSTM and GRU layers by sparse ones, **in place**; make the optimiser afterwards.

    All of them are meant (Conv2d without groups, LSTM without projections), the first and the last one too, unless
    ``only`` or ``skip`` of the method say otherwise. Left as they are: layers that the allocation leaves full (small
    ones, under Erdős–Rényi), frozen ones, those that share their weight, have hooks or parametrizations, or lie inside
    attention modules, which read their weights themselves. An LSTM's or GRU's weights count as a layer each
    (``rnn.weight_hh_l0``); if any of them gets zeros, the others are kept by live values too, all of them live.

    Args:
        model: on the CPU, float32.
        method: of sparse training; or a pruning method, whose mask is then trained as it is.
        start: where the first topology comes from, if not at random: masks (True = kept) by layer or tensor name, or
            a pruning method such as ``gs.prune.Magnitude`` (iterative ones too). Their counts are used as they are; a
            warning says if they are not those that the method was asked for.
        data: for a pruning method that needs data.
        loss: for the same.

    Returns:
        ``model``, or the sparse layer if the model is itself a single layer.

    Raises:
        PlanError: no layer matches, a pattern matches nothing, a layer would be empty, or a structure does not fit;
            nothing was changed then.

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
    already = [n for n in sparse_layers(model) if not matches([n], skip) and (not only or matches([n], only))]
    if already:
        raise PlanError(
            f"sparsify: found {already[0]} with live values only already, expected a dense layer: harvest first, or "
            "leave it out with only= or skip="
        )
    found = _matching(model, only, skip)
    if given is not None:
        found = [f for f in found if f.mask_in(given) is not None]
        if not found:
            raise PlanError(f"start: found masks of {', '.join(list(given)[:4])}, expected some of the layers meant")
    names, shapes = [f.name for f in found], [f.shape for f in found]
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
        _check_start(training, names, masks)
    keeps = training is None or (given is None and _leaves_full_ones_dense(training.parts()))
    rescale = training is not None and (given is None if training.rescale is None else training.rescale)
    before = set(map(id, sparse_layers(model).values()))
    for each, own in _by_module(found, masks):
        if keeps and all(bool(mask.all()) for mask in own.values()):
            continue
        layer = each.kind.sparse(each.module, own)
        for weight, mask in own.items():
            part = each.kind.part(layer, weight)
            part.made_by = training
            if rescale:
                _rescale(part, mask)
        model = each.put(model, layer)
    if all(id(layer) in before for layer in sparse_layers(model).values()):
        raise PlanError(f"{type(method).__name__}: found every layer full, expected a sparsity that leaves some zeros")
    return model


def _check_start(training: SparseTraining, names: Sequence[str], masks: Sequence[Tensor]) -> None:
    """Refuse masks that a method's structure does not allow; say so if they are not as sparse as it was asked to be."""
    structure = training.parts().structure
    for name, mask in zip(names, masks, strict=True):
        live = int(mask.sum())
        if structure.count(name, tuple(mask.shape), live) != live:
            raise PlanError(f"start: {name}: found a mask that {structure} does not allow")
    found = 1 - sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))
    if training.parts().schedule.constant_density and abs(found - training.final_sparsity) > _NEAR:
        said = f"found masks of sparsity {found:.3f}, which {type(training).__name__} keeps"
        warnings.warn(f"start: {said}, expected the {training.final_sparsity:.3f} that it was asked for", stacklevel=3)


def _leaves_full_ones_dense(parts: Parts) -> bool:
    """Whether a layer that starts full never has a zero."""
    return parts.keeps_counts and parts.exploration is None


@final
@dataclass(frozen=True)
class _Found:
    """A weight of a dense layer under all its names."""

    modules: tuple[str, ...]
    module: nn.Module
    kind: LayerKind
    weight: str

    @property
    def name(self) -> str:
        """Of the sparse layer to come."""
        return self.kind.name(self.modules[0], self.weight)

    @property
    def keys(self) -> tuple[str, ...]:
        """What patterns and masks may call it."""
        return tuple(key for module in self.modules for key in self.kind.keys(module, self.weight))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.module.get_parameter(self.weight).shape)

    def mask_in(self, masks: Mapping[str, Tensor]) -> Tensor | None:
        return next((masks[key] for key in self.keys if key in masks), None)

    def put(self, model: nn.Module, layer: nn.Module) -> nn.Module:
        for name in self.modules:
            if not name:
                return layer
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, layer)
        return model


def _by_module(found: Sequence[_Found], masks: Sequence[Tensor]) -> list[tuple[_Found, dict[str, Tensor]]]:
    """The layers, and masks of each one's weights."""
    made: dict[int, tuple[_Found, dict[str, Tensor]]] = {}
    for each, mask in zip(found, masks, strict=True):
        made.setdefault(id(each.module), (each, {}))[1][each.weight] = mask
    return list(made.values())


def _matching(model: nn.Module, only: str | tuple[str, ...], skip: str | tuple[str, ...]) -> list[_Found]:
    """The weights that are meant.

    Raises:
        PlanError: none is, or a pattern matches nothing.
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
    candidates, reasons, others = [], {}, []
    for names, module in listed.values():
        kind = next((k for k in KINDS if k.accepts(module)), None)
        if kind is None or isinstance(module, SparseLayer):
            continue
        reason = _refused(module, inside, owners)
        for weight in kind.weights(module):
            each = _Found(tuple(names), module, kind, weight)
            candidates.append(each)
            if reason:
                reasons[each.name] = reason
    found = []
    for each in candidates:
        if matches(each.keys, skip) or (only and not matches(each.keys, only)):
            others.append(f"{each.name}: not meant by only={only!r}, skip={skip!r}")
        elif each.name not in reasons:
            found.append(each)
    told = [f"{name}: {reason}" for name, reason in reasons.items()]
    _check_patterns(model, only, skip, candidates, reasons)
    if not found:
        missing = "it has no Linear, LSTM or GRU layer, and no Conv2d layer without groups and with zeros as padding"
        why = [*told, *others, missing][0]
        raise PlanError(f"sparsify: found no layer to make sparse, expected at least one: {why}")
    return found


def _check_patterns(
    model: nn.Module,
    only: str | tuple[str, ...],
    skip: str | tuple[str, ...],
    candidates: Sequence[_Found],
    reasons: Mapping[str, str],
) -> None:
    """Refuse a pattern that matches nothing: most likely it is misspelt.

    Raises:
        PlanError: names it.
    """
    if not candidates:
        return
    for pattern in (only,) if isinstance(only, str) and only else only:
        met = [each for each in candidates if matches(each.keys, pattern)]
        if not met:
            names = ", ".join(each.name for each in candidates[:6])
            raise PlanError(f"only: found {pattern!r}, which no layer matches, expected one of {names}")
        if all(each.name in reasons for each in met):
            raise PlanError(
                f"only: found {pattern!r}, which no layer to make sparse matches: {met[0].name}: {reasons[met[0].name]}"
            )
    # What is dense in any case, such as an embedding, may be skipped too.
    everything = [name for name, _ in model.named_modules(remove_duplicate=False)]
    everything += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    everything += [key for each in candidates for key in each.keys]
    for pattern in (skip,) if isinstance(skip, str) and skip else skip:
        if not matches(everything, pattern):
            names = ", ".join(each.name for each in candidates[:6])
            raise PlanError(f"skip: found {pattern!r}, which nothing matches, expected one of {names}")


def _refused(module: nn.Module, inside: set[int], owners: Mapping[int, set[int]]) -> str:
    """Why a layer stays as it is; empty: it does not."""
    if id(module) in inside:
        return "an attention module reads its weight"
    if parametrize.is_parametrized(module):
        return "its weight has a parametrization"
    parameters = [p for p in module._parameters.values() if p is not None]
    wrong = next((p for p in parameters if p.dtype is not torch.float32 or p.device.type != "cpu"), None)
    if wrong is not None:
        return f"found {wrong.dtype} on {wrong.device}, expected float32 on the CPU"
    if not all(p.requires_grad for name, p in module.named_parameters(recurse=False) if "weight" in name):
        return "it is frozen"
    if any(len(owners[id(p)]) > 1 for p in parameters):
        return "it shares a parameter with another module"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "it has hooks, which a new module would not have" if any(hooks) else ""


def _checked(found: _Found, mask: Tensor) -> Tensor:
    name = found.name
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
    made = {}
    for name, tree in small.trees.items():
        parts = [part for part in (tree.members if isinstance(tree, Concat) else (tree,)) if isinstance(part, Masked)]
        if parts and len(parts) == (len(tree.members) if isinstance(tree, Concat) else 1):
            made[name] = torch.cat([part.where.mask() for part in parts])
    return made


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
    _warn_if_unfinished(layers)
    # Layers are stood in for while the rest is copied, so that no sparse one is copied only to be thrown away.
    memo: dict[int, Any] = {}
    parts: set[int] = set()
    for module in model.modules():
        kind = next((k for k in KINDS if k.is_sparse(module)), None)
        if kind is not None and id(module) not in parts:
            memo[id(module)] = kind.dense(module)
            parts |= {id(part) for part in module.modules()}
    dense = copy.deepcopy(model, memo)
    by_name = {keys_of(model, name)[-1]: layer for name, layer in layers.items()}
    listed = specs(dense)
    trees: dict[str, Encoding] = {}
    tensors = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    for spec in listed:
        layer_or_none = next((by_name[n] for n in spec.names if n in by_name), None)
        if layer_or_none is None:
            trees[spec.name] = plain_tree(tensors[spec.name].detach().clone(), spec)
        else:
            trees[spec.name] = _tree(layer_or_none, spec.gates, method)
    return Compressed(listed, trees, dense.eval())


def _tree(layer: SparseLayer, gates: int, method: SparseTraining | None) -> Encoding:
    """A weight as an encoding, gate by gate."""
    made, first = [], 0
    values = layer.values.detach()
    for mask in layer.topology.mask().chunk(gates):
        pattern = Mask.of(mask) if method is None else method.parts().structure.pattern(mask)
        live = int(mask.sum())
        made.append(Masked(pattern, Dense(values[first : first + live].clone())))
        first += live
    return made[0] if gates == 1 else Concat(tuple(made))


def _warn_if_unfinished(layers: Mapping[str, SparseLayer]) -> None:
    """Say so if there are more live weights than a method with a schedule of densities was asked to leave."""
    by_method: dict[SparseTraining, list[SparseLayer]] = {}
    for layer in layers.values():
        if isinstance(layer.made_by, SparseTraining):
            by_method.setdefault(layer.made_by, []).append(layer)
    for method, own in by_method.items():
        parts = method.parts()
        if parts.schedule.constant_density and parts.exploration is None:
            continue
        # Of an exploring method, whose backward set is larger, only the forward set is meant to stay.
        share = 1.0 if parts.exploration is None else parts.exploration.forward_share
        asked = 1 - (1 - method.final_sparsity) * share
        found = 1 - sum(layer.topology.live for layer in own) / max(1, sum(layer.topology.size for layer in own))
        if found < asked - _NEAR:
            said = f"found sparsity {found:.3f}, expected the {asked:.3f} of {type(method).__name__}"
            warnings.warn(f"harvest: {said}: its schedule has not ended, or finish() was not called", stacklevel=3)
