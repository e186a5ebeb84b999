"""What runs each layer of a lowered network, and why: to look up, and to print as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

__all__ = ["Choice", "Explanation"]


@final
@dataclass(frozen=True)
class Choice:
    """What runs a layer, and why.

    Args:
        layer: module name.
        kernel: name of the chosen candidate.
        density: share of weights that are not zero.
        ms: measured time of the choice; on grouped rows without the change of layout, if the network can be captured.
        dense_ms: measured time of the dense layer.
        bytes: of the weights as held in memory.
        dense_bytes: of the dense weights.
        reason: why nothing else was tried, or why it was not taken; empty if the layer's candidates decided.
        layout: of a layer on grouped rows: "feature-major", or "module replacement" with why not; of a convolution on
            blocks of images: "images along vectors"; else empty.
    """

    layer: str
    kernel: str
    density: float
    ms: float
    dense_ms: float
    bytes: int
    dense_bytes: int
    reason: str = ""
    layout: str = ""


@final
class Explanation(tuple[Choice, ...]):
    """Choices in the order of the network's layers; printed, a table.

    Example:
        >>> print(Explanation((Choice("fc1", "sliced", 0.1, 0.5, 2.0, 3_000, 40_000),)))
        layer  kernel  density        ms  dense ms      KB  dense KB  note
        fc1    sliced    10.0%     0.500     2.000       3        40
        all              10.0%     0.500     2.000       3        40
    """

    __slots__ = ()

    def __str__(self) -> str:
        """One line per layer, and their sums, over what was timed."""
        timed = [c for c in self if not math.isnan(c.ms)]
        held, dense = sum(c.bytes for c in self), sum(c.dense_bytes for c in self)
        density = sum(c.density * c.dense_bytes for c in self) / max(1, dense)
        total = Choice("all", "", density, sum(c.ms for c in timed), sum(c.dense_ms for c in timed), held, dense)
        name = max((len(c.layer) for c in (*self, total)), default=0)
        kernel = max((len(c.kernel) for c in self), default=0)
        name, kernel = max(name, 5), max(kernel, 6)
        columns = ("density", f"{'ms':>8}", "dense ms", f"{'KB':>6}", "dense KB", "note")
        head = "  ".join([f"{'layer':{name}}", f"{'kernel':{kernel}}", *columns])
        return "\n".join([head, *(_line(c, name, kernel) for c in (*self, total))])


def _line(choice: Choice, name: int, kernel: int) -> str:
    times = "  ".join(f"{'-' if math.isnan(ms) else f'{ms:.3f}':>8}" for ms in (choice.ms, choice.dense_ms))
    sizes = f"{choice.bytes / 1e3:6.0f}  {choice.dense_bytes / 1e3:8.0f}"
    note = "; ".join(part for part in (choice.layout, choice.reason) if part)
    line = f"{choice.layer:{name}}  {choice.kernel:{kernel}}  {choice.density:7.1%}  {times}  {sizes}  {note}"
    return line.rstrip()
