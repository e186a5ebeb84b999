"""A checkpoint on disk as a source: kinds from a network on the meta device, or inferred from names and shapes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding, computable
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.errors import DataError
from gossamer.network.inspect import is_finite, plain_tree, specs
from gossamer.store.checkpoint import Checkpoint
from gossamer.store.dtypes import named_dtype

__all__ = ["CheckpointSource"]

_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe|tok\w*)([._]|$)")
_NORM = re.compile(r"norm|(^|[._])ln(_?\w*)?[._]|(^|[._])bn\d*[._]", re.IGNORECASE)
_PIECE = 1 << 20


@final
class CheckpointSource(Source):
    """The tensors of a checkpoint as plain trees, each read when it is asked for.

    Args:
        checkpoint: whose headers have been checked.
        network: of the architecture, best on the meta device; None: kinds are inferred. Names and shapes must agree.

    Raises:
        DataError: a tensor that is missing, left over, or of another shape.
    """

    def __init__(self, checkpoint: Checkpoint, network: nn.Module | None = None) -> None:
        self._checkpoint = checkpoint
        self._where: dict[str, str] = {}
        self._checked: set[str] = set()
        self._specs = self._of(network) if network is not None else tuple(map(self._inferred, checkpoint.arrays))
        self._by_name = {s.name: s for s in self._specs}

    def _inferred(self, name: str) -> TensorSpec:
        array = self._checkpoint.arrays[name][1]
        self._where[name] = name
        dtype = named_dtype(array.dtype)
        return TensorSpec(name, array.shape, dtype, inferred_kind(name, array.shape, dtype))

    def _of(self, network: nn.Module) -> tuple[TensorSpec, ...]:
        listed, arrays = specs(network), self._checkpoint.arrays
        known = {n for s in listed for n in s.names}
        extra = next((n for n in arrays if n not in known), None)
        if extra is not None:
            path = self._checkpoint.shards[arrays[extra][0]].path
            raise DataError(f"{path}: found tensor {extra!r}, expected only those of the network")
        found = []
        for spec in listed:
            name = next((n for n in spec.names if n in arrays), None)
            folder = self._checkpoint.shards[0].path.parent
            if name is None:
                raise DataError(f"{folder}: found no tensor {spec.name!r}, expected shape {spec.shape}")
            number, array = arrays[name]
            if array.shape != spec.shape:
                path = self._checkpoint.shards[number].path
                raise DataError(f"{path}: tensor {name!r}: found shape {array.shape}, expected {spec.shape}")
            self._where[spec.name] = name
            found.append(replace(spec, dtype=named_dtype(array.dtype)))
        return tuple(found)

    def specs(self) -> tuple[TensorSpec, ...]:
        """As the network lists them, or in the order of the files."""
        return self._specs

    def read(self, name: str) -> Encoding:
        """The tensor from its shard.

        Raises:
            DataError: a weight that is not finite (looked for when it is first read), or a shard that is gone.
        """
        spec = self._by_name[name]
        tensor = self._checkpoint.read(self._where[name])
        if name not in self._checked:
            self._refuse_infinite(spec, tensor)
            self._checked.add(name)
        return plain_tree(tensor, spec)

    def outlined(self, name: str) -> Encoding:
        """On the meta device, so that nothing is read."""
        spec = self._by_name[name]
        return plain_tree(torch.empty(spec.shape, dtype=spec.dtype, device="meta"), spec)

    def _refuse_infinite(self, spec: TensorSpec, tensor: Tensor) -> None:
        if spec.kind is Kind.BUFFER or not tensor.is_floating_point():
            return
        if not all(is_finite(p) for p in torch.split(tensor.reshape(-1), _PIECE)):
            bad = sum(int((~computable(p).isfinite()).sum()) for p in torch.split(tensor.reshape(-1), _PIECE))
            path = self._checkpoint.shards[self._checkpoint.arrays[self._where[spec.name]][0]].path
            raise DataError(f"{path}: tensor {spec.name!r}: found {bad} NaN or infinite values, expected none")


def inferred_kind(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Kind:
    """What a tensor probably does, from its name and shape alone.

    Example:
        >>> inferred_kind("model.embed_tokens.weight", (100, 8), torch.float32)
        <Kind.EMBEDDING: 'embedding'>
        >>> inferred_kind("layers.0.mlp.up_proj.weight", (32, 8), torch.float32)
        <Kind.LINEAR: 'linear'>
    """
    last = name.rpartition(".")[2]
    if not dtype.is_floating_point or last in ("running_mean", "running_var", "num_batches_tracked"):
        return Kind.BUFFER
    if "bias" in last:
        return Kind.BIAS
    if len(shape) >= 3:
        return Kind.CONV
    if len(shape) == 2:
        return Kind.EMBEDDING if _EMBEDDING.search(name.lower()) else Kind.LINEAR
    return Kind.NORM if _NORM.search(name) else Kind.OTHER
