"""Feature-major activations, and the layers that pass them on without transposing: Linear, LayerNorm, sums."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import TILES, Way
from gossamer.runtime.grouped import GroupedProduct, describe
from gossamer.runtime.kernels import PackKernels, TileKernels, load
from gossamer.runtime.linear import checked_rows
from gossamer.runtime.threads import OpenMP, openmp
from gossamer.runtime.value_code import Stored
from gossamer.runtime.value_forms import Grid

__all__ = ["Combine", "GroupedLinear", "Pack", "TiledLinear", "TiledNorm", "Tiler", "Tiles", "Unpack", "tiler"]

_WORTH_A_TEAM = 1 << 16
"""Floats from which on a change of layout or an elementwise layer is worth a team of threads."""

_SMALLER_COSTS = {1: 1.5, 2: 1.15, 4: 1.0}
"""Time per token of a tile of so many vectors, roughly: narrow ones use less of each weight that is read."""


@final
class Tiles:
    """Activations [*outer, features] as tiles [tiles, features, tile]; lanes beyond the last token repeat it.

    Args:
        data: float32, contiguous, aligned to a vector.
        outer: all dimensions but the last.
        tokens: their product.
        dtype: of the rows that it came from and becomes again, float32 or bfloat16.
    """

    __slots__ = ("data", "dtype", "outer", "tokens")

    def __init__(self, data: Tensor, outer: tuple[int, ...], tokens: int, dtype: torch.dtype = torch.float32) -> None:
        self.data = data
        self.outer = outer
        self.tokens = tokens
        self.dtype = dtype

    @property
    def shape(self) -> torch.Size:
        """As the rows would have it."""
        return torch.Size((*self.outer, self.data.shape[1]))

    @property
    def ndim(self) -> int:
        """As the rows would have it."""
        return len(self.outer) + 1

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As the rows would have it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As the rows would have it."""
        return self.ndim


