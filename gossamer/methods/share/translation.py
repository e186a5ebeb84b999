"""Translation: a fully connected layer whose weights depend on distances only is stored as a convolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.convolutional import Convolutional, fits_grids
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Ask, Evidence, Method, Plan, Rule, Site, Step, Summary, check_fraction

__all__ = ["Translation"]

_ROWS = 64  # rows between two looks at whether a layout can still be near enough
_ROUNDING = 1e-14  # of ‖w‖²: what a perfect convolution seems to lose in float64
CONVOLUTIONAL = Skeleton(Convolutional, (("kernel", DENSE),))


@dataclass(frozen=True)
class _Layout:
    """How a matrix may be read as a convolution: sizes along the two axes."""

    output_grid: tuple[int, int]
    input_grid: tuple[int, int]
    stride: tuple[int, int]

    def channels(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0] // prod(self.output_grid), shape[1] // prod(self.input_grid)


@dataclass(frozen=True)
class _Fit:
    """A layout with its smallest window that is near enough."""

    layout: _Layout
    offset: tuple[int, int]
    window: tuple[int, int]
    numbers: int


@final
@dataclass(frozen=True, kw_only=True)
class Translation(Method):
    """Find layers that are nearly convolutional or Toeplitz, and store their kernels.

    A matrix [c_out · outputs, c_in · inputs] is taken if a kernel exists with ‖w − convolution‖ ≤ tolerance · ‖w‖: its
    entries are the means over all weights of the same distance, its window the smallest that is near enough. Of
    several readings of a matrix the one with the fewest numbers wins; layers that have none stay as they are.

    Local sharing: with several tiles, outputs in different parts of the output grid have kernels of their own.

    Args:
        tolerance: largest relative error, 0 to 1. Weights without structure have errors of about 1.
        input_grid: (height, width) of the input positions; (1, n) for sequences. None: every square grid and every
            sequence that divides the inputs.
        output_grid: of the output positions, or None.
        stride: input positions per output position, or None: 1 and 2, and what maps one grid to the other.
        tiles: parts of the output grid along each axis.

    Cost: one pass over a part of the weights per candidate for layers that are far from it, one whole pass else.

    Exact: a convolution written out as a matrix is found and reproduced, up to rounding of means of equal numbers.

    Example:
        >>> Translation(tolerance=0.1, input_grid=(28, 28)).tiles
        (1, 1)

    Source: LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition; Le et al. 2010, Tiled
    convolutional neural networks.
    """

    leaves_some: ClassVar[bool] = True

    tolerance: float
    input_grid: tuple[int, int] | None = None
    output_grid: tuple[int, int] | None = None
    stride: int | None = None
    tiles: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        check_fraction("Translation: tolerance", self.tolerance)
        for name in ("input_grid", "output_grid", "tiles"):
            found = getattr(self, name)
            if found is not None and (len(found) != 2 or min(found) < 1):
                raise PlanError(f"Translation: {name}: found {found}, expected two sizes of at least 1")
        if self.stride is not None and self.stride < 1:
            raise PlanError(f"Translation: stride: found {self.stride}, expected at least 1")

    def rules(self) -> tuple[Rule, ...]:
        """Dense matrices become kernels."""
        return (Rule(DENSE, lambda _: CONVOLUTIONAL),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Kernels are means of plain weights: look for them first, then prune, quantize or share the kernels"

    def refuses(self, site: Site) -> str:
        """What is not a matrix, or of sizes that no grid divides."""
        if len(site.shape) != 2 or not prod(site.shape):
            return f"found shape {site.shape}, expected a matrix of outputs × inputs"
        if next(self._layouts(site.shape), None) is None:
            return f"found shape {site.shape}, expected sizes that the grids and tiles divide"
        return ""

    @property
    def observes(self) -> bool:
        """Values decide."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """The layout with the fewest numbers that is near enough, as JSON, or nothing."""
        w = weight.to_dense().detach().double()
        square = float(w.square().sum())
        best: _Fit | None = None
        for layout in self._layouts(site.shape):
            fit = self._fit(w, square, layout) if self._possible(w, square, layout) else None
            if fit is not None and fit.numbers < (prod(site.shape) if best is None else best.numbers):
                best = fit
        if best is None:
            return {}
        entry = {
            "output_grid": list(best.layout.output_grid),
            "input_grid": list(best.layout.input_grid),
            "stride": list(best.layout.stride),
            "offset": list(best.offset),
            "window": list(best.window),
        }
        return {"entry": entry}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """A step for each layer that is a convolution."""
        found = [(s.key, summaries[s.key].get("entry")) for s in sites]
        why = f"found no smaller convolution within a relative error of {self.tolerance}"
        steps = tuple(Step((key,), entry) for key, entry in found if entry is not None)
        return Plan(steps, skipped={key: why for key, entry in found if entry is None})

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """The kernel of one site: means over equal distances."""
        w = weight.to_dense().detach()
        grids = (_pair(entry["output_grid"]), _pair(entry["input_grid"]), _pair(entry["stride"]))
        layout, offset, window = _Layout(*grids), _pair(entry["offset"]), _pair(entry["window"])
        total, count = _sums(w.double(), layout, self.tiles)  # [c_out, c_in, tiles, distances, tiles, distances]
        start = [o - low for o, low in zip(offset, _lowest(layout), strict=True)]
        mean = (total / count.clamp_min(1))[:, :, :, start[0] : start[0] + window[0]]
        mean = mean[..., start[1] : start[1] + window[1]].permute(2, 4, 0, 1, 3, 5)
        kernel = mean.reshape(-1, *mean.shape[3:]).to(w.dtype).contiguous()
        return Convolutional(Dense(kernel), *grids, offset, self.tiles)

    def _layouts(self, shape: tuple[int, ...]) -> Iterator[_Layout]:
        for output_grid in _grids(shape[0], self.output_grid):
            full = all(ceil(o / ceil(o / t)) == t for o, t in zip(output_grid, self.tiles, strict=True))
            for input_grid in _grids(shape[1], self.input_grid) if full else ():
                flat = output_grid[0] == input_grid[0] == 1
                if not flat and 1 in (output_grid[0], input_grid[0]):
                    continue
                for s in sorted(
                    {1, 2, max(1, input_grid[1] // output_grid[1])} if self.stride is None else {self.stride}
                ):
                    layout = _Layout(output_grid, input_grid, (1 if flat else s, s))
                    # With tiles it may be the window alone that saves: each output of a locally connected layer.
                    shares = prod(_distances(layout)) < prod(output_grid) * prod(input_grid)
                    if shares or self.tiles != (1, 1):
                        yield layout

    def _possible(self, w: Tensor, square: float, layout: _Layout) -> bool:
        """Whether neighbouring outputs are alike enough; stops looking as soon as they are not.

        Two weights a, b of the same distance are both near their mean m: (a − b)² ≤ 2(a − m)² + 2(b − m)². Each is in
        two such pairs along an axis, so all pairs together are at most 4 · error².
        """
        bound = 4 * (self.tolerance**2 + _ROUNDING) * square
        outputs, _ = layout.channels(tuple(w.shape))
        step = max(1, _ROWS // prod(layout.output_grid))
        seen = [0.0, 0.0]
        for first in range(0, outputs, step):
            rows = w.view(outputs, *layout.output_grid, -1, *layout.input_grid)[first : first + step]
            for axis in (0, 1):
                seen[axis] += _unlike(rows, axis, layout.stride[axis], self.tiles[axis])
            if max(seen) > bound:
                return False
        return True

    def _fit(self, w: Tensor, square: float, layout: _Layout) -> _Fit | None:
        """The smallest window that is near enough, found by taking the least useful side away again and again."""
        total, count = _sums(w, layout, self.tiles)
        gain = (total.square() / count.clamp_min(1)).sum((0, 1, 2, 4))  # what each distance explains of ‖w‖²
        spare = float(gain.sum()) - square * (1 - self.tolerance**2 - _ROUNDING)
        if spare < 0:
            return None
        top, left, (bottom, right) = 0, 0, gain.shape
        while True:
            inside = gain[top:bottom, left:right]
            sides = []
            if bottom - top > 1:
                sides += [(float(inside[i].sum()) / (right - left), right - left, i, 0) for i in (0, -1)]
            if right - left > 1:
                sides += [(float(inside[:, i].sum()) / (bottom - top), bottom - top, i, 1) for i in (0, -1)]
            affordable = [side for side in sides if side[0] * side[1] <= spare]
            if not affordable:
                break
            mean, length, i, axis = min(affordable)
            spare -= mean * length
            top, bottom = top + (axis == 0 and i == 0), bottom - (axis == 0 and i == -1)
            left, right = left + (axis == 1 and i == 0), right - (axis == 1 and i == -1)
        low = _lowest(layout)
        window = (bottom - top, right - left)
        sizes = zip(window, self.tiles, layout.output_grid, layout.input_grid, strict=True)
        if not all(fits_grids(*along) for along in sizes):
            return None
        outputs, inputs = layout.channels(tuple(w.shape))
        return _Fit(layout, (low[0] + top, low[1] + left), window, prod(self.tiles) * outputs * inputs * prod(window))


def _pair(found: Sequence[int]) -> tuple[int, int]:
    return int(found[0]), int(found[1])


def _grids(size: int, given: tuple[int, int] | None) -> Iterable[tuple[int, int]]:
    """Grids whose positions divide a size: the given one, or squares and sequences of at least two."""
    if given is not None:
        return [given] if size % prod(given) == 0 else []
    squares = [(n, n) for n in range(2, size + 1) if n * n <= size and size % (n * n) == 0]
    return [*squares, *((1, n) for n in range(2, size + 1) if size % n == 0)]


def _distances(layout: _Layout) -> tuple[int, int]:
    """Number of different distances of input from output positions along each axis."""
    high, wide = (i + (o - 1) * s for o, i, s in zip(layout.output_grid, layout.input_grid, layout.stride, strict=True))
    return high, wide


def _lowest(layout: _Layout) -> tuple[int, int]:
    """The smallest distance along each axis."""
    return -(layout.output_grid[0] - 1) * layout.stride[0], -(layout.output_grid[1] - 1) * layout.stride[1]


def _sums(w: Tensor, layout: _Layout, tiles: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sum and number of all weights of the same channels, tile and distance.

    Returns:
        [c_out, c_in, tiles, distances, tiles, distances] and [tiles, distances, tiles, distances], vertical first.
    """
    (oy, ox), (iy, ix) = layout.output_grid, layout.input_grid
    outputs, inputs = layout.channels(tuple(w.shape))
    sizes = _distances(layout)
    places = [_places(layout, tiles[axis], axis) for axis in (0, 1)]
    x = w.view(outputs, oy, ox, inputs, iy, ix).permute(0, 3, 1, 4, 2, 5).reshape(outputs, inputs, oy * iy, ox * ix)
    x = x.new_zeros(outputs, inputs, oy * iy, tiles[1] * sizes[1]).index_add_(3, places[1], x)
    x = x.new_zeros(outputs, inputs, tiles[0] * sizes[0], tiles[1] * sizes[1]).index_add_(2, places[0], x)
    counts = [torch.bincount(p, minlength=t * n).double() for p, t, n in zip(places, tiles, sizes, strict=True)]
    count = counts[0][:, None] * counts[1]
    shape = (tiles[0], sizes[0], tiles[1], sizes[1])
    return x.view(outputs, inputs, *shape), count.view(shape)


