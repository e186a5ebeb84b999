"""A rectangle divided among numbers, in pieces as square as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gossamer.errors import PlanError

__all__ = ["Tile", "squarified"]


@final
@dataclass(frozen=True)
class Tile:
    """A rectangle.

    Args:
        x: left.
        y: top.
        width: to the right.
        height: down.
    """

    x: float
    y: float
    width: float
    height: float

    @property
    def slimness(self) -> float:
        """The longer side over the shorter one; at least 1."""
        short, long = sorted((self.width, self.height))
        return long / short if short > 0 else float("inf")


def squarified(sizes: Sequence[float], width: float, height: float) -> list[Tile]:
    """Tiles whose areas are as the sizes, in the order given; near-square if sizes descend.

    Rows are laid along the shorter side of what is left; a row takes another size as long as its slimmest tile does
    not become slimmer by that.

    Args:
        sizes: positive, best in descending order.
        width: of the whole.
        height: of the whole.

    Raises:
        PlanError: a size that is not positive.

    Cost: O(n) for n sizes.

    Example:
        >>> [round(t.width * t.height, 6) for t in squarified([6, 3, 1], 5, 2)]
        [6.0, 3.0, 1.0]

    Source: Bruls, Huizing and van Wijk 2000, "Squarified treemaps".
    """
    if any(not size > 0 for size in sizes):
        raise PlanError(f"treemap: found a size of {min(sizes)}, expected positive ones")
    scale = width * height / sum(sizes) if sizes else 0.0
    left = Tile(0.0, 0.0, width, height)
    tiles: list[Tile] = []
    row: list[float] = []
    for area in (size * scale for size in sizes):
        if row and _slimmest([*row, area], left) > _slimmest(row, left):
            placed, left = _laid(row, left)
            tiles += placed
            row = []
        row.append(area)
    return tiles + (_laid(row, left)[0] if row else [])


def _slimmest(areas: Sequence[float], left: Tile) -> float:
    """The slimmest tile of a row of such areas."""
    side = min(left.width, left.height)
    total = sum(areas)
    if side <= 0:
        return float("inf")
    return max(max(side * side * a / total**2, total**2 / (side * side * a)) for a in (min(areas), max(areas)))


def _laid(areas: Sequence[float], left: Tile) -> tuple[list[Tile], Tile]:
    """A row along the shorter side, and what is left."""
    total, tiles = sum(areas), []
    upright = left.width >= left.height  # the row is a column at the left
    side = left.height if upright else left.width
    thick = total / side if side > 0 else 0.0
    at = 0.0
    for area in areas:
        long = area / thick if thick > 0 else 0.0
        x, y = (left.x, left.y + at) if upright else (left.x + at, left.y)
        tiles.append(Tile(x, y, thick, long) if upright else Tile(x, y, long, thick))
        at += long
    rest = (
        Tile(left.x + thick, left.y, max(0.0, left.width - thick), left.height)
        if upright
        else Tile(left.x, left.y + thick, left.width, max(0.0, left.height - thick))
    )
    return tiles, rest
