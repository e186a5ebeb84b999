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

__all__ = [
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
    if sparse and inputs.dtype == weight.dtype and (density < WORTH_TRYING or is_stem(layer)):
        if isinstance(layer, nn.Linear):
            found |= _sparse_offers(layer, tree, density)
        elif weight.dtype == torch.float32 and isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            size = tuple(inputs.shape[-len(layer.kernel_size) :])
            if not refusal(layer, size, density):
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


def _sparse_offers(layer: nn.Linear, tree: Encoding, density: float) -> dict[str, Callable[[], nn.Module]]:
    """Row by row; and in groups of rows, with narrower and wider panels, and with values in fewer bits."""
    weight, bias, wide = layer.weight, layer.bias, _wide(layer.in_features)
    ways: dict[str, tuple[Way, int | None]] = {"sliced": (Way.SLICED, None), "sliced, wide panels": (Way.SLICED, wide)}
    if density >= OVERLAPPING:
        ways["pairs"] = (Way.PAIRS, None)
        ways["pairs, narrow panels"] = (Way.PAIRS, _narrow(layer, density))
    if in_blocks(weight):  # other names, for times are remembered by names
        ways["blocks"] = (Way.PATTERNS, None)
        ways["blocks, wide panels"] = (Way.PATTERNS, wide)
    elif density >= OVERLAPPING:
        ways["patterns"] = (Way.PATTERNS, None)
        ways["patterns, wide panels"] = (Way.PATTERNS, wide)
    found: dict[str, Callable[[], nn.Module]] = {"sparse": lambda: _sparse(layer)}
    dense = weight.detach().cpu().float().contiguous().numpy()
    grid = grid_of(tree, dense)
    for name, (way, width) in ways.items():
        found[name] = partial(GroupedLinear, weight, bias, way, width=width)
        stored = smaller_form(dense, grid, filled=way is not Way.PATTERNS)
        if stored is not Stored.FLOATS:
            small = partial(GroupedLinear, weight, bias, way, width=width, stored=stored, tree=tree)
            found[f"{name}{_SMALLER[stored]}"] = small
    return found


def fastest(times: Mapping[str, float]) -> str:
    """The candidate to take: the fastest, or the fastest with smaller values if it is within a twentieth of that."""
    best = min(times, key=lambda name: times[name])
    small = [name for name in times if name.endswith(tuple(_SMALLER.values())) and times[name] <= 1.05 * times[best]]
    return min(small, key=lambda name: times[name]) if small else best


def in_blocks(weight: Tensor) -> bool:
    """Whether most non-zeros lie in blocks of four rows and a column, as seen in up to 64 such blocks of rows."""
    groups = weight.shape[0] // 4
    if not groups:
        return False
    chosen = weight.detach()[: 4 * groups].view(groups, 4, -1)[:: max(1, groups // 64)] != 0
    return int(chosen.all(dim=1).sum()) * 4 > int(chosen.sum()) / 2


def _narrow(layer: nn.Linear, density: float) -> int:
    """Half of the usual panel: leaves room in the first-level cache for weights and outputs."""
    return max(1, panel_width(layer.in_features, tiler().kernels.processor.lanes, density) // 2)


def _convolution_offers(
    layer: nn.Conv1d | nn.Conv2d, density: float, size: tuple[int, ...]
) -> dict[str, Callable[[], nn.Module]]:
    if density >= WORTH_TRYING:
        return {"planes by patterns": lambda: SparseConv(layer, Way.PATTERNS, size)}
    found: dict[str, Callable[[], nn.Module]] = {"sliced planes": lambda: SparseConv(layer, Way.SLICED, size)}
    if density >= OVERLAPPING:
        found["planes by pairs"] = lambda: SparseConv(layer, Way.PAIRS, size)
        found["planes by patterns"] = lambda: SparseConv(layer, Way.PATTERNS, size)
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
        if isinstance(part, (SparseLinear, GroupedLinear, TiledLinear, SparseConv)):
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
    weight = layer.weight.detach()
    positions = weight.reshape(-1).nonzero().squeeze(1)
    values = weight.reshape(-1)[positions].float()
    given = cast("Tensor | None", layer.bias)
    bias = None if given is None else given.detach().float()
    return SparseLinear((weight.shape[0], weight.shape[1]), positions, values, bias, dtype=weight.dtype)
