"""How long coding may look for fewer bytes."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from gossamer.errors import PlanError

__all__ = ["Effort", "check_effort"]

Effort: TypeAlias = Literal["fast", "best"]
"""best: classes of rows and columns are looked for everywhere, masks are tried with their values, gaps and more.
fast: one table for each leaf, but for those that are so small or so varied that the table itself counts."""


def check_effort(effort: str) -> None:
    """Refuse what is neither.

    Raises:
        PlanError: so.
    """
    if effort not in get_args(Effort):
        raise PlanError(f"effort: found {effort!r}, expected {' or '.join(repr(e) for e in get_args(Effort))}")
