"""Which tensors lose a channel together, in any network that can be run: torch-pruning's dependency graph, our units.

Torch-pruning records one forward pass and says which layers' indices depend on each other. From its groups we build
units, the sets of indices that can only die together, add what it leaves out (groups of convolutions and of
normalisations, the gates of recurrent layers), and name every tensor dimension. Nothing outside this file knows it.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from gossamer.methods.shrink.coupling import Coupling, Member
from gossamer.methods.shrink.recurrent import Gates, with_stand_ins
from gossamer.network.attention import attention_parts

__all__ = ["depends", "installed"]

# Sides of a layer whose indices may die.
_OUT, _IN, _NORM = "out", "in", "norm"


def installed() -> bool:
    """Whether torch-pruning is there."""
    return importlib.util.find_spec("torch_pruning") is not None


class _Units:
    """Union-find over (module, side, index)."""

    def __init__(self) -> None:
        self.start: dict[tuple[str, str], int] = {}
        self.parent: list[int] = []
        self.bad: dict[int, str] = {}

    def add(self, name: str, side: str, size: int) -> None:
        if (name, side) not in self.start:
            self.start[name, side] = len(self.parent)
            self.parent.extend(range(len(self.parent), len(self.parent) + size))

    def at(self, name: str, side: str, index: int) -> int:
        return self.start[name, side] + index

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a

    def refuse(self, i: int, why: str) -> None:
        self.bad.setdefault(i, why)


def depends(model: nn.Module, example: Any) -> tuple[tuple[Coupling, ...], dict[str, str]]:
    """Find the channels of a network that can be removed.

    Args:
        model: in eval mode; not changed.
        example: its inputs, a tensor or a tuple.

    Returns:
        Couplings in the order of the network's modules, and per weight that has none the reason; the reason under
        the empty name is that of the whole network. Nothing is tried yet: see `believed`.
    """
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    gates = with_stand_ins(traced)
    try:
        graph = _trace(traced, example)
    except Exception as error:  # torch-pruning and the network's own code raise whatever they raise
        return (), {"": "the network cannot be traced: " + " ".join(f"{type(error).__name__}: {error}".split())[:120]}
    units = _Units()
    layers = _layers(traced)
    for name, layer in layers.items():
        for side, size in _sides(layer).items():
            units.add(name, side, size)
    names = {id(module): name for name, module in traced.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reached = _link(graph, layers, names, units, dict(traced.named_parameters()))
    for name, layer in layers.items():
        _own_links(name, layer, units)
    _leave_to_heads(model, units)
    return _couplings(units, layers, reached, gates)


def _trace(model: nn.Module, example: Any) -> Any:
    import torch_pruning

    arguments = example if isinstance(example, tuple) else (example,)
    with torch.enable_grad(), warnings.catch_warnings(), _SplitsAsSlices():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(
            model, arguments, forward_fn=lambda net, given: net(*given), output_transform=_first_tensor, verbose=False
        )


class _SplitsAsSlices(TorchFunctionMode):
    """Torch-pruning numbers the parts of a split in the order of the backward pass; a slice says itself where it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        if func not in _SPLITS or not args or not isinstance(args[0], Tensor):
            return found
        whole, sizes = args[0], [tuple(part.shape) for part in found]
        dim = next((d for d in range(whole.dim()) if any(s[d] != whole.shape[d] for s in sizes)), 0)
        parts, start = [], 0
        for size in sizes:
            parts.append(whole.narrow(dim, start, size[dim]))
            start += size[dim]
        return tuple(parts)


_SPLITS = (torch.chunk, torch.split, torch.tensor_split, Tensor.chunk, Tensor.split, Tensor.tensor_split)


def _first_tensor(found: Any) -> Any:
    if isinstance(found, dict):
        return [t for t in found.values() if isinstance(t, Tensor) and t.grad_fn is not None]
    return found


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, _ConvNd, _NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _sides(layer: nn.Module) -> dict[str, int]:
    if isinstance(layer, nn.Linear):
        return {_OUT: layer.out_features, _IN: layer.in_features}
    if isinstance(layer, _ConvNd):
        return {_OUT: layer.out_channels, _IN: layer.in_channels}
    if isinstance(layer, nn.Embedding):
        return {_OUT: layer.embedding_dim}
    if isinstance(layer, _NormBase):
        return {_NORM: layer.num_features}
    if isinstance(layer, nn.GroupNorm):
        return {_NORM: layer.num_channels}
    if isinstance(layer, nn.PReLU):
        return {_NORM: layer.num_parameters} if layer.num_parameters > 1 else {}
    shape = cast(Any, layer).normalized_shape
    return {_NORM: shape[0]} if len(shape) == 1 else {}


