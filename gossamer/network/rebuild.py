"""Trees put back into a network: full-size where they say so, physically smaller where channels were removed."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.weights import Concat, Kept, View
from gossamer.errors import CompositionError
from gossamer.network.attention import FewerHeads, attention_parts, set_heads
from gossamer.network.inspect import assign, is_transformers_conv1d, owner_of

__all__ = ["Skipped", "is_empty", "materialise", "pass_by", "prepare", "removed_modules", "small_tree"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@final
class Skipped(nn.Module):
    """Stands where a residual block was: its first input passes.

    Args:
        members: how many the block's tuple of outputs has, of which all but the first are None here; 0: no tuple.
    """

    def __init__(self, members: int = 0) -> None:
        super().__init__()
        self.members = members

    @classmethod
    def instead_of(cls, block: nn.Module) -> Skipped:
        """What stands for a block, by what its ``forward`` declares to return.

        Only what the architecture says of itself is there when a file is loaded. Without a declaration: no tuple.

        Example:
            >>> Skipped.instead_of(nn.MultiheadAttention(2, 1)).members
            2
        """
        try:
            hint = typing.get_type_hints(block.forward).get("return")
        except (NameError, TypeError, AttributeError):  # names that only a type checker knows: no declaration
            hint = None
        return cls(_members(hint))

    def forward(self, first: Any, *rest: Any, **named: Any) -> Any:
        """The first input."""
        del rest, named
        return (first, *[None] * (self.members - 1)) if self.members else first


def _members(hint: object) -> int:
    """Length of a declared tuple, 1 for one of any length, 0 for anything else; of a union the longest."""
    if typing.get_origin(hint) is tuple:
        inside = typing.get_args(hint)
        return 1 if Ellipsis in inside else len(inside)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return max(_members(option) for option in typing.get_args(hint))
    return 1 if hint is tuple else 0


def small_tree(tree: Encoding) -> Encoding:
    """The tree of the physically small weight: what is inside `Kept`, in the network's orientation."""
    if isinstance(tree, Kept):
        return tree.inner
    if isinstance(tree, View) and isinstance(tree.inner, Kept):
        return View(tree.inner.inner, tree.order)
    if isinstance(tree, Concat) and any(isinstance(m, Kept) for m in tree.members):
        return Concat(tuple(small_tree(m) for m in tree.members))
    return tree


