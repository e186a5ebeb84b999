"""The entry points of compiled kernels, one set per module of LLVM IR."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar, TypeVar, cast, final

from gossamer.jit import emit
from gossamer.jit.cpu import Processor
from gossamer.jit.kernel_cache import Code, Engine, object_code_of
from gossamer.runtime import (
    attention_code,
    bitmap_code,
    brain,
    cell_code,
    choice_code,
    choice_moves_code,
    codegen,
    conv_code,
    conv_edge,
    depthwise_code,
    dot_code,
    epilogue,
    gate_code,
    group_code,
    image_code,
    image_edge_code,
    layout,
    live_code,
    live_conv_code,
    live_dense_code,
    live_layout,
    live_places,
    live_planes_code,
    live_rounded_code,
    matching_code,
    pack_code,
    pack_parts,
    pack_patterns,
    pairing_code,
    pool_code,
    tile_code,
    value_code,
    vector_code,
    vector_fields,
    vector_packing,
    vector_values,
)
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.group_code import Way

__all__ = [
    "ATTENTION",
    "CELLS",
    "CHOICE",
    "CONVOLUTIONS",
    "DEPTHWISE",
    "GATES",
    "IMAGES",
    "LIVE",
    "LIVE_CONVOLUTIONS",
    "PACKERS",
    "ROUNDED",
    "ROWS",
    "TILES",
    "VECTORS",
    "AttentionKernels",
    "CellKernels",
    "ChoiceKernels",
    "ConvolutionKernels",
    "DepthwiseKernels",
    "GateKernels",
    "ImageKernels",
    "KernelSet",
    "LiveConvolutionKernels",
    "LiveKernels",
    "PackKernels",
    "RoundedKernels",
    "RowKernels",
    "TileKernels",
    "VectorKernels",
    "load",
]

ROWS = Code("rows", codegen.kernels, (codegen, brain, emit, layout))
"""Products for activations as PyTorch lays them out."""

TILES = Code("tiles", tile_code.tile_kernels, (tile_code, group_code, value_code, epilogue, brain, emit, layout))
"""Products and other layers for feature-major tiles."""

CONVOLUTIONS = Code(
    "convolutions",
    conv_code.convolution_kernels,
    (conv_code, conv_edge, pool_code, group_code, value_code, epilogue, brain, emit, layout),
)
"""Convolutions over planes, and pooling."""

IMAGES = Code(
    "images",
    image_code.image_kernels,
    (image_code, image_edge_code, conv_edge, pool_code, group_code, value_code, epilogue, brain, emit, layout),
)
"""Convolutions over blocks of images along vectors, and what surrounds them."""

DEPTHWISE = Code(
    "depthwise", depthwise_code.depthwise_kernels, (depthwise_code, conv_edge, epilogue, brain, emit, layout)
)
"""Depthwise convolutions over planes."""

PACKERS = Code(
    "packers",
    pack_code.pack_kernels,
    (pack_code, pack_parts, pack_patterns, matching_code, pairing_code, group_code, emit),
    vectorise=False,
)
"""What brings weights into the orders of the other kernels."""

GATES = Code("gates", gate_code.gate_kernels, (gate_code, epilogue, brain, emit, layout))
"""Steps of recurrent layers."""

CELLS = Code("cells", cell_code.cell_kernels, (cell_code, epilogue, brain, emit, layout))
"""The same in training, forward and back."""

VECTORS = Code(
    "vectors",
    vector_code.vector_kernels,
    (vector_code, bitmap_code, vector_fields, vector_packing, vector_values, epilogue, brain, emit, layout),
)
"""Products with one or a few vectors."""

LIVE = Code(
    "live",
    live_code.live_kernels,
    (
        live_code,
        dot_code,
        choice_code,
        choice_moves_code,
        live_dense_code,
        live_layout,
        live_places,
        brain,
        emit,
        layout,
    ),
    vectorise=False,
)
"""Products and gradients of layers that train with live weights only."""

LIVE_CONVOLUTIONS = Code(
    "live_convolutions",
    live_conv_code.live_conv_kernels,
    (live_conv_code, live_planes_code, dot_code, brain, emit, layout),
    vectorise=False,
)
"""The same for convolutions."""

ATTENTION = Code("attention", attention_code.attention_kernels, (attention_code, epilogue, brain, emit, layout))
"""Softmax attention over feature-major tiles."""

CHOICE = Code(
    "choice", choice_code.choice_kernels, (choice_code, choice_moves_code, brain, emit, layout), vectorise=False
)
"""Choices among many numbers, and merging of positions."""


ROUNDED = Code(
    "rounded",
    live_rounded_code.rounded_kernels,
    (live_rounded_code, live_dense_code, choice_code, choice_moves_code, brain, emit, layout),
    vectorise=False,
)
"""The dense gradient of a weight from bfloat16."""


class KernelSet(CompiledProduct):
    """Entry points of one compiled module, which live as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    code: ClassVar[Code]

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor


