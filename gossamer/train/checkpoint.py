"""Good states written while training: everything that a killed run needs to go on as if it had not been killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

from gossamer.errors import PlanError

__all__ = ["Checkpoint", "Stateful"]


class Stateful(Protocol):
    """What has a state, such as a scheduler of learning rates."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take one over."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """Where and how often `Sparsifier.step` writes network, optimiser, itself and PyTorch's random numbers.

    Args:
        path: one safetensors file, replaced atomically; never a pickle.
        every: steps between two.
        also: by name what else has a state: the scheduler, the scaler, …
    """

    path: str | Path
    every: int = 500
    also: Mapping[str, Stateful] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PlanError(f"Checkpoint: found every {self.every}, expected at least 1")
        folder = Path(self.path).resolve().parent
        if not folder.is_dir():
            raise PlanError(f"Checkpoint: found no folder {folder}, expected one to write to")
