"""``--recipe`` or ``--preset``: which recipe a command runs."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

from torch import nn

from gossamer import presets
from gossamer.drive.recipe import Recipe
from gossamer.drive.recipe_file import load_recipe
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.presets.small import small_of

__all__ = ["Chosen", "Preset"]


class Preset(enum.Enum):
    """The recipes that are made for a network."""

    SMALL = "small"
    TINY = "tiny"
    FAST = "fast"


_MADE: Mapping[Preset, Callable[[nn.Module], Recipe]] = MappingProxyType(
    {Preset.SMALL: presets.small, Preset.TINY: presets.tiny, Preset.FAST: presets.fast}
)


@final
@dataclass(frozen=True)
class Chosen:
    """What the user named.

    Args:
        recipe: file with a recipe, or None.
        preset: or None.

    Raises:
        PlanError: none or both.
    """

    recipe: Path | None
    preset: Preset | None

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.preset is None):
            found = "neither" if self.recipe is None else "both"
            raise PlanError(f"found {found} of --recipe and --preset, expected exactly one")

    def for_network(self, model: nn.Module, *, has_data: bool) -> Recipe:
        """The recipe for a network in memory.

        Args:
            model: of the user's factory.
            has_data: whether there is data to train with; or nothing will be trained.

        Raises:
            PlanError: a preset that trains, without data.
        """
        if self.recipe is not None:
            return load_recipe(self.recipe)
        assert self.preset is not None
        if self.preset is not Preset.SMALL and not has_data:
            raise PlanError(
                f"--preset {self.preset.value}: found no --data, expected it: this preset trains (small does not)"
            )
        return _MADE[self.preset](model)

    def for_checkpoint(self, listed: Iterable[TensorSpec]) -> Recipe:
        """The recipe for a checkpoint that is read in pieces.

        Raises:
            PlanError: a preset that trains.
        """
        if self.recipe is not None:
            return load_recipe(self.recipe)
        assert self.preset is not None
        if self.preset is not Preset.SMALL:
            raise PlanError(
                f"--preset {self.preset.value}: found a checkpoint that is read in pieces, expected --network, --data "
                "and one file: this preset trains (small does not)"
            )
        return small_of(listed)
