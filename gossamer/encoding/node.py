"""What every encoding is: a small immutable tree of nodes whose leaves are tensors.

A node is a frozen dataclass. Each of its fields is one of three things:

* a *leaf*: a tensor, declared with its role (does it train?), its codec at rest and its ledger category;
* a *child*: another node, declared as a weight (methods may descend into it) or as a part (they may not);
* plain JSON: numbers, strings, booleans, tuples of these.

The declaration lives in the field's metadata, so that nothing outside has to know a node's class to attach it to a
module, write it to a file, count its bits or find the places where a method may act.
"""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from gossamer.errors import CompositionError, FormatError

__all__ = ["Category", "Child", "Codec", "Encoding", "Leaf", "LeafField", "Pattern", "Role", "Value", "declarations"]


# Statistics in the coordinates of a layer's inputs; all others have the shape of the weight.
INPUT_STATISTICS = frozenset({"count", "sum", "sq", "zeros", "gram"})


class Role(enum.Enum):
    """What training may do to a leaf. Every float is *not* trainable: zero points and buffers are floats too."""

    TRAINABLE = "trainable"
    FIXED = "fixed"
    INDEX = "index"


class Codec(enum.Enum):
    """How a leaf is coded at rest; in memory leaves are always plain arrays that can be computed with."""

    FLOATS = "floats"
    SYMBOLS = "symbols"
    MASK = "mask"


class Category(enum.Enum):
    """Where the ledger books a leaf's bytes; exactly one per byte of the file."""

    VALUES = "values"
    SCALES = "scales and zero points"
    CODEBOOKS = "codebooks"
    POSITIONS = "masks and indices"
    FACTORS = "factors"
    UNTOUCHED = "untouched tensors"
    TABLES = "code tables"
    HEADER = "header"


@dataclass(frozen=True)
class LeafField:
    """Declares a tensor field. ``category=None``: the place in the tree decides (a `Dense` can be many things)."""

    role: Role
    codec: Codec
    category: Category | None = None


@dataclass(frozen=True)
class Child:
    """Declares a node field. ``weight``: a matrix in its own right, in which methods may act (factors, terms)."""

    weight: bool = False
    category: Category | None = None


@dataclass(frozen=True)
class Leaf:
    """One tensor of a tree, with everything that its place in the tree says about it."""

    path: str
    tensor: Tensor
    role: Role
    codec: Codec
    category: Category
    owner: Encoding
    field: str


