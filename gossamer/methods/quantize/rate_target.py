"""Plans at one price of a bit for all tensors: the one that was given, or that leads to a size of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log2

from gossamer.errors import PlanError
from gossamer.methods.base import Ask, FileFrame, Plan, Site, Step, Summary
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

__all__ = ["check_price", "curve_of", "planned"]

_COARSE = 1 << 12  # values that curves are drawn with
_LOWEST, _HIGHEST = -14, 6  # powers of two of λ · weights between which curves are drawn


def check_price(name: str, rate: float | None, target: str | int | None) -> None:
    """Refuse anything but one of a price and a size.

    Raises:
        PlanError: names the method.
    """
    if (rate is None) == (target is None):
        raise PlanError(f"{name}: found rate {rate}, target {target}, expected one of them")
    if rate is not None and not 0 < rate < float("inf"):
        raise PlanError(f"{name}: rate: found {rate}, expected a number above 0")
    if target is not None:
        wanted_bytes(name, target, FileFrame(1, 0, 0, 0))


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


def planned(
    name: str,
    rate: float | None,
    target: str | int | None,
    frame: FileFrame | None,
    sites: Sequence[Site],
    summaries: Mapping[str, Summary],
    ask: Ask | None,
) -> Plan | Ask:
    """The price at which the file has the size that was asked for, one step per site.

    Args:
        name: of the method, for messages.
        rate: λ, or
        target: the size.
        frame: what else is in the file; with a target.
        sites: of the method.
        summaries: at first of `curve_of`, then {"bytes": as coded} at the price that was asked about.
        ask: of the round before.

    Returns:
        Entries {"rate": λ, "steps": the λ that levels were searched for}, or what to try next.
    """
    if target is None:
        return Plan(tuple(Step((s.key,), {"rate": rate}) for s in sites))
    if frame is None:
        raise PlanError(f"{name}: target: found no file, expected a driver that says what else is in it")
    wanted = wanted_bytes(name, target, frame)
    if ask is None:
        curves = {s.key: Curve(summaries[s.key]["rates"], summaries[s.key]["bytes"]) for s in sites}
        first = starting_rate(name, curves, wanted, frame)
        return Ask({"rate": first, "steps": first, "tried": []})
    size = frame.total([summaries[s.key]["bytes"] for s in sites])
    trials = [*trials_of(ask.state), Trial(ask.state["rate"], ask.state["steps"], size)]
    if not close_enough(trials, wanted):
        now, steps = next_trial(trials, wanted)
        return Ask({"rate": now, "steps": steps, "tried": [[t.rate, t.steps, t.size] for t in trials]})
    best = best_trial(trials, wanted)
    return Plan(tuple(Step((s.key,), {"rate": best.rate, "steps": best.steps}) for s in sites))
