"""BatchNorm folded into the convolution before it, and sums and activations done at its store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import fx, nn

from gossamer.jit.cpu import Processor
from gossamer.network.inspect import owner_of
from gossamer.runtime.conv_layout import hand_on_tiles
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.depthwise import PlaneDepthwise
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.graph import Either, activation_of, adds, captured, drop_identities
from gossamer.runtime.pooling import PlanePool
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import openmp

__all__ = ["FusedGraph", "fold_norms", "fuse_convolutions", "fused_graph"]


def fold_norms(network: nn.Module, arguments: tuple[Any, ...], skip: frozenset[str]) -> tuple[str, ...]:
    """Folds every BatchNorm that alone reads a convolution into its weight and bias, in place.

    Args:
        network: in eval mode; is changed.
        arguments: example inputs.
        skip: names of convolutions to leave as they are.

    Returns:
        Names of the convolutions that were changed; none if the network cannot be traced.
    """
    found = captured(network, arguments)
    if found is None:
        return ()
    traced, _ = found
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    held = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    objects = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
    read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    folded = []
    for node in traced.graph.nodes:
        name = str(node.target)
        layer = modules.get(name) if node.op == "call_module" else None
        if type(layer) not in (nn.Conv1d, nn.Conv2d) or len(node.users) != 1 or name in skip:
            continue
        layer = cast("nn.Conv1d | nn.Conv2d", layer)
        (user,) = node.users
        norm = modules.get(str(user.target)) if user.op == "call_module" else None
        if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or norm is None or norm.training:
            continue
        norm = cast("nn.BatchNorm1d | nn.BatchNorm2d", norm)
        alone = all(calls[str(n.target)] == 1 for n in (node, user)) and all(objects[id(m)] == 1 for m in (layer, norm))
        tied = any(held[id(p)] > 1 for p in layer.parameters(recurse=False))
        if (
            norm.running_mean is None
            or norm.running_var is None
            or not alone
            or tied
            or not read.isdisjoint({f"{name}.weight", f"{name}.bias"})
        ):
            continue
        _fold(layer, norm)
        owner, key = owner_of(str(user.target))
        setattr(network.get_submodule(owner), key, nn.Identity())
        folded.append(name)
    return tuple(folded)


@torch.no_grad()
def _fold(layer: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)


def fuse_convolutions(network: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    """The network captured, with sums and activations that follow sparse convolutions done at their store.

    Args:
        network: in eval mode, some of its convolutions replaced by `SparseConv`. Not changed.
        arguments: example inputs.

    Returns:
        The captured network, or the given one if it cannot be captured.
    """
    found = fused_graph(network, arguments)
    if found is None:
        return network
    hand_on_tiles(found.traced, found.shapes, found.memory)
    found.traced.graph.lint()
    return Either(fx.GraphModule(found.traced, found.traced.graph).eval(), network, arguments)


@final
@dataclass(frozen=True, eq=False)
class FusedGraph:
    """A captured network in which sums and activations after sparse convolutions happen at their store.

    Args:
        traced: the network.
        shapes: of the float32 tensors in it.
        memory: for outputs of its layers.
    """

    traced: fx.GraphModule
    shapes: Mapping[fx.Node, tuple[int, ...]]
    memory: Slabs

    def copy(self) -> FusedGraph:
        """Another graph of the same modules and memory."""
        graph, known = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(self.traced.graph, known))
        shapes = {known[node]: shape for node, shape in self.shapes.items() if node in known}
        return FusedGraph(fx.GraphModule(self.traced, graph), shapes, self.memory)


def fused_graph(network: nn.Module, arguments: tuple[Any, ...]) -> FusedGraph | None:
    """The network captured, with what follows sparse convolutions done at their store; None if it cannot be captured.

    Args:
        network: in eval mode, some of its convolutions replaced by `SparseConv`. Not changed.
        arguments: example inputs.
    """
    found = captured(network, arguments)
    if found is None:
        return None
    traced, known = found
    shapes = dict(known)
    graph, modules = traced.graph, dict(traced.named_modules())
    drop_identities(graph, modules)
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory = Slabs()
    sparse = [m for m in modules.values() if isinstance(m, SparseConv)]
    for node in list(graph.nodes):
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, SparseConv) or len(node.args) != 1:
            continue
        last, residual, activation = node, None, None
        user = _only_user(last)
        if user is not None and adds(user) and len(user.args) == 2 and not user.kwargs:
            other = user.args[1] if user.args[0] is last else user.args[0]
            same = isinstance(other, fx.Node) and shapes.get(other) == shapes.get(last, ())
            if isinstance(other, fx.Node) and other is not last and same:
                last, residual = user, other
                user = _only_user(last)
        if user is not None and layer.product.activation is Activation.NONE:
            activation = activation_of(user, modules)
            last = user if activation is not None else last
        assert order[node] <= order[last]
        fused = layer.within(layer.product.activation if activation is None else activation, memory)
        name = f"fused_{node.name}"
        traced.add_submodule(name, fused)
        with graph.inserting_before(last):
            made = graph.call_module(name, (node.args[0],) if residual is None else (node.args[0], residual))
        last.replace_all_uses_with(made)
        if last in shapes:
            shapes[made] = shapes[last]
        while last is not node:  # from the end: each is read by the next only
            before = last.args[0] if last.args[0] is not residual else last.args[1]
            graph.erase_node(last)
            assert isinstance(before, fx.Node)
            last = before
        graph.erase_node(node)
    modules = dict(traced.named_modules())
    for node in list(graph.nodes):
        pool = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(pool) is nn.MaxPool2d and sparse and not node.kwargs:
            before = _rectifier_of(node, modules)
            planes = PlanePool.of(pool, sparse[0].product.kernels, openmp(), memory, rectified=before is not None)
            if planes is not None:
                node.target = f"planes_{node.name}"
                traced.add_submodule(node.target, planes)
                if before is not None:
                    node.args = before.args
                    graph.erase_node(before)
        elif sparse and pool is not None and PlaneDepthwise.takes(pool) and len(node.args) == 1 and not node.kwargs:
            _fuse_depthwise(traced, node, modules, sparse[0].product.kernels.processor, memory)
    graph.lint()
    traced.recompile()
    return FusedGraph(traced, shapes, memory)


def _fuse_depthwise(
    traced: fx.GraphModule, node: fx.Node, modules: Mapping[str, nn.Module], processor: Processor, memory: Slabs
) -> None:
    """A depthwise convolution, and the activation that alone reads it, become one node."""
    layer = cast(nn.Conv2d, modules[str(node.target)])
    user = _only_user(node)
    activation = None if user is None else activation_of(user, modules)
    name = f"depthwise_{node.name}"
    traced.add_submodule(name, PlaneDepthwise.of(layer, activation or Activation.NONE, processor, openmp(), memory))
    node.target = name
    if user is not None and activation is not None:
        user.replace_all_uses_with(node)
        traced.graph.erase_node(user)


def _rectifier_of(pool: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The ReLU whose result a pooling alone reads, if that is what it reads."""
    value = pool.args[0] if len(pool.args) == 1 else None
    if not isinstance(value, fx.Node) or _only_user(value) is not pool or value.kwargs:
        return None
    return value if activation_of(value, modules) is Activation.RELU else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