def _places(layout: _Layout, tiles: int, axis: int) -> Tensor:
    """Tile and distance of each pair of output and input positions, int64 [outputs · inputs]."""
    outputs, inputs = layout.output_grid[axis], layout.input_grid[axis]
    out = torch.arange(outputs)[:, None]
    distance = torch.arange(inputs) - out * layout.stride[axis] - _lowest(layout)[axis]
    return (out // ceil(outputs / tiles) * _distances(layout)[axis] + distance).reshape(-1)


def _unlike(rows: Tensor, axis: int, stride: int, tiles: int) -> float:
    """Σ (a − b)² over weights of neighbouring outputs of one tile at the same distance.

    Args:
        rows: [c_out, height, width, c_in, height, width].
    """
    outputs, inputs = rows.shape[1 + axis], rows.shape[4 + axis]
    first = [x for x in range(outputs - 1) if (x + 1) % ceil(outputs / tiles)]
    if not first or stride >= inputs:
        return 0.0
    a = rows[:, first] if axis == 0 else rows[:, :, first]
    b = rows[:, [x + 1 for x in first]] if axis == 0 else rows[:, :, [x + 1 for x in first]]
    a, b = a.narrow(4 + axis, 0, inputs - stride), b.narrow(4 + axis, stride, inputs - stride)
    return float((a - b).square().sum())