def removed_modules(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> tuple[str, ...]:
    """Names of the modules of which nothing is kept: the topmost ones that are no mere containers.

    Args:
        model: of the architecture that ``specs`` describe.
        specs: what it has.
        trees: per canonical name.
    """
    empty = {n for s in specs if s.name in trees and is_empty(trees[s.name]) for n in s.names}
    if not empty:
        return ()
    live = {n for s in specs if s.shape for n in s.names} - empty
    # A scalar, such as a count of batches, cannot lose a dimension: it goes with the module.
    alive = {owner for name in live for owner in _above(name)}
    owners = sorted({owner for name in empty for owner in _above(name)} - alive, key=lambda owner: owner.count("."))
    found: list[str] = []
    for owner in owners:
        inside = any(owner.startswith(above + ".") for above in found)
        if owner and not inside and not isinstance(model.get_submodule(owner), _CONTAINERS):
            found.append(owner)
    return tuple(found)


def pass_by(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> None:
    """Blocks of which nothing is kept hand on their first input; unlike in `prepare`, they and their tensors stay.

    Zeros alone do not make a block that: one that ends in a normalisation would put out zeros.

    Args:
        model: of the original architecture, changed in place.
        specs: what it has.
        trees: per canonical name.
    """
    for name in removed_modules(model, specs, trees):
        block = model.get_submodule(name)
        vars(block)["forward"] = Skipped.instead_of(block).forward
        for hooks in (block._forward_pre_hooks, block._forward_hooks):  # they go with the block
            hooks.clear()


def _above(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def is_empty(tree: Encoding) -> bool:
    """Whether nothing of a tensor is kept: its block was removed."""
    small = small_tree(tree)
    return small is not tree and bool(small.dense_shape()) and 0 in small.dense_shape()


def prepare(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> frozenset[str]:
    """Make the modules agree with shrunk weights, before those are put in: numbers of channels, heads, groups, blocks.

    Args:
        model: changed in place.
        specs: what it had.
        trees: per canonical name.

    Returns:
        Canonical names of the tensors that are gone with their blocks.

    Raises:
        CompositionError: a module whose size is not known to follow from its weight.
    """
    removed = removed_modules(model, specs, trees)
    for name in removed:
        owner, key = owner_of(name)
        setattr(model.get_submodule(owner), key, Skipped.instead_of(model.get_submodule(name)))
    gone = frozenset(s.name for s in specs if any(s.name.startswith(f"{module}.") for module in removed))
    shrunk = {
        name: trees[s.name]
        for s in specs
        if s.name in trees and s.name not in gone and small_tree(trees[s.name]) is not trees[s.name]
        for name in s.names
    }
    if shrunk:
        heads = [p for p in attention_parts(model) if p.rows[0].tensor in shrunk]
        by_module: dict[str, dict[str, Encoding]] = {}
        for name, tree in shrunk.items():
            owner, key = owner_of(name)
            by_module.setdefault(owner, {})[key] = tree
        for owner, held in by_module.items():
            _resize(owner, model.get_submodule(owner), held)
        for part in heads:
            first = part.rows[0]
            rows = _rows(shrunk[first.tensor])
            if rows % (first.width * first.blocks):
                raise CompositionError(f"{first.tensor}: found {rows} rows, expected whole heads of {first.width}")
            left = rows // (first.width * first.blocks)
            module = model.get_submodule(part.module)
            if left != part.heads and isinstance(module, nn.MultiheadAttention):
                FewerHeads.of(module, left)
            elif left != part.heads:
                set_heads(module, part, left)
    return gone


def _rows(tree: Encoding) -> int:
    """Outputs that are left of a shrunk weight, whatever its orientation."""
    small = small_tree(tree)
    return (small.inner if isinstance(small, View) else small).dense_shape()[0]


def _resize(owner: str, module: nn.Module, held: Mapping[str, Encoding]) -> None:
    """Numbers of features and channels of one module, from the trees of its own shrunk tensors."""
    shapes = {key: small_tree(tree).dense_shape() for key, tree in held.items()}
    shape = shapes.get("weight", shapes.get("running_mean", ()))
    if isinstance(module, nn.RNNBase):
        module.input_size = shapes.get("weight_ih_l0", (0, module.input_size))[1]
        module.hidden_size = shapes.get("weight_hh_l0", (0, module.hidden_size))[1]
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = shapes.get("weight_ih", (0, module.input_size))[1]
        module.hidden_size = shapes.get("weight_hh", (0, module.hidden_size))[1]
    elif isinstance(module, nn.MultiheadAttention) or not shape:
        return
    elif is_transformers_conv1d(module):
        setattr(module, "nx", shape[0])  # noqa: B010
        setattr(module, "nf", shape[1])  # noqa: B010
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _ConvTransposeNd) and module.groups == 1:
        module.in_channels, module.out_channels = shape[:2]
    elif isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        module.groups = _live_groups(owner, held["weight"], module.groups)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, _NormBase):
        module.num_features = shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(shape) == 1:
        module.normalized_shape = cast(Any, shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups > 1:
            module.num_groups = _live_groups(owner, held["weight"], module.num_groups)
        module.num_channels = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    else:
        kind = type(module).__name__
        raise CompositionError(
            f"{owner}.weight: found a shrunk weight in {kind}, expected a layer whose size follows it"
        )


def _live_groups(owner: str, tree: Encoding, groups: int) -> int:
    """How many groups of rows still have some; those must have equally many."""
    kept = tree.kept_indices(0) if isinstance(tree, Kept) else None
    if groups == 1 or kept is None:
        return groups
    per_group = torch.bincount(kept // (tree.dense_shape()[0] // groups), minlength=groups)
    live = per_group[per_group > 0]
    if len(set(live.tolist())) != 1:
        raise CompositionError(f"{owner}.weight: found {per_group.tolist()} rows left in its groups, expected equal")
    return live.numel()


def materialise(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> nn.Module:
    """Put the dense weights of ``trees`` into ``model``, in place; shrunk layers become physically smaller.

    Args:
        model: of the architecture that ``specs`` describe; may be on the meta device.
        specs: what the network has.
        trees: per canonical name.

    Returns:
        The model.
    """
    gone = prepare(model, specs, trees)
    with torch.no_grad():
        for spec in specs:
            if spec.name not in trees or spec.name in gone:
                continue
            small = small_tree(trees[spec.name])
            dense = small.to_dense().detach().to(spec.dtype)
            assign(model, spec.names, dense.clone() if _aliases_a_leaf(small, dense) else dense)
    refresh(model)
    return model


def refresh(model: nn.Module) -> None:
    """Recurrent layers keep a list of their weights beside their parameters: make it the present ones."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            module._flat_weights = [getattr(module, name, None) for name in names]


def _aliases_a_leaf(tree: Encoding, dense: Tensor) -> bool:
    return any(leaf.tensor.data_ptr() == dense.data_ptr() for leaf in tree.leaves())
