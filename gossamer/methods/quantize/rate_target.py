"""Methods with one price of a bit for all tensors: the one that was given, or that leads to a size of the file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log2

from gossamer.errors import PlanError
from gossamer.methods.base import DERIVED, Ask, FileFrame, Method, Plan, Site, Step, Summary
from gossamer.methods.quantize.rate_budget import (
    Curve,
    Trial,
    best_trial,
    close_enough,
    next_trial,
    starting_rate,
    trials_of,
    wanted_bytes,
)
from gossamer.methods.quantize.rate_search import Weighed, search

__all__ = ["Priced", "curve_of"]

_COARSE = 1 << 12  # values that curves are drawn with
_MISSED = 0.02  # of a target: said aloud and in the plan
_LOWEST, _HIGHEST = -14, 6  # powers of two of λ · weights between which curves are drawn


@dataclass(frozen=True, kw_only=True)
class Priced(Method):
    """A method that pays one price per bit in all tensors: λ, or whatever leads to a size of the whole file.

    Summaries are at first those of `curve_of`, then ``{"bytes": as coded}`` at the price that was asked about; entries
    of the plan are ``{"rate": λ}``, with a target ``{"rate": λ, "steps": the λ that levels were searched for}``; and,
    with a warning, ``"file_bytes"`` and ``"wanted_bytes"`` where these differ by more than 2%.

    Args:
        rate: λ, above 0; or
        target: size of the file, such as "8x", or bytes.
        frame: what else is in the file; drivers say so.
    """

    rate: float | None = None
    target: str | int | None = None
    frame: FileFrame | None = field(default=None, metadata=DERIVED)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if (self.rate is None) == (self.target is None):
            raise PlanError(f"{name}: found rate {self.rate}, target {self.target}, expected one of them")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise PlanError(f"{name}: rate: found {self.rate}, expected a number above 0")
        if self.target is not None:
            wanted_bytes(name, self.target, FileFrame(1, 0, 0, 0))

    @property
    def observes(self) -> bool:
        """To find λ."""
        return self.target is not None

    @property
    def budgets_file(self) -> bool:
        """A target means the whole file."""
        return self.target is not None

    def framed(self, frame: FileFrame) -> Method:
        """With what else is in the file."""
        return replace(self, frame=frame)

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """The price at which the file has the size that was asked for."""
        name = type(self).__name__
        if self.target is None:
            return Plan(tuple(Step((s.key,), {"rate": self.rate}) for s in sites))
        if self.frame is None:
            raise PlanError(f"{name}: target: found no file, expected a driver that says what else is in it")
        wanted = wanted_bytes(name, self.target, self.frame)
        if ask is None:
            curves = {s.key: Curve(summaries[s.key]["rates"], summaries[s.key]["bytes"]) for s in sites}
            first = starting_rate(name, curves, wanted, self.frame)
            return Ask({"rate": first, "steps": first, "tried": []})
        size = self.frame.total([summaries[s.key]["bytes"] for s in sites])
        trials = [*trials_of(ask.state), Trial(ask.state["rate"], ask.state["steps"], size)]
        if not close_enough(trials, wanted):
            now, steps = next_trial(trials, wanted)
            return Ask({"rate": now, "steps": steps, "tried": [[t.rate, t.steps, t.size] for t in trials]})
        best = best_trial(trials, wanted)
        entry: dict[str, float] = {"rate": best.rate, "steps": best.steps}
        if abs(best.size / wanted - 1) > _MISSED:
            warnings.warn(
                f"{name}: target: found a file of {best.size:,.0f} bytes at the nearest price, expected {wanted:,.0f}: "
                "few weights, or evenly spread ones, take few sizes",
                stacklevel=2,
            )
            entry |= {"file_bytes": round(best.size), "wanted_bytes": round(wanted)}
        return Plan(tuple(Step((s.key,), dict(entry)) for s in sites))


def curve_of(weighed: Weighed, rest: int, *, grouped: bool) -> Summary:
    """Bytes of a tensor at several prices, as a uniform grid on a sample of it takes them.

    Args:
        weighed: its live values.
        rest: bytes beside the symbols.
        grouped: whether groups may have different steps.

    Cost: some hundred passes over the sample for each of 21 prices.
    """
    live = max(1, len(weighed.values))
    size = log2(live)
    whole = float((weighed.weight * weighed.values.square()).sum()) or 1.0  # 1 where errors are shares of it
    rates = [whole * 2.0**j for j in range(floor(_LOWEST - size), ceil(_HIGHEST - size) + 1)]
    bits = [search(weighed, r, r, grouped=grouped, most=_COARSE).bits for r in rates]
    return {"rates": rates, "bytes": [rest + b * live / 8 for b in bits]}