@final
class Tiler:
    """The operations on tiles at one instruction set. Immutable.

    Args:
        kernels: compiled code.
        pool: where threads come from.
    """

    def __init__(self, kernels: TileKernels, pool: OpenMP) -> None:
        self.kernels = kernels
        self.openmp = pool
        self._description = describe(pool)
        self._address: int = self._description.ctypes.data
        self._lanes = kernels.processor.lanes

    def __deepcopy__(self, memo: dict[int, Any]) -> Tiler:
        return self

    def vectors(self, tokens: int) -> int:
        """Vectors per tile that waste little on so many tokens."""
        if tokens <= self._lanes:
            return 1

        def cost(vectors: int) -> float:
            tile = vectors * self._lanes
            return _SMALLER_COSTS[vectors] * tile * -(-tokens // tile)

        return min(reversed(TILES), key=cost)

    def pack(self, x: Tensor) -> Tiles:
        """float32 or bfloat16 [..., features] → tiles."""
        features = x.shape[-1]
        dtype = torch.bfloat16 if x.dtype is torch.bfloat16 else torch.float32
        rows = checked_rows(x, features, "feature-major layers", dtype)
        tokens = rows.shape[0]
        vectors = self.vectors(tokens)
        tile = vectors * self._lanes
        made = x.new_empty(-(-tokens // tile), features, tile, dtype=torch.float32)
        threads = self._threads(tokens * features)
        stride = rows.stride()[0] if tokens > 1 else features
        change = self.kernels.pack_brain if dtype is torch.bfloat16 else self.kernels.pack
        change(self._address, rows.data_ptr(), stride, made.data_ptr(), tokens, features, vectors, threads)
        return Tiles(made, tuple(x.shape[:-1]), tokens, dtype)

    def unpack(self, x: Tiles) -> Tensor:
        """Tiles → [..., features], contiguous, of their dtype: bfloat16 is rounded to, ties to even."""
        _, features, tile = x.data.shape
        made = x.data.new_empty(*x.outer, features, dtype=x.dtype)
        threads = self._threads(x.tokens * features)
        vectors = tile // self._lanes
        change = self.kernels.unpack_brain if x.dtype is torch.bfloat16 else self.kernels.unpack
        change(self._address, x.data.data_ptr(), made.data_ptr(), features, x.tokens, features, vectors, threads)
        return made

    def normalise(self, x: Tiles, gain: Tensor, shift: Tensor, epsilon: float) -> Tiles:
        """LayerNorm over features."""
        tiles, features, tile = x.data.shape
        made = x.data.new_empty(tiles, features, tile)
        self.kernels.normalise(
            self._address,
            x.data.data_ptr(),
            made.data_ptr(),
            gain.data_ptr(),
            shift.data_ptr(),
            features,
            tiles,
            tile // self._lanes,
            struct.unpack("<I", struct.pack("<f", epsilon))[0],
            self._threads(made.numel()),
        )
        return Tiles(made, x.outer, x.tokens, x.dtype)

    def combine(self, a: Tiles, b: Tiles | None, activation: Activation) -> Tiles:
        """f(a) + b."""
        made = a.data.new_empty(*a.data.shape)
        self.kernels.combine(
            self._address,
            a.data.data_ptr(),
            0 if b is None else b.data.data_ptr(),
            made.data_ptr(),
            int(activation),
            made.numel() // self._lanes,
            self._threads(made.numel()),
        )
        return Tiles(made, a.outer, a.tokens, _promoted(a, b))

    def _threads(self, floats: int) -> int:
        return 1 if floats < _WORTH_A_TEAM else self.openmp.threads()


def tiler(level: Level | None = None) -> Tiler:
    """Operations at an instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: kernels cannot be compiled here.
    """
    if reason := unavailable():
        raise PlanError(f"sparse kernels: {reason}, expected a processor that LLVM can compile for at run time")
    return _tiler(wanted_level() if level is None else level)


@cache
def _tiler(level: Level) -> Tiler:
    return Tiler(load(TileKernels, host(level), cache_directory()), openmp())


@final
class GroupedLinear(nn.Module):
    """y = f(x·Wᵀ + b) for a weight W [M, K] with zeros in groups of rows; on the CPU, without gradients.

    A drop-in replacement of ``torch.nn.Linear``: tiles are packed and unpacked inside. Between layers that take tiles,
    `TiledLinear` with the same product saves that.

    Args:
        weight: float32 or bfloat16 [M, K], which inputs and outputs then are too; copied.
        bias: [M] or None; copied.
        way: how a group's non-zeros are ordered.
        width: columns per panel; None to choose.
        stored: how values are stored; all formats hold them exactly.
        grid: what the weight is made of, for `Stored.INTEGERS`.
        activation: f.
        level: instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: the format does not hold the values.

    Example:
        >>> import torch
        >>> layer = GroupedLinear(torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]), None, Way.SLICED)
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]]))
        tensor([[20., -1.]])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        way: Way,
        *,
        width: int | None = None,
        stored: Stored = Stored.FLOATS,
        grid: Grid | None = None,
        activation: Activation = Activation.NONE,
        level: Level | None = None,
    ) -> None:
        super().__init__()
        self._tiler = tiler(level)
        self.dtype = weight.dtype
        dense = weight.detach().cpu().float().contiguous().numpy()
        self.product = GroupedProduct(
            dense,
            None if bias is None else bias.detach().cpu().float().numpy(),
            activation=activation,
            kernels=self._tiler.kernels,
            packers=load(PackKernels, self._tiler.kernels.processor, cache_directory()),
            openmp=self._tiler.openmp,
            way=way,
            width=width,
            stored=stored,
            grid=grid,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., M], of the weight's dtype.

        Raises:
            RuntimeError: x has another dtype, device or width, or a gradient is asked for.
        """
        if x.ndim == 0 or x.shape[-1] != self.product.columns or x.dtype is not self.dtype:
            checked_rows(x, self.product.columns, "GroupedLinear", self.dtype)
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.product.rows)
        packed = self._tiler.pack(x)
        return self._tiler.unpack(Tiles(self.product(packed.data), packed.outer, packed.tokens, self.dtype))

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self.product.resident_bytes

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        p = self.product
        zeros = 1 - p.nonzeros / max(1, p.columns * p.rows)
        way = p.way.name.lower()
        return f"in_features={p.columns}, out_features={p.rows}, sparsity={zeros:.3f}, {way}, panels of {p.width}"


@final
class Pack(nn.Module):
    """Where feature-major layers begin."""

    def __init__(self, operations: Tiler) -> None:
        super().__init__()
        self._tiler = operations

    def forward(self, x: Tensor) -> Tiles:
        """float32 or bfloat16 [..., features] → tiles."""
        return self._tiler.pack(x)


@final
class Unpack(nn.Module):
    """Where feature-major layers end."""

    def __init__(self, operations: Tiler) -> None:
        super().__init__()
        self._tiler = operations

    def forward(self, x: Tiles) -> Tensor:
        """Tiles → [..., features]."""
        return self._tiler.unpack(x)


@final
class TiledLinear(nn.Module):
    """f(W·X + b) + R from tiles to tiles."""

    def __init__(self, product: GroupedProduct, operations: Tiler) -> None:
        super().__init__()
        self.product = product
        self._tiler = operations

    def forward(self, x: Tiles, residual: Tiles | None = None) -> Tiles:
        """Tiles of K features → tiles of M.

        Raises:
            RuntimeError: x has another number of features.
        """
        _check_features(x, self.product.columns)
        if residual is None or (residual.outer == x.outer and residual.data.shape[1] == self.product.rows):
            made = self.product(x.data, None if residual is None else residual.data)
            return Tiles(made, x.outer, x.tokens, _promoted(x, residual))
        return _broadcast(self._tiler, Tiles(self.product(x.data), x.outer, x.tokens, x.dtype), residual)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self.product.resident_bytes


@final
class TiledNorm(nn.Module):
    """LayerNorm from tiles to tiles."""

    def __init__(self, norm: nn.LayerNorm, operations: Tiler) -> None:
        super().__init__()
        self._tiler = operations
        (features,) = norm.normalized_shape
        gain, shift = (cast("Tensor | None", t) for t in (norm.weight, norm.bias))
        self.epsilon = norm.eps
        self.gain = (
            torch.ones(features, dtype=torch.float32, device="cpu")
            if gain is None
            else gain.detach().float().contiguous().clone()
        )
        self.shift = (
            torch.zeros(features, dtype=torch.float32, device="cpu")
            if shift is None
            else shift.detach().float().contiguous().clone()
        )

    def forward(self, x: Tiles) -> Tiles:
        """Normalised over features.

        Raises:
            RuntimeError: x has another number of features.
        """
        _check_features(x, self.gain.shape[0])
        return self._tiler.normalise(x, self.gain, self.shift, self.epsilon)


@final
class Combine(nn.Module):
    """f(a) + b from tiles to tiles, where no product could do it at the store."""

    def __init__(self, activation: Activation, operations: Tiler) -> None:
        super().__init__()
        self.activation = activation
        self._tiler = operations

    def forward(self, a: Tiles, b: Tiles | None = None) -> Tiles:
        """Elementwise."""
        if b is None or (b.outer == a.outer and b.data.shape[1] == a.data.shape[1]):
            return self._tiler.combine(a, b, self.activation)
        return _broadcast(self._tiler, self._tiler.combine(a, None, self.activation), b)


def _check_features(x: Tiles, features: int) -> None:
    if x.data.shape[1] != features:  # kernels would read beyond the end
        raise RuntimeError(f"feature-major layer: found {x.data.shape[1]} features, expected {features}")


def _promoted(a: Tiles, b: Tiles | None) -> torch.dtype:
    return a.dtype if b is None or b.dtype is a.dtype else torch.float32


def _broadcast(operations: Tiler, a: Tiles, b: Tiles) -> Tiles:
    """a + b of unequal shapes, which were equal for the example inputs: PyTorch knows what that means."""
    return operations.pack(operations.unpack(a) + operations.unpack(b))
