"""What could run a layer: the dense one, a sparse kernel, and the small operators of a factorized weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.runtime.convolution import SparseConv, refusal
from gossamer.runtime.group_code import Way
from gossamer.runtime.grouped import panel_width
from gossamer.runtime.linear import SparseLinear
from gossamer.runtime.operators import name_of, operator_of
from gossamer.runtime.tiled import GroupedLinear, TiledLinear, tiler
from gossamer.runtime.value_code import Stored
from gossamer.runtime.value_forms import grid_of, smaller_form
from gossamer.runtime.vector import Positions, VectorLinear, has_bitmaps
from gossamer.runtime.vector_values import Storage, StoredValues, smallest_exact

__all__ = [
    "FEW",
    "GROUPED",
    "WORTH_TRYING",
    "density_of",
    "fastest",
    "in_blocks",
    "is_stem",
    "offers_for",
    "resident_bytes",
    "weights_of",
]

WORTH_TRYING = 0.6  # density below which a sparse kernel can win
_SMALLER = {
    Stored.INTEGERS: ", 8-bit values",
    Stored.SHORT_TABLE: ", indices of 32 values",
    Stored.TABLE: ", indices of 256 values",
    Stored.BFLOATS: ", 16-bit values",
}
_TIE = 1.1  # times the fastest up to which smaller values are taken
_BLOCKS_WORTH_TRYING = 0.85  # the same if non-zeros lie in blocks
_VALUES = {
    Storage.INT8: _SMALLER[Stored.INTEGERS],
    Storage.CODEBOOK4: ", indices of 16 values",
    Storage.CODEBOOK8: _SMALLER[Stored.TABLE],
    Storage.BFLOAT16: _SMALLER[Stored.BFLOATS],
}
FEW = 8  # tokens up to which kernels for few vectors are tried; up to half of them, nothing else is
_SOME = ("sparse", "sliced")  # what can win beside them
GROUPED = ("sliced", "pairs", "pairings", "patterns", "blocks")
"""How names of a Linear layer's candidates begin that take tiles."""
OVERLAPPING = 0.12  # density from which on four rows share columns often enough to gain from it


def offers_for(
    layer: nn.Module, tree: Encoding, density: float, inputs: Tensor, *, jit: bool
) -> dict[str, Callable[[], nn.Module]]:
    """Everything that computes what the layer does and could be faster, by the name that explanations use.

    Args:
        layer: Linear, Conv1d, Conv2d or Embedding.
        tree: of its weight.
        density: of its weight.
        inputs: that reach it.
        jit: whether sparse kernels can be compiled here.

    Returns:
        What builds each candidate.
    """
    found: dict[str, Callable[[], nn.Module]] = {"dense": partial(_same, layer)}
    weight = cast(Tensor, layer.weight)
    sparse = jit and weight.dtype in (torch.float32, torch.bfloat16)
    if sparse and inputs.dtype == weight.dtype:
        if isinstance(layer, nn.Linear):
            found |= _linear_offers(layer, tree, density, inputs)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)) and weight.dtype == torch.float32:
            size = tuple(inputs.shape[-len(layer.kernel_size) :])
            if (density < WORTH_TRYING or is_stem(layer)) and not refusal(layer, size, density):
                found |= _convolution_offers(layer, density, size)
    name, operator = name_of(tree), operator_of(tree, layer)
    if name is None or operator is None:
        return found
    if resident_bytes(operator) < resident_bytes(layer):  # a sum with a whole dense term cannot be faster than dense
        found[name] = partial(_same, operator)
    if sparse and weight.dtype == torch.float32:
        thinner, changed = _with_sparse(operator)
        if changed:
            found[f"{name}, sparse"] = partial(_same, thinner)
    return found


def _same(module: nn.Module) -> nn.Module:
    return module


