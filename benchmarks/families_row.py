"""One row of `benchmarks.families`: what is done to which network."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.zoo.run import RecipeFor

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        family: of the six, or "composed".
        method: its class, or what else it is called.
        setting: for people, like "25% stored".
        recipe: how; or a function that gives the recipe for a network, of which only kinds and shapes count.
        breaking: whether the method breaks here.
        quick: whether ``--quick`` runs it.
    """

    family: str
    method: str
    setting: str
    recipe: RecipeFor
    breaking: bool = False
    quick: bool = False
