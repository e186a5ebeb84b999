"""One row of `benchmarks.families`: what is done to which network."""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.drive.recipe import Recipe

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        family: of the six, or "composed".
        method: its class, or what else it is called.
        setting: for people, like "25% stored".
        recipe: how.
        breaking: whether the method breaks here.
        quick: whether ``--quick`` runs it.
    """

    family: str
    method: str
    setting: str
    recipe: Recipe
    breaking: bool = False
    quick: bool = False
