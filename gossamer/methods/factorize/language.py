"""Why plain SVD does badly on a language model, measured on the network at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.methods.input_space import best_product, gram_of, output_error

__all__ = ["Unseen", "is_language_model", "measure_unseen"]

_LAYERS = 8
_DAMPING = 1e-4


@dataclass(frozen=True)
class Unseen:
    """What a layer's outputs lose, relative to their norm; medians over some layers.

    Args:
        plain: with the nearest factors in Frobenius norm.
        whitened: with those of the same rank that are nearest on the layer's inputs.
        layers: how many were looked at.
    """

    plain: float
    whitened: float
    layers: int


def is_language_model(model: nn.Module) -> bool:
    """Whether some layer scores as many outputs as an embedding has entries."""
    entries = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    return any(isinstance(m, nn.Linear) and m.out_features in entries for m in model.modules())


def measure_unseen(
    model: nn.Module, example: Any, meant: Callable[[str], bool], rank: Callable[[Tensor], int]
) -> Unseen | None:
    """Run the network once and compare both factorizations on what reaches some of its Linear layers.

    Args:
        model: not changed; a copy runs.
        example: its inputs.
        meant: name of a weight → whether it is to be factorized.
        rank: matrix [out, in] → rank to compare at, below its smaller side.

    Returns:
        None: no such layer was reached.

    Cost: a forward pass, and for at most 8 layers a Gram matrix and two eigendecompositions.
    """
    network = copy.deepcopy(model).eval()
    layers = [m for n, m in network.named_modules() if isinstance(m, nn.Linear) and meant(f"{n}.weight")]
    layers = layers[:: max(1, -(-len(layers) // _LAYERS))]
    grams: dict[int, Tensor] = {}

    def see(layer: nn.Module, given: tuple[Any, ...]) -> None:
        rows = given[0].detach().flatten(0, -2).float()
        grams[id(layer)] = grams.get(id(layer), 0) + rows.T @ rows  # [in, rows] · [rows, in]

    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    with torch.inference_mode():
        network(**example) if isinstance(example, Mapping) else network(example)
    for handle in handles:
        handle.remove()
    plain: list[float] = []
    whitened: list[float] = []
    for layer in layers:
        matrix = layer.weight.detach().double()
        gram = gram_of("SVD", tuple(matrix.shape), {"gram": grams[id(layer)]} if id(layer) in grams else {}, _DAMPING)
        r = rank(matrix)
        if gram is None or not 0 < r < min(matrix.shape):
            continue
        whole = output_error(matrix, gram) or 1.0
        for found, metric in ((plain, torch.eye(len(gram), dtype=torch.float64)), (whitened, gram)):
            u, v = best_product(matrix, metric, r)
            found.append((output_error(matrix - u @ v, gram) / whole) ** 0.5)
    return Unseen(median(plain), median(whitened), len(plain)) if plain else None