def _link(
    graph: Any, layers: dict[str, nn.Module], names: dict[int, str], units: _Units, parameters: dict[str, Tensor]
) -> set[str]:
    """Join what torch-pruning says dies together; returns the producers that it reached."""
    import torch_pruning

    kinds = torch_pruning.ops.OPTYPE
    named = {id(p): name for name, p in parameters.items()}
    reached = set()
    for name, layer in layers.items():
        if _OUT not in _sides(layer) or layer not in graph.module2node:
            continue
        reached.add(name)
        for node, handler, pairs in _walk(graph, layer, _sides(layer)[_OUT]):
            other = names.get(id(node.module), "")
            why = ""
            if node.type == kinds.OUTPUT:
                why = "its channels are the outputs of the network"
            elif node.type == kinds.MHA:
                why = f"{other} is an attention of fixed width; Heads removes its heads"
            elif node.type == kinds.PARAMETER:
                why = f"it meets the parameter {named.get(id(node.module), '')!r}, which no layer owns"
            reads = graph.is_in_channel_pruning_fn(handler)
            for i, r in pairs:
                mine = units.at(name, _OUT, r)
                if why:
                    units.refuse(mine, why)
                elif other in layers:
                    _join(units, mine, other, layers[other], i, reads=reads)
    return reached


def _walk(graph: Any, layer: nn.Module, size: int) -> Iterator[tuple[Any, Any, list[tuple[int, int]]]]:
    """Everything that depends on a layer's channels: node, side, and pairs (index there, channel of the layer).

    Torch-pruning's own walk merges what arrives at a node twice by index and forgets the second channel; two channels
    that meet there, such as the halves of a gated unit, must die together.
    """
    from torch_pruning import _helpers

    start = graph.module2node[layer]
    prune = graph.get_pruner_of_module(layer).prune_out_channels
    stack = [(start, prune, [_helpers._HybridIndex(idx=i, root_idx=i) for i in range(size)])]
    visited = set()
    while stack:
        node, handler, pairs = stack.pop()
        key = (id(node), handler, tuple(pairs))
        if key in visited:
            continue
        visited.add(key)
        yield node, handler, [(p.idx, p.root_idx) for p in pairs if p.root_idx is not None]
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(handler):
                continue
            after = pairs
            for mapping in dependency.index_mapping:
                after = after if mapping is None else mapping(after)
            if after:
                stack.append((dependency.target, dependency.handler, after))


def _join(units: _Units, mine: int, other: str, layer: nn.Module, i: int, *, reads: bool) -> None:
    sides = _sides(layer)
    both_ways = isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1  # depthwise: one rule for both
    side = _NORM if _NORM in sides else _IN if reads and _IN in sides and not both_ways else _OUT
    if side not in sides:
        return
    if i >= sides[side]:
        units.refuse(mine, f"{other} has no index {i} that could go with it")
        return
    units.join(mine, units.at(other, side, i))


