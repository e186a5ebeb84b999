"""Trees as parameters of a network: any loop and any optimiser fine-tunes survivors, factors, scales, centroids.

`attach` replaces a dense parameter by a parametrization whose parameters *are* the leaves of its tree; no dense
original survives. `harvest` reads the trees back. The two are inverse. A leaf shared by several weights is one
parameter; a tied weight is attached under all its names at once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.encoding.node import Encoding, Leaf, Role
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.weights import Concat, Kept, View
from gossamer.network.inspect import assign, is_plain, owner_of, plain_tree
from gossamer.network.rebuild import prepare, refresh, removed_modules, small_tree

__all__ = ["Attached", "attach", "attached", "harvest", "hold_statistics"]


@final
class Attached(nn.Module):
    """The parametrization: holds the leaves of one tree as its parameters and buffers, computes the dense weight."""

    def __init__(
        self,
        tree: Encoding,
        dtype: torch.dtype,
        owned: dict[int, tuple[Any, Any]],
        through: nn.Module | None = None,
    ) -> None:
        """Take the leaves of ``tree`` over.

        Args:
            tree: of the (small) weight that the layer multiplies with.
            dtype: logical dtype of the weight.
            owned: memo shared by all weights of a network, so that shared leaves become one parameter.
            through: tree → the tree that is multiplied with instead (quantized, say); its parameters train too.
        """
        super().__init__()
        self.dtype = dtype
        self.through = through
        self._keys: dict[str, str] = {}
        self.at_rest = {leaf.path: leaf.tensor.dtype for leaf in tree.leaves() if _narrow(leaf, dtype)}
        self.tree = tree.map_leaves(lambda leaf: _own(leaf, dtype), owned)
        self._register()

    def _register(self) -> None:
        for key in self._keys.values():
            self._parameters.pop(key, None)
            self._buffers.pop(key, None)
        self._keys = {}
        registered: dict[int, str] = {}
        for leaf in self.tree.leaves():
            key = leaf.path[1:].replace("/", "__").replace(".", "_")
            self._keys[leaf.path] = key
            if id(leaf.tensor) in registered:
                self._keys[leaf.path] = registered[id(leaf.tensor)]
            elif isinstance(leaf.tensor, nn.Parameter):
                self.register_parameter(key, leaf.tensor)
            else:
                self.register_buffer(key, leaf.tensor)
            registered[id(leaf.tensor)] = self._keys[leaf.path]

    def replace(self, tree: Encoding) -> None:
        """Put another tree in (a new topology); its leaves are taken as they are."""
        self.tree = tree
        self._register()

    def stored(self, copies: dict[int, tuple[Any, Any]]) -> Encoding:
        """A copy of the tree with every number as wide as it was before it trained.

        Args:
            copies: memo shared by all weights of a network.
        """

        def copied(leaf: Leaf) -> Tensor:
            return leaf.tensor.detach().to("cpu", self.at_rest.get(leaf.path, leaf.tensor.dtype), copy=True)

        return self.tree.map_leaves(copied, copies)

    def _refresh(self) -> None:
        # New node objects throughout, so that cached positions of patterns that were written into are forgotten.
        self.tree = self.tree.map_leaves(lambda leaf: leaf.tensor.view_as(leaf.tensor))
        self.tree = self.tree.map_leaves(lambda leaf: cast(Tensor, getattr(self, self._keys[leaf.path])))

    def forward(self) -> Tensor:
        """The dense weight in its logical dtype."""
        tree = self.tree if self.through is None else self.through(self.tree)
        return cast(Tensor, tree.to_dense()).to(self.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Nothing is kept of the dense weight."""
        del weight
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self._refresh()
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._resize(state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._refresh()

    def _resize(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        # The number of live values is part of the state: make room before it is copied in.
        for key in set(self._keys.values()):
            saved, mine = state_dict.get(prefix + key), cast(Tensor, getattr(self, key))
            if isinstance(saved, Tensor) and saved.shape != mine.shape and saved.dim() == mine.dim() == 1:
                with torch.no_grad():
                    mine.data = torch.empty_like(saved, dtype=mine.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        new = object.__new__(Attached)
        nn.Module.__init__(new)
        memo[id(self)] = new
        new.dtype, new._keys, new.training, new.at_rest = self.dtype, {}, self.training, self.at_rest
        new.through = copy.deepcopy(self.through, memo)
        mapped = memo.setdefault(id(Attached), {})  # trees copied so far: what they share stays shared
        new.tree = self.tree.map_leaves(lambda leaf: copy.deepcopy(leaf.tensor, memo), mapped)
        new._register()
        return new


def _own(leaf: Leaf, dtype: torch.dtype) -> Tensor:
    copied = leaf.tensor.detach().to(torch.float32 if _narrow(leaf, dtype) else leaf.tensor.dtype, copy=True)
    return nn.Parameter(copied) if leaf.role is Role.TRAINABLE else copied


def _narrow(leaf: Leaf, dtype: torch.dtype) -> bool:
    """Whether numbers that train are stored in fewer bits than float32 and not as the weight itself is.

    An optimiser's moments would underflow in them: scales in float16, of weights in float32 or bfloat16.
    """
    of = leaf.tensor.dtype
    return leaf.role is Role.TRAINABLE and of.is_floating_point and of.itemsize < 4 and of != dtype


def attach(
    model: nn.Module,
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    through: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """Make the leaves of ``trees`` the parameters of ``model``, in place; shrunk layers become physically smaller.

    Plain tensors, also those of shrunk layers, stay ordinary parameters and buffers unless another tensor's tree shares
    their numbers. After this, ``model`` trains with any loop and optimiser. A normalisation whose statistics are
    constants keeps them in training too.

    Args:
        model: of the architecture that ``specs`` describe.
        specs: what the network has.
        trees: per canonical name, without `Ref`.
        through: per canonical name, what a weight's tree goes through on its way into the layer; see `Attached`.

    Returns:
        The model.
    """
    owned: dict[int, tuple[Any, Any]] = {}
    uses = Counter(i for spec in specs if spec.name in trees for i in _leaf_ids(small_tree(trees[spec.name])))
    frozen: list[Attached] = []
    gone = prepare(model, specs, trees)
    for spec in specs:
        if spec.name not in trees or spec.name in gone:
            continue
        tree = small_tree(trees[spec.name])
        changed = None if through is None else through.get(spec.name)
        # A plain weight that another tensor's tree shares must be the same parameter there.
        alone = is_plain(tree, spec.dtype) and all(uses[i] == 1 for i in _leaf_ids(tree))
        if changed is None and (alone or is_constant(tree) or _is_buffer(model, spec)):
            assign(model, spec.names, tree.to_dense().detach().to(spec.dtype, copy=True))
            if is_constant(tree):
                _hold(model, spec.names)
            continue
        for name in spec.names:
            owner, key = owner_of(name)
            module = model.get_submodule(owner)
            wrapped = Attached(tree, spec.dtype, owned, changed)
            old = module._parameters[key]
            frozen += [] if old is None or old.requires_grad else [wrapped]
            module._parameters[key] = nn.Parameter(wrapped().detach())
            parametrize.register_parametrization(module, key, wrapped, unsafe=True)
    refresh(model)
    _freeze(model, frozen)
    return model


def _freeze(model: nn.Module, frozen: Sequence[Attached]) -> None:
    """What did not train before does not train now; a leaf that a training weight shares does."""
    training = {id(p) for holder in attached(model).values() if holder not in frozen for p in holder.parameters()}
    for holder in frozen:
        for parameter in holder.parameters():
            parameter.requires_grad_(id(parameter) in training)


def _leaf_ids(tree: Encoding) -> set[int]:
    return {id(leaf.tensor) for leaf in tree.leaves()}


def is_constant(tree: Encoding) -> bool:
    """Whether a tensor has nothing that could train or be written: its tree has no leaves."""
    return next(tree.leaves(), None) is None


def _is_buffer(model: nn.Module, spec: TensorSpec) -> bool:
    owner, key = owner_of(spec.name)
    return key in model.get_submodule(owner)._buffers


def _hold(model: nn.Module, names: Sequence[str]) -> None:
    """Keep a constant as it is: parameters do not train, a normalisation takes no statistics."""
    for name in names:
        owner, key = owner_of(name)
        module = model.get_submodule(owner)
        parameter = module._parameters.get(key)
        if parameter is not None:
            parameter.requires_grad_(False)
    _keep_statistics(model, names)


def hold_statistics(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> None:
    """Normalisations whose statistics are constants, such as folded ones, keep them whatever the training mode.

    Args:
        model: changed in place.
        specs: what it has.
        trees: per canonical name.
    """
    for spec in specs:
        if spec.name in trees and is_constant(trees[spec.name]):
            _keep_statistics(model, spec.names)


def _keep_statistics(model: nn.Module, names: Sequence[str]) -> None:
    for owner, key in map(owner_of, names):
        if key == "running_var":
            model.get_submodule(owner).register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    # Before every call, because any training loop may say train() to the whole network at any time.
    del inputs
    module.eval()


def attached(model: nn.Module) -> dict[str, Attached]:
    """The attached weights of a network by tensor name (every alias)."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Attached):
            owner, _, rest = name.rpartition("parametrizations.")
            key, _, number = rest.partition(".")
            if number == "0":  # others are held by what a weight goes through
                found[owner + key] = module
    return found


def harvest(
    model: nn.Module, specs: Sequence[TensorSpec], like: Mapping[str, Encoding] | None = None
) -> dict[str, Encoding]:
    """Read the trees back out of a network that `attach` was applied to; what they share stays shared.

    Args:
        model: as made by `attach`, after any training.
        specs: of the original network.
        like: the trees that were attached; says which channels had been removed. None: none.

    Returns:
        Tree per canonical name; leaves are copies. Of a weight that went ``through`` something, what went in.
    """
    copies: dict[int, tuple[Any, Any]] = {}
    wrapped = attached(model)
    found: dict[str, Encoding] = {}
    removed = () if like is None else removed_modules(model, specs, like)
    for spec in specs:
        outer = None if like is None else like.get(spec.name)
        if outer is not None and any(spec.name.startswith(f"{module}.") for module in removed):
            found[spec.name] = outer
            continue
        if spec.name in wrapped:
            tree = wrapped[spec.name].stored(copies)
        elif outer is not None and is_constant(outer):
            tree = outer
        else:
            tree = plain_tree(_tensor(model, spec), spec)
        found[spec.name] = tree if outer is None else _outside(outer, tree)
    return found


def _tensor(model: nn.Module, spec: TensorSpec) -> Tensor:
    owner, key = owner_of(spec.name)
    module = model.get_submodule(owner)
    found = module._parameters.get(key)
    return cast(Tensor, module._buffers[key] if found is None else found).detach().to("cpu", copy=True)


def _outside(outer: Encoding, tree: Encoding) -> Encoding:
    """Put a trained small tree back into the `Kept` that it came from."""
    if isinstance(outer, Kept):
        return outer.with_parts({"inner": tree})
    if isinstance(outer, View) and isinstance(outer.inner, Kept) and isinstance(tree, View):
        return outer.with_parts({"inner": outer.inner.with_parts({"inner": tree.inner})})
    if isinstance(outer, Concat):
        assert isinstance(tree, Concat)
        pairs = zip(outer.members, tree.members, strict=True)
        return Concat(tuple(_outside(mine, trained) for mine, trained in pairs))
    return tree
