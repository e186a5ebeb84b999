"""The kinds of dense layers that have sparse counterparts, and what their weights are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast, final

from torch import Tensor, nn

from gossamer.nn.conv import SparseConv2d
from gossamer.nn.layer import SparseLayer
from gossamer.nn.linear import SparseLinear
from gossamer.nn.recurrent import SparseGRU, SparseLSTM, SparseRecurrent

__all__ = ["KINDS", "LayerKind", "keys_of"]


class LayerKind(ABC):
    """A kind of dense layer that has a sparse counterpart: here one with a single weight, which is called so."""

    @abstractmethod
    def accepts(self, module: nn.Module) -> bool:
        """Whether a module is of this kind and computes nothing beside it."""

    @abstractmethod
    def sparse(self, module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        """Its sparse counterpart; parameters are copied.

        Args:
            module: the layer.
            masks: by weight; weights without one are live everywhere.
        """

    @abstractmethod
    def is_sparse(self, module: nn.Module) -> bool:
        """Whether a module is such a counterpart."""

    @abstractmethod
    def dense(self, module: nn.Module) -> nn.Module:
        """The way back."""

    def weights(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the weights within the layer."""
        del module
        return ("weight",)

    def part(self, module: nn.Module, weight: str) -> SparseLayer:
        """Where the counterpart has a weight's live values."""
        del weight
        return cast(SparseLayer, module)

    def name(self, module: str, weight: str) -> str:
        """The name of that part in a network.

        Args:
            module: name of the layer.
            weight: of the weight within it.
        """
        del weight
        return module

    def keys(self, module: str, weight: str) -> tuple[str, ...]:
        """What patterns may call it; the last one is the dense tensor's name."""
        return module, f"{module}.{weight}" if module else weight


@final
class _Linear(LayerKind):
    def accepts(self, module: nn.Module) -> bool:
        # Subclasses are welcome as long as they multiply as Linear does.
        return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward

    def sparse(self, module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        return SparseLinear.of(cast(nn.Linear, module), masks["weight"])

    def is_sparse(self, module: nn.Module) -> bool:
        return isinstance(module, SparseLinear)

    def dense(self, module: nn.Module) -> nn.Module:
        return cast(SparseLinear, module).to_linear()


@final
class _Conv2d(LayerKind):
    def accepts(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
            return False
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def sparse(self, module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        return SparseConv2d.of(cast(nn.Conv2d, module), masks["weight"])

    def is_sparse(self, module: nn.Module) -> bool:
        return isinstance(module, SparseConv2d)

    def dense(self, module: nn.Module) -> nn.Module:
        return cast(SparseConv2d, module).to_conv()


@final
class _Recurrent(LayerKind):
    """A layer with two weights per level and direction, each of which is a sparse layer of the counterpart."""

    def accepts(self, module: nn.Module) -> bool:
        own = isinstance(module, (nn.LSTM, nn.GRU)) and type(module).forward in (nn.LSTM.forward, nn.GRU.forward)
        return own and not cast(nn.RNNBase, module).proj_size

    def sparse(self, module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        if isinstance(module, nn.LSTM):
            return SparseLSTM.of(module, masks)
        return SparseGRU.of(cast(nn.GRU, module), masks)

    def is_sparse(self, module: nn.Module) -> bool:
        return isinstance(module, SparseRecurrent)

    def dense(self, module: nn.Module) -> nn.Module:
        return cast(SparseRecurrent, module).to_dense()

    def weights(self, module: nn.Module) -> tuple[str, ...]:
        return tuple(name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight"))

    def part(self, module: nn.Module, weight: str) -> SparseLayer:
        return cast(SparseRecurrent, module).weights()[weight]

    def name(self, module: str, weight: str) -> str:
        return f"{module}.{weight}" if module else weight

    def keys(self, module: str, weight: str) -> tuple[str, ...]:
        return module, self.name(module, weight)


KINDS: tuple[LayerKind, ...] = (_Linear(), _Conv2d(), _Recurrent())


def keys_of(model: nn.Module, layer: str) -> tuple[str, ...]:
    """What patterns may call a sparse layer of a network; the last one is the dense tensor's name.

    Args:
        model: the network.
        layer: name of the layer.
    """
    owner, _, own = layer.rpartition(".")
    if own and isinstance(model.get_submodule(owner), SparseRecurrent):
        return owner, layer
    return layer, f"{layer}.weight" if layer else "weight"