def _own_links(name: str, layer: nn.Module, units: _Units) -> None:
    """Indices of one layer that its groups tie together."""
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        groups, out, into = layer.groups, layer.out_channels, layer.in_channels
        if isinstance(layer, _ConvTransposeNd):
            for i in range(out):
                units.refuse(units.at(name, _OUT, i), "grouped transposed convolutions are not handled here")
            for i in range(into):
                units.refuse(units.at(name, _IN, i), "it is read by a grouped transposed convolution")
        elif groups == into:  # depthwise: a whole group dies with its one input channel
            for o in range(out):
                units.join(units.at(name, _OUT, o), units.at(name, _IN, o // (out // groups)))
        else:  # as many in every group, at the same places
            for side, size in ((_OUT, out), (_IN, into)):
                for i in range(size):
                    units.join(units.at(name, side, i), units.at(name, side, i % (size // groups)))
    if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:  # whole groups: no statistic changes
        per = layer.num_channels // layer.num_groups
        for i in range(layer.num_channels):
            units.join(units.at(name, _NORM, i), units.at(name, _NORM, i // per * per))


def _leave_to_heads(model: nn.Module, units: _Units) -> None:
    why = "it belongs to an attention; Heads removes its heads"
    for part in attention_parts(model):
        rows = [(owned, _OUT) for owned in part.rows if owned.tensor.endswith(".weight")]
        for owned, side in [*rows, (part.columns, _IN)]:
            name = owned.tensor.rpartition(".")[0]
            for i in range(part.heads * owned.width * owned.blocks if (name, side) in units.start else 0):
                units.refuse(units.at(name, side, i), why)


def _tensors_of(
    name: str, side: str, layer: nn.Module, index: Tensor, gates: dict[str, Gates]
) -> Iterator[tuple[str, int, Tensor]]:
    """Tensor dimensions behind one side of a layer, with the indices [channels, k] that die in each."""
    if name in gates:
        yield from gates[name].tensors(index, reads=side == _IN)
        return
    if side == _IN:
        groups = getattr(layer, "groups", 1)
        inside = cast(Tensor, layer.weight).shape[0 if isinstance(layer, _ConvTransposeNd) else 1]
        if groups == 1:
            yield f"{name}.weight", 1, index
        elif inside > 1:
            yield f"{name}.weight", 1, index[:, : index.shape[1] // groups] % inside
        return
    dim = 1 if isinstance(layer, nn.Embedding) else 0
    held = {**layer._parameters, **layer._buffers}
    for key in ("weight", "bias", "running_mean", "running_var"):
        tensor = held.get(key)
        if tensor is not None and tensor.dim() > dim:
            yield f"{name}.{key}", dim, index


def _couplings(
    units: _Units, layers: dict[str, nn.Module], reached: set[str], gates: dict[str, Gates]
) -> tuple[tuple[Coupling, ...], dict[str, str]]:
    places = [(name, side, i) for (name, side) in units.start for i in range(_sides(layers[name])[side])]
    inside: dict[int, list[tuple[str, str, int]]] = {}
    for atom, place in enumerate(places):
        inside.setdefault(units.root(atom), []).append(place)
    bad = {units.root(atom): why for atom, why in reversed(units.bad.items())}
    alike: dict[tuple[tuple[str, str, int], ...], list[dict[tuple[str, str], list[int]]]] = {}
    reasons: dict[str, str] = {}
    for root, atoms in inside.items():
        held: dict[tuple[str, str], list[int]] = {}
        for name, side, i in atoms:
            held.setdefault((name, side), []).append(i)
        producers = [name for name, side in held if side == _OUT]
        if not producers:
            continue
        why = bad.get(root, "")
        if not why and not any(side == _IN for _, side in held):
            why = "its channels are the outputs of the network, or go where the tracer cannot follow"
        if not why and not all(p in reached for p in producers):
            why = "the example's run does not reach it"
        for p in producers if why else ():
            reasons.setdefault(_weight_of(p, gates), why)
        if not why:
            signature = tuple((name, side, len(indices)) for (name, side), indices in held.items())
            alike.setdefault(signature, []).append(held)
    found = []
    for signature, same in alike.items():
        index = {(name, side): torch.tensor([h[name, side] for h in same]) for name, side, _ in signature}
        members: list[Member] = []
        for (name, side), indices in index.items():
            members += [Member(*t) for t in _tensors_of(name, side, layers[name], indices, gates)]
        made = tuple(_weight_of(name, gates) for name, side, _ in signature if side == _OUT)
        exact = not any(_mixes(layers[name]) for name, _, _ in signature)
        found.append(Coupling(tuple(dict.fromkeys(made)), len(same), tuple(members), exact))
    known = {p for c in found for p in c.producers}
    return tuple(found), {name: why for name, why in reasons.items() if name not in known}


def _weight_of(name: str, gates: dict[str, Gates]) -> str:
    return gates[name].weight if name in gates else f"{name}.weight"


def _mixes(layer: nn.Module) -> bool:
    """Whether the layer takes statistics over the channels that may go."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups == 1
    return isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
