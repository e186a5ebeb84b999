"""Where trees come from: a network in memory, trees that are there already; `checkpoint` has those on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import nn

from gossamer.encoding.node import Encoding, computable
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.errors import DataError
from gossamer.network.inspect import is_finite, plain_tree, specs, tensors

_STORABLE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)

__all__ = ["ModelSource", "Source", "TreeSource"]


class Source(ABC):
    """Delivers one tensor's tree at a time; drivers never ask for all of them at once."""

    @abstractmethod
    def specs(self) -> tuple[TensorSpec, ...]:
        """All tensors, known before any is read."""

    @abstractmethod
    def read(self, name: str) -> Encoding:
        """The tree of one tensor, output dimension first inside."""

    def outlined(self, name: str) -> Encoding:
        """A tree of the same skeleton and shapes, whose numbers do not matter; where it can be, nothing is read."""
        return self.read(name)


@final
class ModelSource(Source):
    """The parameters and buffers of a network as plain trees."""

    def __init__(self, model: nn.Module) -> None:
        self._specs = specs(model)
        self._tensors = tensors(model)
        self._by_name = {s.name: s for s in self._specs}

    def specs(self) -> tuple[TensorSpec, ...]:
        """As the network lists them."""
        return self._specs

    def read(self, name: str) -> Encoding:
        """`Dense`; a `View` of it where the input dimension comes first; a `Concat` of a recurrent layer's gates.

        Raises:
            DataError: a weight that is not finite.
        """
        spec, tensor = self._by_name[name], self._tensors[name]
        if tensor.dtype not in _STORABLE:
            raise DataError(f"tensor {name!r}: found {tensor.dtype}, expected real floats, integers or booleans")
        if spec.kind is not Kind.BUFFER and not is_finite(tensor):
            bad = int((~computable(tensor).isfinite()).sum())
            raise DataError(f"tensor {name!r}: found {bad} NaN or infinite of {tensor.numel()} values, expected none")
        return plain_tree(tensor, spec)


@final
class TreeSource(Source):
    """Trees in memory."""

    def __init__(self, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> None:
        self._specs, self._trees = tuple(specs), trees

    def specs(self) -> tuple[TensorSpec, ...]:
        """As given."""
        return self._specs

    def read(self, name: str) -> Encoding:
        """As given."""
        return self._trees[name]