def _linear_offers(
    layer: nn.Linear, tree: Encoding, density: float, inputs: Tensor
) -> dict[str, Callable[[], nn.Module]]:
    """For few tokens products with vectors, for many products with tiles, between them some of both."""
    blocks = density < _BLOCKS_WORTH_TRYING and in_blocks(layer.weight)
    if density >= WORTH_TRYING and not blocks:
        return {}
    tokens = inputs.numel() // max(1, inputs.shape[-1])
    if tokens > FEW or layer.weight.dtype != torch.float32:
        return _sparse_offers(layer, tree, density, blocks=blocks)
    found = _vector_offers(layer, tree)
    if 2 * tokens > FEW or density >= WORTH_TRYING:
        offers = _sparse_offers(layer, tree, density, blocks=blocks)
        found |= {name: make for name, make in offers.items() if blocks or name in _SOME}
    return found


def _sparse_offers(
    layer: nn.Linear, tree: Encoding, density: float, *, blocks: bool
) -> dict[str, Callable[[], nn.Module]]:
    """Row by row; and in groups of rows, with narrower and wider panels, and with values in fewer bits."""
    weight, bias, wide = layer.weight, layer.bias, _wide(layer.in_features)
    ways: dict[str, tuple[Way, int | None]] = {}
    if blocks:  # names of their own, for times are remembered by names
        ways["blocks"] = (Way.PATTERNS, None)
        ways["blocks, wide panels"] = (Way.PATTERNS, wide)
    else:
        ways["sliced"] = (Way.SLICED, None)
        ways["sliced, wide panels"] = (Way.SLICED, wide)
        ways["pairs"] = (Way.PAIRS, None)
    if density >= OVERLAPPING and not blocks:
        ways["pairings"] = (Way.PAIRINGS, None)
        ways["pairings, narrow panels"] = (Way.PAIRINGS, _narrow(layer, density))
        ways["patterns"] = (Way.PATTERNS, None)
    found: dict[str, Callable[[], nn.Module]] = {"sparse": lambda: _sparse(layer)}
    dense = weight.detach().cpu().float().contiguous().numpy()
    grid = grid_of(tree, dense)
    forms = {filled: smaller_form(dense, grid, filled=filled) for filled in (False, True)}
    for name, (way, width) in ways.items():
        found[name] = partial(GroupedLinear, weight, bias, way, width=width)
        stored = forms[way is not Way.PATTERNS]
        if stored is not Stored.FLOATS:
            small = partial(GroupedLinear, weight, bias, way, width=width, stored=stored, grid=grid)
            # Panels are as wide as groups of columns, and times depend on that.
            by = f" by {grid.size} columns" if grid is not None and grid.scale.shape[1] > 1 else ""
            found[f"{name}{_SMALLER[stored]}{by}"] = small
    return found


def _vector_offers(layer: nn.Linear, tree: Encoding) -> dict[str, Callable[[], nn.Module]]:
    """By index and by bitmap, also with values in fewer bits where these hold them exactly."""
    dense = layer.weight.detach().cpu().contiguous().numpy()
    grid = grid_of(tree, dense)
    small: Storage | StoredValues = smallest_exact(dense[dense != 0])
    if grid is not None and grid.scale.shape[1] == 1 and small is not Storage.CODEBOOK4:
        small = StoredValues.of_integers(grid.q[dense != 0], grid.scale[:, 0])
    kind = small if isinstance(small, Storage) else small.kind
    found: dict[str, Callable[[], nn.Module]] = {}
    for held in Positions if has_bitmaps() else (Positions.INDEX,):
        name = f"vector by {held.name.lower()}"
        found[name] = partial(VectorLinear, layer.weight, layer.bias, held=held)
        if kind is not Storage.FLOAT32:
            found[name + _VALUES[kind]] = partial(VectorLinear, layer.weight, layer.bias, held=held, stored=small)
    return found


def fastest(times: Mapping[str, float]) -> str:
    """The candidate to take: the fastest, or the fastest with smaller values if it is within a tenth of that.

    A layer that is timed again and again finds its weights in the cache: in a network smaller ones lose less than here.
    """
    best = min(times, key=lambda name: times[name])
    close = [name for name in times if times[name] <= _TIE * times[best]]
    small = [name for name in close if any(form in name for form in (*_SMALLER.values(), *_VALUES.values()))]
    return min(small, key=lambda name: times[name]) if small else best


