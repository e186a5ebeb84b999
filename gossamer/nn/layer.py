"""What all layers with live weights only have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gossamer.errors import FormatError, PlanError
from gossamer.nn.dead import Seen, gradient_at, gradient_everywhere, largest_dead
from gossamer.nn.laid_out import LaidOut, compiled
from gossamer.nn.topology import Topology, index_dtype

__all__ = ["SparseLayer"]


Kind = TypeVar("Kind")


class SparseLayer(nn.Module, ABC):
    """A layer whose parameters are its live weights: gradients and the optimiser's state exist for these only.

    ``state_dict`` holds ``values``, ``positions`` and ``bias``. Loading brings ``values`` and ``positions`` to the
    size of what is loaded: load before the optimiser is made, or give the optimiser its own state of that size.

    Args:
        topology: where the live weights are; its positions become a buffer.
        values: float32 [live]; the tensor becomes the parameter's storage.
        bias: float32 [M], likewise, or None.

    Raises:
        PlanError: there are not as many values as positions, or they are not float32.
    """

    live_values_only: ClassVar[bool] = True  # what looks for dense weights asks for it
    made_by: object | None = None  # the method of training that it was made for: what comes later compares

    values: nn.Parameter
    positions: Tensor
    bias: nn.Parameter | None

    def __init__(self, topology: Topology, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        _check_values(topology, values)
        self.weight_shape = topology.shape
        self._topology = topology
        self.values = nn.Parameter(values.detach())
        self.register_buffer("positions", topology.positions)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))
        self._watched: int | None = None
        self._seen: list[Seen] = []
        self._laid_out: LaidOut[Any] | None = None

    @property
    def topology(self) -> Topology:
        """Where the live weights are."""
        # Moving the module to another device, or loading with `assign`, puts another tensor into the buffer.
        if self._topology.positions is not self.positions:
            self._topology = Topology(self.weight_shape, self.positions)
        return self._topology

    def dense_weight(self) -> Tensor:
        """The weight with its zeros, of `weight_shape`; differentiable in the values."""
        return self.topology.dense(self.values)

    def set_topology(self, topology: Topology, values: Tensor) -> None:
        """Other live weights, in the same Parameter object; its gradient is dropped, a watched step forgotten.

        Args:
            topology: of the same shape.
            values: float32 [live], copied.

        Raises:
            PlanError: the shape differs, or there are not as many values as positions.
        """
        if topology.shape != self.weight_shape:
            raise PlanError(f"topology: found shape {topology.shape}, expected {self.weight_shape}")
        _check_values(topology, values)
        with torch.no_grad():
            if values.numel() == self.values.numel():
                self.values.copy_(values)
            else:
                self._store(values.detach().to(self.values.device, copy=True))
        self.values.grad = None
        self.positions = topology.positions.to(self.positions.device)
        self._topology = topology if self.positions is topology.positions else Topology(topology.shape, self.positions)
        self._laid_out = None
        self.watch(None)

    def _store(self, values: Tensor) -> None:
        """Another number of values in the same Parameter; its gradient is dropped.

        The graph of a loss that is still at hand keeps the node that accumulates gradients, and with it the old size;
        PyTorch makes a new node where the dtype changes.
        """
        self.values.grad = None
        self.values.data = torch.zeros(0, dtype=torch.float64)
        self.values.data = values

    def watch(self, k: int | None) -> None:
        """From now on passes are kept, for `dead_gradient` to look through; None ends this and forgets them.

        Call it before the forward pass.

        Several passes add up, as gradients do (accumulation, a layer used twice). Kept are the layer's input and the
        gradient of its output, by reference: tokens · (K + M) floats per pass, nothing of the size of the weight.

        Args:
            k: how many dead positions are wanted.

        Raises:
            PlanError: k is negative.
        """
        if k is not None and k < 0:
            raise PlanError(f"watch: found k = {k}, expected at least 0 or None")
        self._watched, self._seen = k, []

    def dead_gradient(
        self, *, release: bool = True, exact: bool = True, most: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """The k dead positions with the largest |dW| of the watched passes, summed over these.

        Args:
            release: whether the watch ends and the passes are forgotten; with False `gradient_at` may follow.
            exact: whether no more than k are wanted, by size; else there may be smaller ones beside them, and they come
                by position, which takes less time; and they may be those of activations rounded to bfloat16 (8 bits;
                sums are float32), where the processor multiplies these faster.
            most: k; None: what `watch` was told.

        Returns:
            positions [≤ k], int32 or int64, and gradients [≤ k] in the values' type, the largest first, of equal ones
            the lowest position first (if not exact: k or more, up to all dead ones, by position); None if nothing was
            watched or no backward pass came.

        Cost: that of the dense weight gradient in time (every few hundred steps), a quarter of a million floats
            and a copy of the activations in memory.
        """
        if self._watched is None or not self._seen:
            return None
        k = self._watched if most is None else most
        found = largest_dead(self._seen, self._matrix(), k, exact=exact)
        if release:
            self.watch(None)
        return found

    def gradient_at(self, positions: Tensor) -> Tensor | None:
        """dW of the watched passes at any positions, dead or live: for ranks that have to agree on a sum.

        Args:
            positions: integers [n], flat, ascending.

        Returns:
            float32 [n]; None if nothing was watched or no backward pass came.
        """
        if not self._seen:
            return None
        rows, columns = self._matrix().shape
        return gradient_at(self._seen, (rows, columns), positions)

    def gradient_everywhere(self, *, rounded: bool = False) -> Tensor | None:
        """dW of the watched passes at all positions: the dense gradient.

        Args:
            rounded: whether that of activations rounded to bfloat16 will do, where the processor multiplies these
                faster.

        Returns:
            float32 [size]; None if nothing was watched or no backward pass came.
        """
        if not self._seen:
            return None
        rows, columns = self._matrix().shape
        return gradient_everywhere(self._seen, (rows, columns), rounded=rounded)

    def _matrix(self) -> Topology:
        """The topology of the weight as [M, everything else]."""
        rows, *others = self.weight_shape
        columns = 1
        for n in others:
            columns *= n
        return self.topology if len(others) == 1 else Topology((rows, columns), self.positions)

    def saw(self, seen: Seen) -> None:
        """Keeps a backward pass, if it is watched. For the layer's own backward."""
        if self._watched is not None:
            self._seen.append(seen)

    @property
    def watching(self) -> bool:
        """Whether backward passes are being kept."""
        return self._watched is not None

    def laid_out(self, lay_out: Callable[[Tensor], Kind]) -> Kind | None:
        """The places laid out for compiled kernels; None where there are none for this device or type.

        Args:
            lay_out: makes it of positions, the same at every call.

        Cost: some dozen nanoseconds per live value when the topology is new, else nothing.
        """
        if not self.positions.is_cpu or self.values.dtype is not torch.float32 or not compiled():
            return None
        if self._laid_out is None or not self._laid_out.serves(self.positions):
            self._laid_out = LaidOut(lay_out, self.positions, self._laid_out)
        made: Kind = self._laid_out.made
        return made

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        values, positions = (state_dict.get(prefix + name) for name in ("values", "positions"))
        if isinstance(values, Tensor) and isinstance(positions, Tensor):
            self._resize(values, positions, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _resize(self, values: Tensor, positions: Tensor, prefix: str) -> None:
        kind = index_dtype(self.weight_shape)
        if positions.dtype not in (torch.int32, torch.int64):
            raise FormatError(f"{prefix}positions: found {positions.dtype}, expected {kind}")
        try:
            topology = Topology(self.weight_shape, positions.detach().to(kind))
        except PlanError as error:
            raise FormatError(f"{prefix}positions: {error}") from error
        if values.shape != positions.shape:
            found = f"found {tuple(values.shape)} values, {tuple(positions.shape)} positions"
            raise FormatError(f"{prefix}values: {found}, expected as many of one as of the other")
        if topology.live != self.values.numel():
            self._store(self.values.data.new_zeros(topology.live))
        # A new buffer: the old one may be part of a Topology that somebody else holds.
        self.positions = topology.positions.to(self.positions.device, copy=True)
        self._topology = Topology(self.weight_shape, self.positions)
        self.watch(None)

    def __getstate__(self) -> dict[str, Any]:
        # Copies do not go on with a watched step: what it saw belongs to a graph of the original.
        return {**self.__dict__, "_watched": None, "_seen": [], "_laid_out": None}

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        shape = ", ".join(str(n) for n in self.weight_shape)
        live, bias = self.values.numel(), self.bias is not None
        return f"{shape}, bias={bias}, live={live}, sparsity={self.topology.sparsity:.4f}"


def _check_values(topology: Topology, values: Tensor) -> None:
    if values.dtype is not torch.float32 or values.shape != topology.positions.shape:
        found = f"found {tuple(values.shape)} {values.dtype}"
        raise PlanError(f"values: {found}, expected ({topology.live},) torch.float32, one per live position")