@final
class RowKernels(KernelSet):
    """The entry points of `ROWS`."""

    code: ClassVar[Code] = ROWS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.layer = self._engine.function("layer", 8)
        self.tiles = self._engine.function("tiles", 6)


@final
class TileKernels(KernelSet):
    """The entry points of `TILES`."""

    code: ClassVar[Code] = TILES

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.multiply = self._engine.function("multiply", 7)
        self.pack = self._engine.function("pack", 8)
        self.unpack = self._engine.function("unpack", 8)
        self.pack_brain = self._engine.function("pack_brain", 8)
        self.unpack_brain = self._engine.function("unpack_brain", 8)
        self.normalise = self._engine.function("normalise", 10)
        self.combine = self._engine.function("combine", 7)


@final
class ConvolutionKernels(KernelSet):
    """The entry points of `CONVOLUTIONS`."""

    code: ClassVar[Code] = CONVOLUTIONS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.convolve = self._engine.function("convolve", 7)
        self.pool = self._engine.function("pool", 6)
        self.pick = self._engine.function("pick", 5)


@final
class ImageKernels(KernelSet):
    """The entry points of `IMAGES`."""

    code: ClassVar[Code] = IMAGES

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.convolve = self._engine.function("convolve", 7)
        self.from_planes = self._engine.function("from_planes", 5)
        self.to_planes = self._engine.function("to_planes", 5)
        self.pool = self._engine.function("pool", 5)
        self.mean = self._engine.function("mean", 5)


@final
class DepthwiseKernels(KernelSet):
    """The entry points of `DEPTHWISE`."""

    code: ClassVar[Code] = DEPTHWISE

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.depthwise = self._engine.function("depthwise", 6)


@final
class GateKernels(KernelSet):
    """The entry points of `GATES`."""

    code: ClassVar[Code] = GATES

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.lstm = self._engine.function("lstm", 10)
        self.gru = self._engine.function("gru", 10)


@final
class CellKernels(KernelSet):
    """The entry points of `CELLS`."""

    code: ClassVar[Code] = CELLS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        forward, backward = cell_code.FORWARD_WORDS + 2, cell_code.BACKWARD_WORDS + 2
        self.forward = {name: self._engine.function(f"{name}_forward", forward) for name in ("lstm", "gru")}
        self.backward = {name: self._engine.function(f"{name}_backward", backward) for name in ("lstm", "gru")}


@final
class PackKernels(KernelSet):
    """The entry points of `PACKERS`."""

    code: ClassVar[Code] = PACKERS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.count = self._engine.function("count", 5)
        self.sort = self._engine.function("sort", 10)
        self.match_rows = self._engine.function("match_rows", 9)
        self.match_pairs = self._engine.function("match_pairs", 9)
        self.deal_pairings = self._engine.function("deal_pairings", 10)
        self.count_patterns = self._engine.function("count_patterns", 6)
        self.rows = self._engine.function("rows", 7)
        self.fill = {
            (way, narrow): self._engine.function(f"{way.name.lower()}_{8 if narrow else 16}", arguments)
            for way, arguments in {Way.SLICED: 13, Way.PAIRS: 13, Way.PAIRINGS: 13, Way.PATTERNS: 8}.items()
            for narrow in (True, False)
        }


