"""A network whose sparse convolutions hand on blocks of images, with images along vectors, for large batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gossamer.errors import PlanError
from gossamer.jit.cpu import host, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.network.inspect import owner_of
from gossamer.runtime.candidates import WORTH_TRYING, density_of, is_stem
from gossamer.runtime.conv_layout import hand_on_tiles
from gossamer.runtime.convolution import SparseConv, geometry_of, refusal
from gossamer.runtime.folding import fused_graph
from gossamer.runtime.graph import Either
from gossamer.runtime.group_code import Way
from gossamer.runtime.image_blocks import (
    FromImages,
    ImageBlocks,
    ImageEdges,
    ImageMean,
    ImagePool,
    IntoImages,
    Window,
)
from gossamer.runtime.image_product import ImageProduct, frame_of, image_panel
from gossamer.runtime.kernels import ImageKernels, load
from gossamer.runtime.pooling import PlanePool
from gossamer.runtime.threads import openmp

__all__ = ["AlongImages", "ByBatch", "ImageConv", "along_images", "images_of"]

_FILLED = 0.5
"""Share of the lanes that images must fill for this layout to be tried."""


def images_of(arguments: tuple[Any, ...]) -> int:
    """How many images a network is given: what the first planes among its arguments hold, else 0."""
    return next((a.shape[0] for a in arguments if isinstance(a, Tensor) and a.ndim == 4), 0)


@final
class ImageConv(nn.Module):
    """A sparse convolution from blocks of images to blocks of images.

    Args:
        product: computes it.
        frame: that layers need which read the outputs.
    """

    def __init__(self, product: ImageProduct, frame: int) -> None:
        super().__init__()
        self.product, self.frame = product, frame

    def forward(self, x: ImageBlocks, residual: ImageBlocks | None = None) -> ImageBlocks:
        """Blocks of the layer's inputs → blocks of its outputs.

        Raises:
            RuntimeError: shapes do not fit.
        """
        planes = self.product.planes
        size = planes.geometry.outputs(x.size)
        fits = x.channels == planes.channels and min(size) > 0 and x.frame >= frame_of(planes.geometry, x.size)
        if residual is not None:
            found = (residual.images, residual.channels, residual.size)
            fits = fits and found == (x.images, planes.rows, size)
        if not fits:
            found_planes = f"found {x.images} images of {x.channels} planes of {x.size} in a frame of {x.frame}"
            raise RuntimeError(f"ImageConv: {found_planes}, expected what fits {planes.geometry}")
        return self.product(x, residual, self.frame)


@final
class ByBatch(nn.Module):
    """Two forms of one network: for batches that fill blocks of images, and for all others.

    Args:
        images: the form with images along vectors.
        planes: the form for other batches and sizes.
        arguments: examples; images of other sizes go to ``planes``.
        lanes: images per block.
        worth: how many images take as long by planes as a block does.
    """

    def __init__(
        self, images: nn.Module, planes: nn.Module, arguments: tuple[Any, ...], lanes: int, worth: float
    ) -> None:
        super().__init__()
        self.images, self.planes = images, planes
        self.lanes, self.worth = lanes, worth
        self._shapes = _shapes_of(arguments)

    def forward(self, *inputs: Any) -> Any:
        """What either computes."""
        count = images_of(inputs)
        fits = count and _shapes_of(inputs) == self._shapes and -(-count // self.lanes) * self.worth <= count
        return (self.images if fits else self.planes)(*inputs)


def _shapes_of(arguments: tuple[Any, ...]) -> tuple[tuple[int, ...] | None, ...]:
    return tuple(tuple(a.shape[1:]) if isinstance(a, Tensor) else None for a in arguments)


@final
@dataclass(frozen=True, eq=False)
class AlongImages:
    """A network in this layout.

    Args:
        network: layer by layer, with weights that all forms share.
        images: captured, with images along vectors.
        planes: captured, for other batches.
        layers: names of the convolutions that work on blocks of images.
        lanes: images per block.
    """

    network: nn.Module
    images: nn.Module
    planes: nn.Module
    layers: tuple[str, ...]
    lanes: int

    def bytes_of(self, name: str) -> int:
        """Bytes held for the weight of a layer."""
        layer = self.network.get_submodule(name)
        assert isinstance(layer, SparseConv)
        return layer.resident_bytes


def along_images(
    network: nn.Module, arguments: tuple[Any, ...], layers: Mapping[str, tuple[nn.Module, tuple[int, ...]]]
) -> AlongImages | None:
    """The network with images along vectors where its convolutions allow it.

    Args:
        network: in eval mode, some of its convolutions replaced by `SparseConv`. Is changed.
        arguments: example inputs.
        layers: dense convolutions by their names, and the shapes of their inputs.

    Returns:
        The forms; None if there are too few images, or no convolution can work on blocks of them.
    """
    processor = host(wanted_level())
    lanes = processor.lanes
    if images_of(arguments) < _FILLED * lanes:
        return None
    replaced = tuple(_replaced(network, layers, lanes))
    found = fused_graph(network, arguments) if replaced else None
    if found is None:
        return None
    planes, images = found.copy(), found.copy()
    hand_on_tiles(planes.traced, planes.shapes, planes.memory)
    kernels = load(ImageKernels, processor, cache_directory())
    count = _Rewriting(images.traced, images.shapes, ImageEdges(kernels, openmp(), images.memory)).run()
    if not count:
        return None
    forms = []
    for form in (images, planes):
        form.traced.graph.lint()
        made = fx.GraphModule(form.traced, form.traced.graph)
        made.delete_all_unused_submodules()
        forms.append(Either(made.eval(), network, arguments))
    return AlongImages(network, forms[0], forms[1], replaced, lanes)


def _replaced(network: nn.Module, layers: Mapping[str, tuple[nn.Module, tuple[int, ...]]], lanes: int) -> Iterator[str]:
    """Packs weights for this layout, stems among them; yields names."""
    for name, (layer, shape) in layers.items():
        if type(layer) is not nn.Conv2d or layer.weight.dtype is not torch.float32 or len(shape) != 4:
            continue
        now, density = network.get_submodule(name), density_of(layer)
        wanted = isinstance(now, SparseConv) or (density < WORTH_TRYING or is_stem(layer))
        geometry = geometry_of(layer)
        if not wanted or isinstance(geometry, str) or refusal(layer, shape[2:], density):
            continue
        try:
            rows, channels = (n // layer.groups for n in (layer.out_channels, layer.in_channels))
            panel = image_panel(rows, channels, geometry, density, lanes)
            made = SparseConv(layer, Way.SLICED, shape[2:], panel=panel)
        except PlanError:
            continue
        owner, key = owner_of(name)
        setattr(network.get_submodule(owner), key, made)
        yield name


@final
class _Rewriting:
    def __init__(self, traced: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]], edges: ImageEdges) -> None:
        self.traced, self.graph, self.shapes, self.edges = traced, traced.graph, shapes, edges
        self.modules = dict(traced.named_modules())
        self.products: dict[fx.Node, ImageProduct] = {}
        self.windows: dict[fx.Node, Window] = {}
        self.means: dict[fx.Node, bool] = {}
        self.blocks: dict[fx.Node, fx.Node] = {}  # a value → the node that holds it as blocks
        self.planes: dict[fx.Node, fx.Node] = {}  # a value that only blocks hold → the node that holds its planes

    def run(self) -> int:
        """Rewrites the graph; returns how many convolutions work on blocks."""
        self._find()
        inside = {*self.products, *self.windows}
        for node in list(self.graph.nodes):
            if node in inside or node in self.means:
                self._rewrite(node)
            else:
                for value in node.all_input_nodes:
                    if value in inside:
                        node.replace_input_with(value, self._as_planes(value, node))
        for node in reversed(list(self.graph.nodes)):
            if node in inside or (node in self.means and not node.users):
                self.graph.erase_node(node)
        return len(self.products)

    def _find(self) -> None:
        for node in self.graph.nodes:
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            read = [len(self.shapes.get(value, ())) == 4 for value in node.all_input_nodes]
            if not read or not all(read) or node not in self.shapes:
                continue
            source = node.all_input_nodes[0]
            inside = source in self.products or source in self.windows
            if isinstance(module, SparseConv) and not node.kwargs and len(self.shapes[node]) == 4:
                self._find_product(node, module)
            elif isinstance(module, PlanePool) and inside:
                pooling = module.pooling
                self.windows[node] = Window(pooling.kernel, (pooling.stride, pooling.stride), pooling.padding)
            elif inside and (keep := _keeps_planes(node, module)) is not None:
                self.means[node] = keep

    def _find_product(self, node: fx.Node, layer: SparseConv) -> None:
        value = node.args[0]
        assert isinstance(value, fx.Node)
        try:
            product = ImageProduct(layer.product, self.edges.kernels, openmp(), self.edges.memory)
        except PlanError:
            return
        shape = self.shapes[value]
        if product.reaches((shape[2], shape[3]), shape[1]):
            self.products[node] = product

    def _frame(self, value: fx.Node) -> int:
        """What layers need that read a value."""
        shape = self.shapes[value]
        size = (shape[2], shape[3])
        readers = [self.products[user] for user in value.users if user in self.products and user.args[0] is value]
        return max((frame_of(product.planes.geometry, size) for product in readers), default=0)

    def _rewrite(self, node: fx.Node) -> None:
        module: nn.Module
        with self.graph.inserting_before(node):
            arguments = tuple(self._as_blocks(value) for value in node.args if isinstance(value, fx.Node))
            if node in self.means:
                module, arguments = ImageMean(self.edges, keep=self.means[node]), arguments[:1]
            elif node in self.windows:
                module = ImagePool(self.edges, self.windows[node], self._frame(node))
            else:
                module = ImageConv(self.products[node], self._frame(node))
            made = self._call(node, module, arguments)
        if node in self.means:
            node.replace_all_uses_with(made)
        else:
            self.blocks[node] = made

    def _as_blocks(self, value: fx.Node) -> fx.Node:
        if value not in self.blocks:
            self.blocks[value] = self._call(value, IntoImages(self.edges, self._frame(value)), (value,))
        return self.blocks[value]

    def _as_planes(self, value: fx.Node, before: fx.Node) -> fx.Node:
        if value not in self.planes:
            with self.graph.inserting_before(before):
                self.planes[value] = self._call(value, FromImages(self.edges), (self.blocks[value],))
        return self.planes[value]

    def _call(self, node: fx.Node, module: nn.Module, arguments: tuple[fx.Node, ...]) -> fx.Node:
        name = f"{type(module).__name__.lower()}_{node.name}"
        self.traced.add_submodule(name, module)
        return self.graph.call_module(name, arguments)


def _keeps_planes(node: fx.Node, module: nn.Module | None) -> bool | None:
    """Whether a mean over whole planes keeps their two dimensions; None if a node is no such mean."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return True if module.output_size in (1, (1, 1)) else None
    if node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return True if size in (1, (1, 1), [1, 1]) else None
    if node.target in (torch.mean, "mean") and set(node.kwargs) <= {"dim", "keepdim"}:
        rest = [*node.args[1:]]
        over = rest[0] if rest else node.kwargs.get("dim")
        keep = rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False)
        whole = isinstance(over, (tuple, list)) and sorted(int(cast(int, d)) % 4 for d in over) == [2, 3]
        return bool(keep) if whole and isinstance(keep, bool) else None
    return None
