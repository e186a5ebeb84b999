"""Good states written while training: everything that a killed run needs to go on as if it had not been killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError, PlanError
from gossamer.train.convert import sparse_layers

__all__ = ["Checkpoint", "Stateful", "check_fits"]


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


def check_fits(path: str | Path, state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse the state of another network or optimiser before anything is loaded.

    Args:
        path: of the file, for messages.
        state: what it holds.
        model: to load it into.
        optimizer: likewise.

    Raises:
        DataError: names the tensor.
    """
    mine: Mapping[str, Tensor] = model.state_dict()
    theirs: Mapping[str, Tensor] = state["model"]
    for name in [*mine, *theirs]:
        if name not in theirs:
            raise DataError(f"{path}: found no {name}, expected the state of a network that has it")
        if name not in mine:
            raise DataError(f"{path}: found {name}, which the network lacks, expected the state of this network")
    free = set()  # tensors that take the size of what is loaded
    for layer, module in sparse_layers(model).items():
        prefix = f"{layer}." if layer else ""
        free |= {f"{prefix}values", f"{prefix}positions"}
        last = int(theirs[f"{prefix}positions"].max()) if theirs[f"{prefix}positions"].numel() else 0
        if last >= module.topology.size:
            expected = f"expected at most {module.topology.size - 1} in a weight of {module.weight_shape}"
            raise DataError(f"{path}: {prefix}positions: found {last}, {expected}")
    for name, tensor in mine.items():
        if name not in free and theirs[name].shape != tensor.shape:
            found = f"found {tuple(theirs[name].shape)}, expected {tuple(tensor.shape)}"
            raise DataError(f"{path}: {name}: {found}")
    groups, saved = (
        [len(group["params"]) for group in held["param_groups"]]
        for held in (optimizer.state_dict(), state["optimizer"])
    )
    if groups != saved:
        raise DataError(f"{path}: optimizer: found groups of {saved} parameters, expected {groups}")
    told = {key for group in state["optimizer"]["param_groups"] for key in group}
    missing = sorted(set(optimizer.defaults) - told)
    if missing:
        found = f"found settings {', '.join(sorted(told - {'params'}))}"
        raise DataError(f"{path}: optimizer: {found}, expected {type(optimizer).__name__}'s, with {', '.join(missing)}")