@final
class VectorKernels(KernelSet):
    """The entry points of `VECTORS`."""

    code: ClassVar[Code] = VECTORS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.most_tokens = vector_code.most_tokens(processor.lanes)
        self.by_index = self._engine.function("by_index", 7)
        self.by_index_once = self._engine.function("by_index_once", 3)
        bitmaps = processor.lanes == 16
        self.by_bitmap = self._engine.function("by_bitmap", 7) if bitmaps else None
        self.by_bitmap_once = self._engine.function("by_bitmap_once", 3) if bitmaps else None


@final
class AttentionKernels(KernelSet):
    """The entry points of `ATTENTION`."""

    code: ClassVar[Code] = ATTENTION

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.attend = self._engine.function("attend", 8)


@final
class LiveKernels(KernelSet):
    """The entry points of `LIVE`."""

    code: ClassVar[Code] = LIVE

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.most_vectors = live_code.most_vectors(processor.lanes)
        self.multiply = self._engine.function("multiply", 8)
        self.weigh = self._engine.function("weigh", 9)
        self.weigh_all = self._engine.function("weigh_all", 9)
        self.dead_above = self._engine.function("dead_above", 14)
        self.gather = self._engine.function("gather", 4)
        self.pack = self._engine.function("pack", 8)
        self.unpack = self._engine.function("unpack", 8)
        self.count_places = self._engine.function("count_places", 10)
        self.order_segments = self._engine.function("order_segments", 13)
        self.fill_places = self._engine.function("fill_places", 14)
        self.gather_transposed = self._engine.function("gather_transposed", 4)


@final
class LiveConvolutionKernels(KernelSet):
    """The entry points of `LIVE_CONVOLUTIONS`."""

    code: ClassVar[Code] = LIVE_CONVOLUTIONS

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.multiply = self._engine.function("multiply", 7)
        self.weigh = self._engine.function("weigh", 6)
        self.pack = self._engine.function("pack", 7)
        self.unpack = self._engine.function("unpack", 7)
        self.pack_last = self._engine.function("pack_last", 7)
        self.unpack_last = self._engine.function("unpack_last", 7)


@final
class RoundedKernels(KernelSet):
    """The entry points of `ROUNDED`."""

    code: ClassVar[Code] = ROUNDED

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.weigh_all = self._engine.function("weigh_all", 9)
        self.dead_above = self._engine.function("dead_above", 14)
        self.pair_panels = self._engine.function("pair_panels", 6)


@final
class ChoiceKernels(KernelSet):
    """The entry points of `CHOICE`."""

    code: ClassVar[Code] = CHOICE

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        super().__init__(object_code, processor)
        self.above = self._engine.function("above", 10)
        self.best_of_rows = self._engine.function("best_of_rows", 13)
        self.best_of_groups = self._engine.function("best_of_groups", 7)
        self.blank = self._engine.function("blank", 5)
        self.merge = self._engine.function("merge", 7)
        self.follow = self._engine.function("follow", 8)
        self.carry = self._engine.function("carry", 7)
        self.rejoin = self._engine.function("rejoin", 11)
        self.edges = self._engine.function("edges", 5)


Kind = TypeVar("Kind", bound=KernelSet)


def load(kind: type[Kind], processor: Processor, directory: Path | None) -> Kind:
    """A set of kernels: from memory, else from disk, else compiled now and written to disk.

    Args:
        kind: which.
        processor: must be able to run here.
        directory: of compiled kernels, made if missing; None keeps them in memory only.

    Returns:
        The same object whenever asked again.

    Cost: 0.2–3 s for compilation, some milliseconds from disk.
    """
    found = _load(kind, processor, directory)  # type: ignore[arg-type]  # mypy asks instances for the hash of a class
    return cast(Kind, found)


@cache
def _load(kind: type[KernelSet], processor: Processor, directory: Path | None) -> KernelSet:
    return kind(object_code_of(kind.code, processor, directory), processor)
