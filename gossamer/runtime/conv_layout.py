"""Which sparse convolutions of a captured network hand on blocks of positions rather than planes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import final

import torch
from torch import Tensor, fx, nn

from gossamer.runtime.conv_tiles import FromTiles, IntoTiles, PlaneTiles, planes_as_blocks
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.depthwise import PlaneDepthwise, TiledDepthwise
from gossamer.runtime.pooling import PlanePool, TiledPool
from gossamer.runtime.slabs import Slabs

__all__ = ["TiledConv", "hand_on_tiles"]

_GAIN = 0.3  # of a convolution on blocks, as a share of the time it takes to convert what it reads and writes


@final
class TiledConv(nn.Module):
    """A sparse convolution from blocks to blocks.

    Args:
        layer: of two dimensions.

    Attributes:
        into: whether the result takes the memory of the residual, which nobody reads afterwards.
    """

    def __init__(self, layer: SparseConv) -> None:
        super().__init__()
        self.layer = layer
        self.into = False

    def forward(self, x: PlaneTiles | Tensor, residual: PlaneTiles | None = None) -> PlaneTiles:
        """Blocks of the layer's inputs, or float32 [N, C, rows, columns], → blocks of its outputs.

        Raises:
            RuntimeError: shapes do not fit.
        """
        product = self.layer.product
        if isinstance(x, Tensor):
            if x.dtype is not torch.float32 or not x.is_cpu or x.ndim not in (3, 4) or product.geometry.pointwise:
                found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
                expected = f"[N, {product.channels}, rows, columns] torch.float32 on cpu, and no pointwise layer"
                raise RuntimeError(f"TiledConv: {found}, expected {expected}")
            x = planes_as_blocks(x)
        size = product.geometry.outputs(x.size)
        fits = x.data.shape[1] == product.channels and min(*size, *x.size) > 0 and x.images > 0
        if residual is not None:
            fits = fits and residual.data.shape[1] == product.rows and residual.size == size
            fits = fits and residual.images == x.images
        if not fits:
            found = f"found {x.images} images of {x.data.shape[1]} planes of {x.size}"
            found += (
                "" if residual is None else f" and a residual of {residual.data.shape[1]} planes of {residual.size}"
            )
            raise RuntimeError(f"TiledConv: {found}, expected what fits {self.layer}")
        if torch.is_grad_enabled() and x.data.requires_grad:
            raise RuntimeError("TiledConv: found an input that requires a gradient, expected inference")
        return product.tiled(x, residual, into=self.into)


def hand_on_tiles(traced: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]], memory: Slabs) -> int:
    """Lets sparse convolutions work on blocks where that saves more than the conversions around them take.

    Args:
        traced: is changed.
        shapes: of the float32 tensors in it.
        memory: for what is converted.

    Returns:
        How many convolutions work on blocks.
    """
    lanes = 1
    graph, modules = traced.graph, dict(traced.named_modules())
    tiled: dict[fx.Node, SparseConv | PlanePool | PlaneDepthwise] = {}
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        planes = all(len(shapes.get(n, ())) == 4 for n in (node, *node.all_input_nodes)) and not node.kwargs
        if isinstance(layer, (PlanePool, PlaneDepthwise)) and planes:
            tiled[node] = layer
        if isinstance(layer, SparseConv) and layer.dimensions == 2 and planes:
            tiled[node] = layer
            lanes = layer.product.kernels.processor.lanes
    while worst := _worst(tiled, shapes):
        del tiled[worst]
    converted: dict[tuple[fx.Node, bool], fx.Node] = {}
    for node in list(graph.nodes):
        inside = node in tiled
        for value in node.all_input_nodes:
            if (value in tiled) == inside or (inside and _reads_planes(tiled[node], node, value)):
                continue
            found = converted.get((value, inside))
            if found is None:
                name = f"{'into' if inside else 'from'}_tiles_{value.name}"
                traced.add_submodule(name, IntoTiles(lanes, memory) if inside else FromTiles(memory))
                with graph.inserting_before(node):
                    found = converted[value, inside] = graph.call_module(name, (value,))
            node.replace_input_with(value, found)
        if inside:
            name = f"tiled_{node.name}"
            traced.add_submodule(name, _on_tiles(tiled[node]))
            node.target = name
    modules = dict(traced.named_modules())
    read_last = {value: node for node in graph.nodes for value in node.all_input_nodes}
    for node in tiled:
        layer = modules[str(node.target)]
        if isinstance(layer, TiledConv) and len(node.args) == 2:
            residual = node.args[1]
            assert isinstance(residual, fx.Node)
            layer.into = residual in tiled and read_last[residual] is node and node.args[0] is not residual
    return len(tiled)


def _on_tiles(layer: SparseConv | PlanePool | PlaneDepthwise) -> nn.Module:
    if isinstance(layer, PlanePool):
        return TiledPool(layer)
    return TiledDepthwise(layer) if isinstance(layer, PlaneDepthwise) else TiledConv(layer)


def _reads_planes(layer: nn.Module, node: fx.Node, value: fx.Node) -> bool:
    """Whether a layer on blocks takes a value as planes, for it copies what it reads anyway."""
    able = isinstance(layer, PlanePool) or (isinstance(layer, SparseConv) and not layer.product.geometry.pointwise)
    return able and node.args[0] is value and value not in node.args[1:]


def _worst(tiled: Mapping[fx.Node, nn.Module], shapes: Mapping[fx.Node, tuple[int, ...]]) -> fx.Node | None:
    """The convolution that costs most on blocks, compared with planes; None if all of them gain."""
    losses = {node: _cost(node, True, tiled, shapes) - _cost(node, False, tiled, shapes) for node in tiled}
    worst = max(losses, key=lambda node: losses[node], default=None)
    return worst if worst is not None and losses[worst] > 0 else None


def _cost(
    node: fx.Node, inside: bool, tiled: Mapping[fx.Node, nn.Module], shapes: Mapping[fx.Node, tuple[int, ...]]
) -> float:
    """Numbers that are converted around a node, were it on blocks or not; less what blocks gain."""

    def on_blocks(other: fx.Node) -> bool:
        return inside if other is node else other in tiled

    total = 0.0
    values = (*node.all_input_nodes, node)
    for value in values:
        for user in value.users:
            free = on_blocks(user) and user in tiled and _reads_planes(tiled[user], user, value)
            if on_blocks(user) != on_blocks(value) and not free:
                total += prod(shapes.get(value, ()))
                break
    return total - _GAIN * inside * sum(prod(shapes.get(value, ())) for value in values)
