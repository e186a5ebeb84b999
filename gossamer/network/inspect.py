"""Which tensors a network has, what each does, and which names mean the same one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gossamer.encoding.node import Encoding, computable
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Concat, View
from gossamer.errors import CompositionError

__all__ = [
    "assign",
    "is_finite",
    "is_plain",
    "is_transformers_conv1d",
    "owner_of",
    "plain_tree",
    "refuse_live_only",
    "specs",
    "tensors",
]

_GATES: tuple[tuple[type[nn.Module], int], ...] = (
    *((nn.LSTM, 4), (nn.LSTMCell, 4), (nn.GRU, 3), (nn.GRUCell, 3), (nn.RNN, 1), (nn.RNNCell, 1)),
)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def refuse_live_only(model: nn.Module, what: str) -> None:
    """Refuse layers of sparse training, whose weights are not where everything else looks for them.

    Args:
        model: any network.
        what: the caller's name.

    Raises:
        CompositionError: the network has such layers.
    """
    for name, module in model.named_modules():
        if getattr(type(module), "live_values_only", False):
            found = f"found {name or 'the network'}, a {type(module).__name__} that holds its live weights only"
            raise CompositionError(
                f"{what}: {found}, expected gs.train.harvest(network) first: it has lower() and dense()"
            )


def owner_of(name: str) -> tuple[str, str]:
    """Split ``a.b.weight`` into the module's name and the tensor's."""
    module, _, tensor = name.rpartition(".")
    return module, tensor


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    # remove_duplicate=False: a module used under two names makes its tensors tied under two names.
    for module_name, module in model.named_modules(remove_duplicate=False):
        prefix = module_name + "." if module_name else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, module, parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, module, buffer


def _kind(module: nn.Module, tensor_name: str) -> Kind:
    if tensor_name in module._buffers:
        return Kind.BUFFER
    if "bias" in tensor_name:
        return Kind.BIAS
    if _gates(module) and tensor_name.startswith("weight_"):
        return Kind.RECURRENT
    kinds = ((_ConvNd, Kind.CONV), (nn.Linear, Kind.LINEAR), (nn.Embedding, Kind.EMBEDDING), (_NORMS, Kind.NORM))
    for types, kind in kinds:
        if isinstance(module, types):
            return kind
    if is_transformers_conv1d(module) or (
        isinstance(module, nn.MultiheadAttention) and tensor_name.endswith("proj_weight")
    ):
        return Kind.LINEAR
    return Kind.OTHER


def _gates(module: nn.Module) -> int:
    """Gates of a recurrent layer, 0 for any other."""
    return next((gates for kind, gates in _GATES if isinstance(module, kind)), 0)


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether this is the Linear layer of transformers whose weight is [inputs, outputs]."""
    # By name, so that transformers is not imported for networks that do not use it.
    return any((c.__module__, c.__name__) == ("transformers.pytorch_utils", "Conv1D") for c in type(module).__mro__)


def _output_first(module: nn.Module, kind: Kind, tensor: Tensor) -> tuple[int, ...]:
    transposed = isinstance(module, _ConvTransposeNd) and kind is Kind.CONV
    if transposed or (is_transformers_conv1d(module) and kind is Kind.LINEAR):
        return (1, 0, *range(2, tensor.dim()))
    return ()


def specs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """All parameters and persistent buffers of a network, ties found by object identity; also on the meta device.

    Example:
        >>> [s.name for s in specs(nn.Linear(2, 3))]
        ['weight', 'bias']
    """
    found: dict[int, TensorSpec] = {}
    for name, module, tensor in _named(model):
        if id(tensor) in found:
            first = found[id(tensor)]
            if name not in first.names:
                found[id(tensor)] = _with_alias(first, name)
            continue
        kind = _kind(module, owner_of(name)[1])
        found[id(tensor)] = TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            kind=kind,
            output_first=_output_first(module, kind, tensor),
            groups=module.groups if isinstance(module, _ConvNd) else 1,
            gates=_gates(module) if kind is Kind.RECURRENT and "_hr_" not in name else 1,
        )
    return tuple(found.values())


def _with_alias(spec: TensorSpec, name: str) -> TensorSpec:
    return replace(spec, aliases=(*spec.aliases, name))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer by canonical name, detached."""
    found: dict[int, str] = {}
    result: dict[str, Tensor] = {}
    for name, _, tensor in _named(model):
        if id(tensor) not in found:
            found[id(tensor)] = name
            result[name] = tensor.detach()
    return result


def plain_tree(tensor: Tensor, spec: TensorSpec) -> Encoding:
    """The tree of a tensor to which nothing was done; the weight in it is output-first, gate by gate."""
    fixed = spec.kind is Kind.BUFFER
    if spec.output_first:
        return View(Dense(tensor.permute(spec.output_first).contiguous(), fixed), spec.output_first)
    if spec.gates > 1:
        return Concat(tuple(Dense(gate, fixed) for gate in tensor.chunk(spec.gates)))
    return Dense(tensor, fixed)


def is_plain(tree: Encoding, dtype: torch.dtype) -> bool:
    """Whether a tree is just its numbers in their logical dtype, perhaps in another orientation or gate by gate."""
    parts = tree.members if isinstance(tree, Concat) else (tree.inner if isinstance(tree, View) else tree,)
    return all(isinstance(part, Dense) and part.array.dtype == dtype for part in parts)


def assign(model: nn.Module, names: tuple[str, ...], tensor: Tensor) -> None:
    """Put a tensor into a network under all its names, as one parameter or buffer."""
    new: nn.Parameter | None = None
    for name in names:
        owner, key = owner_of(name)
        module = model.get_submodule(owner)
        if key in module._buffers:
            module._buffers[key] = tensor
            continue
        if new is None:
            old = module._parameters[key]
            new = nn.Parameter(tensor, requires_grad=tensor.is_floating_point() and (old is None or old.requires_grad))
        module._parameters[key] = new


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is a number; integers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(computable(tensor)).all())
