"""Trees put back into a network: full-size where they say so, physically smaller where channels were removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.weights import Kept, View
from gossamer.errors import CompositionError
from gossamer.network.inspect import assign, owner_of

__all__ = ["materialise", "resize_modules", "small_tree"]


def small_tree(tree: Encoding) -> Encoding:
    """The tree of the physically small weight: what is inside `Kept`, in the network's orientation."""
    if isinstance(tree, Kept):
        return tree.inner
    if isinstance(tree, View) and isinstance(tree.inner, Kept):
        return View(tree.inner.inner, tree.order)
    return tree


def resize_modules(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make the modules' own numbers of features and channels agree with new shapes of their tensors.

    Args:
        model: changed in place.
        shapes: new shape per tensor name (every alias).

    Raises:
        CompositionError: a module whose size is not known to follow from its weight.
    """
    for name, shape in shapes.items():
        owner, key = owner_of(name)
        module = model.get_submodule(owner)
        if key != "weight":
            continue
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif isinstance(module, _ConvTransposeNd) and module.groups == 1:
            module.in_channels, module.out_channels = shape[:2]
        elif isinstance(module, _ConvNd) and module.groups == 1:
            module.out_channels, module.in_channels = shape[:2]
        elif isinstance(module, _NormBase):
            module.num_features = shape[0]
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = shape
        else:
            kind = type(module).__name__
            raise CompositionError(f"{name}: found a shrunk weight in {kind}, expected a layer whose size follows it")


def materialise(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> nn.Module:
    """Put the dense weights of ``trees`` into ``model``, in place; shrunk layers become physically smaller.

    Args:
        model: of the architecture that ``specs`` describe; may be on the meta device.
        specs: what the network has.
        trees: per canonical name.

    Returns:
        The model.
    """
    resized: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        for spec in specs:
            if spec.name not in trees:
                continue
            tree = trees[spec.name]
            small = small_tree(tree)
            dense = small.to_dense().detach().to(spec.dtype)
            assign(model, spec.names, dense.clone() if _aliases_a_leaf(small, dense) else dense)
            if small is not tree:
                resized |= dict.fromkeys(spec.names, tuple(dense.shape))
    resize_modules(model, resized)
    return model


def _aliases_a_leaf(tree: Encoding, dense: Tensor) -> bool:
    return any(leaf.tensor.data_ptr() == dense.data_ptr() for leaf in tree.leaves())