@dataclass(frozen=True, eq=False)
class Encoding(ABC):
    """One way of saying what a weight is.

    Subclasses are abstract or final, hold no dense copy, and differentiate through `to_dense` with respect to
    their trainable leaves. Two nodes are the same only if they are the same object: sharing is identity.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight that this tree stands for."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight itself, differentiable in the trainable leaves.

        Half-precision leaves of composite nodes are computed in float32; the caller casts to the logical dtype.
        """

    def validate(self) -> None:
        """Check this node's contents against untrusted data (children check themselves).

        Raises:
            FormatError: an index, position or size that the structure does not allow.
        """
        return

    def leaf_bits(self, field: str) -> int:
        """Bits of one leaf at fixed width, before entropy coding; exact."""
        tensor = cast(Tensor, self.part(field))
        return tensor.numel() * tensor.element_size() * 8

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Turn statistics of this weight into those of a child (see `INPUT_STATISTICS`); unknown ones are dropped."""
        del field, evidence
        return {}

    # -- structure -----------------------------------------------------------------------------------------------

    def declared(self, field: str) -> LeafField | Child:
        """The declaration of a part; ``terms.0`` belongs to the field ``terms``."""
        return declarations(type(self))[field.partition(".")[0]]

    def parts(self) -> Iterator[tuple[str, Encoding | Tensor]]:
        """Children and leaves in field order; members of tuples are named ``field.index``."""
        for name in declarations(type(self)):
            found = getattr(self, name)
            if isinstance(found, tuple):
                for i, member in enumerate(found):
                    if isinstance(member, (Encoding, Tensor)):
                        yield f"{name}.{i}", member
            elif isinstance(found, (Encoding, Tensor)):
                yield name, found

    def part(self, field: str) -> Encoding | Tensor:
        """One child or leaf by its name in `parts`."""
        for name, found in self.parts():
            if name == field:
                return found
        raise CompositionError(f"{type(self).__name__} has no part {field!r}, found {[n for n, _ in self.parts()]}")

    def with_parts(self, new: Mapping[str, Encoding | Tensor]) -> Self:
        """The same node with some parts replaced; the very same object where nothing changed (caches live on)."""
        if all(new.get(name, old) is old for name, old in self.parts()):
            return self
        changes: dict[str, Any] = {}
        for name in declarations(type(self)):
            found = getattr(self, name)
            if isinstance(found, tuple):
                changes[name] = tuple(new.get(f"{name}.{i}", member) for i, member in enumerate(found))
            else:
                changes[name] = new.get(name, found)
        return dataclasses.replace(self, **changes)

    def at(self, path: str) -> Encoding:
        """The sub-tree at a path such as ``/u/value``; the empty path is the tree itself."""
        node: Encoding = self
        for field in path.split("/")[1:]:
            child = node.part(field)
            if not isinstance(child, Encoding):
                raise CompositionError(f"{path!r} leads to a leaf of {type(node).__name__}, expected a sub-tree")
            node = child
        return node

    def put(self, path: str, new: Encoding) -> Encoding:
        """The tree with the sub-tree at ``path`` replaced."""
        if not path:
            return new
        field, _, rest = path[1:].partition("/")
        child = self.part(field)
        if not isinstance(child, Encoding):
            raise CompositionError(f"{field!r} of {type(self).__name__} is a leaf, expected a sub-tree")
        return self.with_parts({field: child.put("/" + rest if rest else "", new)})

    def map_leaves(self, change: Callable[[Leaf], Tensor], memo: dict[int, tuple[Any, Any]] | None = None) -> Self:
        """Rebuild the tree with every leaf changed once; shared nodes and shared leaves stay shared.

        Args:
            change: leaf → tensor. Called once per distinct tensor.
            memo: hand the same dict to several trees to keep what they share shared.
        """
        return cast(Self, _map(self, change, {} if memo is None else memo, "", None))

    def leaves(self) -> Iterator[Leaf]:
        """All leaves with their paths, in field order; a shared leaf appears once per place."""
        yield from _leaves(self, "", None)

    def nodes(self) -> Iterator[tuple[str, Encoding]]:
        """All nodes with their paths, the tree itself first."""
        yield "", self
        for name, found in self.parts():
            if isinstance(found, Encoding):
                for path, node in found.nodes():
                    yield f"/{name}{path}", node

    def size_bits(self) -> int:
        """Exact size in bits at fixed width before entropy coding; a shared leaf counts once."""
        seen: set[int] = set()
        total = 0
        for leaf in self.leaves():
            if id(leaf.tensor) not in seen:
                seen.add(id(leaf.tensor))
                total += leaf.owner.leaf_bits(leaf.field)
        return total

    def hand_down_to(self, path: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Statistics as the sub-tree at ``path`` sees them."""
        node: Encoding = self
        for field in path.split("/")[1:]:
            evidence = node.hand_down(field, evidence)
            node = cast(Encoding, node.part(field))
        return evidence


class Pattern(Encoding, ABC):
    """Where the live values of a `Masked` weight are. Its own node, so that positions outlive changes of values."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Flat row-major positions of the live values, int32, ascending, cached."""

    def mask(self) -> Tensor:
        """True where a value is kept, shape of the weight."""
        positions = self.positions().long()
        kept = torch.zeros(prod(self.dense_shape()), dtype=torch.bool, device=positions.device)
        kept[positions] = True
        return kept.view(self.dense_shape())

    def to_dense(self) -> Tensor:
        """The mask as a tensor (patterns have no values of their own)."""
        return self.mask()