def in_blocks(weight: Tensor) -> bool:
    """Whether most non-zeros lie in blocks of four rows and a column, as seen in about 16 such blocks of rows."""
    groups = weight.shape[0] // 4
    if not groups:
        return False
    chosen = weight.detach()[: 4 * groups].view(groups, 4, -1)[:: max(1, groups // 16)] != 0
    return int(chosen.all(dim=1).sum()) * 4 > int(chosen.sum()) / 2


def _narrow(layer: nn.Linear, density: float) -> int:
    """Half of the usual panel: leaves room in the first-level cache for weights and outputs."""
    return max(1, panel_width(layer.in_features, tiler().kernels.processor.lanes, density, Way.PAIRINGS) // 2)


def _convolution_offers(
    layer: nn.Conv1d | nn.Conv2d, density: float, size: tuple[int, ...]
) -> dict[str, Callable[[], nn.Module]]:
    if density >= WORTH_TRYING:
        return {"planes by patterns": lambda: SparseConv(layer, Way.PATTERNS, size)}
    found: dict[str, Callable[[], nn.Module]] = {"sliced planes": lambda: SparseConv(layer, Way.SLICED, size)}
    if density >= OVERLAPPING:
        found["planes by pairings"] = lambda: SparseConv(layer, Way.PAIRINGS, size)
        found["planes by patterns"] = lambda: SparseConv(layer, Way.PATTERNS, size)
    elif in_blocks(layer.weight):
        found["planes by blocks"] = lambda: SparseConv(layer, Way.PATTERNS, size)
    return found


def _wide(columns: int) -> int:
    """A panel for the second-level cache: fewer, longer loops."""
    panels = -(-columns // 768)
    return max(1, -(-columns // panels))


def is_stem(layer: nn.Module) -> bool:
    """Whether a convolution has so few inputs that kernels win without zeros: others fill vectors with channels."""
    return isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.in_channels <= 4 and layer.groups == 1


def density_of(layer: nn.Module) -> float:
    """Share of a layer's weights that are not zero; 0 for none at all."""
    weights = weights_of(layer)
    size = sum(weight.numel() for weight in weights)
    # Of booleans numpy counts ten times as fast as PyTorch does of floats.
    live = sum(int(np.count_nonzero((weight.detach() != 0).cpu().numpy())) for weight in weights)
    return live / size if size else 0.0


def weights_of(layer: nn.Module) -> list[Tensor]:
    """A layer's weight, or those of all levels and directions of a recurrent layer."""
    if isinstance(layer, nn.RNNBase):
        return [p for name, p in layer.named_parameters() if name.startswith("weight")]
    return [cast(Tensor, layer.weight)]


def resident_bytes(module: nn.Module) -> int:
    """Bytes held for weights, biases not counted."""
    total = 0
    for part in module.modules():
        if isinstance(part, (SparseLinear, GroupedLinear, TiledLinear, SparseConv, VectorLinear)):
            total += part.resident_bytes
        else:
            held = [p for n, p in part._parameters.items() if p is not None and not n.startswith("bias")]
            total += sum(prod(p.shape) * p.element_size() for p in held)
    return total


def _with_sparse(module: nn.Module) -> tuple[nn.Module, bool]:
    """The same with sparse kernels for the Linear layers in it that have zeros enough, and whether there were any."""
    if isinstance(module, nn.Linear):
        return (_sparse(module), True) if density_of(module) < WORTH_TRYING else (module, False)
    parts = {name: _with_sparse(part) for name, part in module.named_children()}
    changed = any(new for _, new in parts.values())
    if not changed:
        return module, False
    # A shallow copy: both variants are timed, and hold the same factors where they do not differ.
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__ = {**module.__dict__, "_modules": {name: part for name, (part, _) in parts.items()}}
    return copied, True


def _sparse(layer: nn.Linear) -> nn.Module:
    weight = layer.weight.detach().cpu()
    flat = weight.float().reshape(-1)
    positions = np.flatnonzero((flat != 0).numpy())  # of booleans: four times as fast as of floats
    values = flat.numpy()[positions]
    given = cast("Tensor | None", layer.bias)
    bias = None if given is None else given.detach().float()
    return SparseLinear((weight.shape[0], weight.shape[1]), positions, values, bias, dtype=weight.dtype)
