"""Lossless differences against a reference that the file does not hold: a fine-tune beside its base network."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Category, Codec, Encoding, Role, child, leaf, require
from gossamer.errors import CompositionError, DataError

__all__ = ["Delta", "External", "checksum", "difference", "provide"]

_BITS: Mapping[int, torch.dtype] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDER: Mapping[int, torch.dtype] = {1: torch.int16, 2: torch.int32, 4: torch.int64, 8: torch.int64}
_DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


@final
@dataclass(frozen=True, eq=False)
class External(Encoding):
    """A tensor of another checkpoint, known by name and checksum; `provide` gives it its numbers.

    Args:
        name: of the tensor in the reference.
        weight_shape: its shape.
        dtype: its dtype, such as "float32".
        crc: CRC-32 of its bytes.
    """

    name: str
    weight_shape: tuple[int, ...]
    dtype: str
    crc: int

    def __post_init__(self) -> None:
        require(self.dtype in _DTYPES, self, f"dtype {self.dtype[:20]!r}", f"one of {sorted(_DTYPES)}")

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> External:
        """A tensor of the reference, bound to its numbers."""
        made = cls(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), checksum(tensor))
        return made.bind(tensor)

    def numbers(self) -> torch.dtype:
        """The dtype as torch has it."""
        return _DTYPES[self.dtype]

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.weight_shape

    def bind(self, tensor: Tensor) -> External:
        """Hold the numbers, in memory only; they are not part of the tree and never written.

        Raises:
            DataError: another tensor than the one meant.
        """
        found = checksum(tensor)
        if tuple(tensor.shape) != self.weight_shape or tensor.dtype != self.numbers() or found != self.crc:
            expected = f"{self.dtype} {self.weight_shape} with checksum {self.crc:08x}"
            mine = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} with checksum {found:08x}"
            raise DataError(f"reference tensor {self.name!r}: found {mine}, expected {expected}")
        object.__setattr__(self, "_tensor", tensor.detach().clone())
        return self

    def to_dense(self) -> Tensor:
        """The reference's tensor.

        Raises:
            CompositionError: it was not provided.
        """
        tensor: Tensor | None = getattr(self, "_tensor", None)
        if tensor is None:
            raise CompositionError(
                f"found no reference for tensor {self.name!r}, expected load(..., reference=…) with the checkpoint "
                "that this file is a difference to"
            )
        return tensor


@final
@dataclass(frozen=True, eq=False)
class Delta(Encoding):
    """w = reference + difference, exactly: the difference is one of bit patterns, not of floats.

    Bit patterns are taken in the order of the numbers they stand for, so that neighbouring floats differ by one;
    differences are folded (0, −1, 1, −2, … become 0, 1, 2, 3, …), so that small ones are small integers.

    Args:
        residual: integers one size wider than the tensor's dtype, shape of the weight.
        reference: what it is a difference to.
        span: flat row-major range [start, stop) of the reference that this weight stands for (a gate), or () for all.
        order: permutation of the reference's dimensions that makes the weight, or ().
    """

    residual: Tensor = field(metadata=leaf(Role.FIXED, Codec.SYMBOLS, Category.VALUES))
    reference: Encoding = field(metadata=child(category=Category.VALUES))
    span: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(isinstance(self.reference, External), self, f"{type(self.reference).__name__}", "External")
        shape, elements = self.reference.dense_shape(), prod(self.reference.dense_shape())
        whole = not self.span
        good = whole or (len(self.span) == 2 and 0 <= self.span[0] <= self.span[1] <= elements)
        require(good, self, f"part {self.span}", f"a range within {elements}")
        found = tuple(self.residual.shape)
        if whole:
            turned = not self.order or sorted(self.order) == list(range(len(shape)))
            require(turned, self, f"order {self.order}", f"a permutation of {len(shape)}")
            expected = tuple(shape[i] for i in self.order) if self.order else shape
            require(found == expected, self, f"residual of {found}", f"{expected}")
        else:
            require(not self.order, self, f"order {self.order}", "none beside a part")
            require(prod(found) == self.span[1] - self.span[0], self, f"residual of {found}", f"part {self.span}")
        require(
            not self.residual.is_floating_point() and self.residual.dtype != torch.bool,
            self,
            f"residual of {self.residual.dtype}",
            "integers",
        )

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the residual."""
        return tuple(self.residual.shape)

    def to_dense(self) -> Tensor:
        """The exact tensor, in the reference's dtype; nothing in it trains."""
        base = _turned(self.reference.to_dense(), self.span, self.order, self.dense_shape())
        wanted = _WIDER[base.element_size()]
        if self.residual.dtype != wanted:
            raise CompositionError(f"found differences of {self.residual.dtype}, expected {wanted} for {base.dtype}")
        folded = self.residual.long()
        # A logical shift: for 8-byte numbers the top bit of the folded difference is no sign.
        plain = ((folded >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(folded & 1)
        return _from_order(_in_order(base) + plain, base.dtype)


def _turned(tensor: Tensor, part: tuple[int, ...], order: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    if part:
        return tensor.reshape(-1)[part[0] : part[1]].view(shape)
    return tensor.permute(order).contiguous() if order else tensor


def _in_order(tensor: Tensor) -> Tensor:
    """Bit patterns as int64 in the order of the numbers; −0 comes just before +0."""
    size = tensor.element_size()
    raw = tensor.contiguous().view(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
    bits = raw.view(_BITS[size]).long()
    if not tensor.is_floating_point():
        return bits
    # All magnitude bits turned: two's complement of the negative numbers runs the other way. Its own inverse.
    return torch.where(bits < 0, bits ^ ((1 << (8 * size - 1)) - 1), bits)


def _from_order(order: Tensor, dtype: torch.dtype) -> Tensor:
    size = dtype.itemsize
    if dtype.is_floating_point:
        order = torch.where(order < 0, order ^ ((1 << (8 * size - 1)) - 1), order)
    narrow = order.to(_BITS[size])
    return narrow.view(torch.uint8).view(dtype) if dtype == torch.bool else narrow.view(dtype)


def difference(weight: Tensor, external: External, part: tuple[int, ...] = (), order: tuple[int, ...] = ()) -> Delta:
    """The exact difference of a tensor to a bound reference of the same dtype.

    Example:
        >>> base = torch.tensor([1.0, 2.0])
        >>> near = torch.nextafter(base, torch.tensor(9.0))
        >>> difference(near, External.of("w", base)).residual.tolist()
        [2, 2]
    """
    base = _turned(external.to_dense(), part, order, tuple(weight.shape))
    if base.dtype != weight.dtype:
        raise CompositionError(f"{external.name!r}: found {weight.dtype}, expected {base.dtype} as in the reference")
    plain = _in_order(weight) - _in_order(base)  # wraps for 8-byte numbers, and wraps back
    folded = (plain << 1) ^ (plain >> 63)
    return Delta(folded.to(_WIDER[base.element_size()]), external, part, order)


def provide(trees: Mapping[str, Encoding], reference: Mapping[str, Tensor]) -> None:
    """Give every `External` in these trees its numbers.

    Raises:
        DataError: a tensor that the reference lacks, or another one under its name.
    """
    for tree in trees.values():
        for _, node in tree.nodes():
            if isinstance(node, External):
                if node.name not in reference:
                    raise DataError(f"reference: found no tensor {node.name!r}, expected shape {node.weight_shape}")
                node.bind(reference[node.name])
