"""Which tensors lose a channel together, in networks that are a chain of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.methods.shrink.coupling import Coupling, Member, run_of
from gossamer.network.trace import traced

__all__ = ["chain"]

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity),
)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_POOLINGS: tuple[Callable[..., Any], ...] = (
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid, F.dropout),
    *(torch.relu, torch.tanh, torch.sigmoid),
    *_POOLINGS,
)
_METHODS = ("relu", "tanh", "sigmoid", "contiguous")
_FLATTENS = (torch.flatten,)


def chain(model: nn.Module) -> tuple[tuple[Coupling, ...], dict[str, str]]:
    """Find the channels of a network that can be removed, following each layer to the single one that reads it.

    Args:
        model: any module; only parts that are a chain of Linear and Conv layers with elementwise functions,
            BatchNorm, pooling and flattening between are found.

    Returns:
        Couplings in execution order, and per weight that has none the reason.
    """
    trace = traced(model)
    if isinstance(trace, str):
        return (), {"": trace}
    found, reasons = [], {}
    for node in trace.graph.nodes:
        layer = trace.layer(node)
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue
        result = _follow(node, layer, trace.modules, trace.calls)
        if isinstance(result, str):
            reasons[f"{node.target}.weight"] = result
        else:
            found.append(result)
    return tuple(found), reasons


def _follow(
    node: fx.Node, layer: nn.Module, modules: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> Coupling | str:
    name = str(node.target)
    if calls[name] > 1:
        return "the layer is used more than once"
    if getattr(layer, "groups", 1) != 1:
        return "grouped convolutions are not handled here"
    channels = cast(int, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
    members = [run_of(f"{name}.weight", 0, channels)]
    if layer.bias is not None:
        members.append(run_of(f"{name}.bias", 0, channels))
    flat = False
    here = node
    while True:
        users = [user for user in here.users if not _asks_size(user)]
        if len(users) != 1:
            return f"its output is read by {len(users)} places, expected one"
        here = users[0]
        if here.op == "output":
            return "its channels are the outputs of the network"
        target = modules.get(str(here.target)) if here.op == "call_module" else None
        if isinstance(target, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            return _join(str(here.target), target, layer, channels, flat, members, calls)
        if isinstance(target, _BatchNorm):
            if target.num_features != channels:
                return f"{here.target} normalises {target.num_features} channels, expected {channels}"
            if calls[str(here.target)] > 1 or flat:
                return "a normalisation is used more than once or after flattening"
            held = {**target._parameters, **target._buffers}
            per_channel = ("weight", "bias", "running_mean", "running_var")
            members += [run_of(f"{here.target}.{k}", 0, channels) for k in per_channel if held.get(k) is not None]
        elif (isinstance(target, nn.Flatten) and target.start_dim == 1 and target.end_dim == -1) or _flattens(here):
            flat = True
        elif isinstance(layer, nn.Linear) and (isinstance(target, _POOLS) or here.target in _POOLINGS):
            return "pooling over its channels comes between it and the next layer"
        elif not (isinstance(target, (*_ELEMENTWISE, *_POOLS)) or _passes(here)):
            what = type(target).__name__ if target is not None else str(here.target)
            return f"{what} comes between it and the next layer"


def _join(
    consumer: str,
    layer: nn.Linear | nn.Conv1d | nn.Conv2d,
    producer: nn.Module,
    channels: int,
    flat: bool,
    members: list[Member],
    calls: Mapping[str, int],
) -> Coupling | str:
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    if calls[consumer] > 1 or getattr(layer, "groups", 1) != 1:
        return f"{consumer}, which reads it, is grouped or used more than once"
    # A Linear layer works on the last dimension, a convolution on the second: only flattening makes them the same.
    if isinstance(layer, nn.Linear) != (flat or isinstance(producer, nn.Linear)):
        return f"{consumer}, which reads it, works on another dimension"
    if inputs % channels or (inputs != channels and (not flat or isinstance(producer, nn.Linear))):
        return f"{consumer}, which reads it, has {inputs} inputs, expected {channels} or, flattened, a multiple"
    reader = run_of(f"{consumer}.weight", 1, channels, inputs // channels)
    return Coupling((members[0].tensor,), channels, (*members, reader))


def _asks_size(node: fx.Node) -> bool:
    """Whether code only looks how large a tensor is, as in ``x.view(x.size(0), -1)``."""
    size = node.op == "call_method" and node.target in ("size", "dim")
    return size or (node.op == "call_function" and node.target is getattr and node.args[1] == "shape")


def _passes(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _flattens(node: fx.Node) -> bool:
    rest = [a for a in node.args[1:] if not isinstance(a, fx.Node)]
    if (node.op == "call_function" and node.target in _FLATTENS) or (
        node.op == "call_method" and node.target == "flatten"
    ):
        return (rest == [1] and not node.kwargs) or (not rest and dict(node.kwargs) == {"start_dim": 1})
    if node.op == "call_method" and node.target in ("view", "reshape"):
        # x.view(batch, -1); with x.view(-1, 400) the code itself would expect the old number of features
        return len(node.args) == 3 and not isinstance(node.args[2], fx.Node) and bool(node.args[2] == -1)
    return False