class Value(Encoding, ABC):
    """Numbers, either a whole weight or the packed live values of a `Masked` one.

    Groups, scales and channels are defined in *dense* coordinates, so a packed value is told the flat positions
    of its elements.
    """

    @abstractmethod
    def values(self, positions: Tensor | None) -> Tensor:
        """The numbers, shaped like `dense_shape`.

        Args:
            positions: int32 [n], flat position of each element in the dense weight; None: all, in order.
        """

    def validate_over(self, elements: int) -> None:
        """Check groups against untrusted data; ``elements`` are those of the dense weight, pruned ones included.

        Raises:
            FormatError: elements that belong to no group.
        """
        del elements

    def to_dense(self) -> Tensor:
        """The weight; for packed values use `values` with their positions."""
        return self.values(None)


def require(condition: bool, node: Encoding, found: object, expected: str) -> None:
    """Refuse a malformed node.

    Raises:
        FormatError: names the node's kind, what was found and what was expected.
    """
    if not condition:
        raise FormatError(f"{type(node).__name__}: found {found}, expected {expected}")


def computable(tensor: Tensor) -> Tensor:
    """Half precision as float32: products and decompositions have no half kernels on every CPU."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def computable_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of what `computable` makes of a tensor."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype


@cache
def declarations(kind: type[Encoding]) -> dict[str, LeafField | Child]:
    """The parts that a kind of node declares, in field order."""
    found = {f.name: f.metadata.get("part") for f in dataclasses.fields(kind)}
    return {name: part for name, part in found.items() if isinstance(part, (LeafField, Child))}


def leaf(role: Role, codec: Codec, category: Category | None = None) -> dict[str, LeafField]:
    """Metadata of a tensor field: ``array: Tensor = field(metadata=leaf(...))``."""
    return {"part": LeafField(role, codec, category)}


def child(*, weight: bool = False, category: Category | None = None) -> dict[str, Child]:
    """Metadata of a node field: ``u: Encoding = field(metadata=child(weight=True))``."""
    return {"part": Child(weight, category)}


def _category(declared: LeafField, above: Category | None) -> Category:
    return declared.category or above or Category.VALUES


def _child_category(declared: LeafField | Child, above: Category | None) -> Category | None:
    # The outermost declaration decides: the values of a pruned factor are factors, a scale below stays a scale.
    return (declared.category if isinstance(declared, Child) else None) or above


def _as_leaf(node: Encoding, name: str, tensor: Tensor, path: str, above: Category | None) -> Leaf:
    declared = node.declared(name)
    assert isinstance(declared, LeafField)
    role = declared.role
    if role is Role.TRAINABLE and (getattr(node, "fixed", False) or not tensor.is_floating_point()):
        role = Role.FIXED
    return Leaf(f"{path}/{name}", tensor, role, declared.codec, _category(declared, above), node, name)


def _leaves(node: Encoding, path: str, above: Category | None) -> Iterator[Leaf]:
    for name, found in node.parts():
        if isinstance(found, Encoding):
            yield from _leaves(found, f"{path}/{name}", _child_category(node.declared(name), above))
        else:
            yield _as_leaf(node, name, found, path, above)


def _map(
    node: Encoding,
    change: Callable[[Leaf], Tensor],
    memo: dict[int, tuple[Any, Any]],
    path: str,
    above: Category | None,
) -> Encoding:
    if id(node) in memo:
        return cast(Encoding, memo[id(node)][0])
    new: dict[str, Encoding | Tensor] = {}
    for name, found in node.parts():
        if isinstance(found, Encoding):
            new[name] = _map(found, change, memo, f"{path}/{name}", _child_category(node.declared(name), above))
        else:
            if id(found) not in memo:
                # The old object is held beside the new one so that its id cannot be used again meanwhile.
                memo[id(found)] = (change(_as_leaf(node, name, found, path, above)), found)
            new[name] = memo[id(found)][0]
    memo[id(node)] = (node.with_parts(new), node)
    return cast(Encoding, memo[id(node)][0])
