"""`Sparsifier.step` inside other people's loops: a callback for Hugging Face's Trainer, one for Lightning's.

Neither package is needed before a callback is made. Convert the network with ``gs.train.sparsify`` first, then hand it
to the trainer together with the callback; the method is the same in both places.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gossamer.errors import DataError, PlanError
from gossamer.store.state_file import read_state, write_state
from gossamer.train.convert import sparse_layers
from gossamer.train.from_dense import DenseMethod, FromDense, relaxed
from gossamer.train.method import SparseTraining
from gossamer.train.sparsifier import Sparsifier

__all__ = ["hugging_face", "lightning"]

_FILE = "sparsifier.safetensors"


class _Stepping(Protocol):
    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _stepping(
    method: SparseTraining | DenseMethod, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> _Stepping:
    """What is to be stepped, over the one of several optimisers that trains the weights in question."""
    dense = isinstance(method, DenseMethod)
    wanted: set[int]
    if dense:
        wanted = {id(weight) for _, weight in relaxed(model).values()}
    else:
        wanted = {id(layer.values) for layer in sparse_layers(model).values()}
    for optimizer in optimizers:
        # Accelerate wraps optimisers; hooks and state are those of the one inside.
        inner = getattr(optimizer, "optimizer", optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        if any(id(p) in wanted for group in inner.param_groups for p in group["params"]):
            if isinstance(method, DenseMethod):
                return FromDense(model, inner, method)
            return Sparsifier(model, inner, method)
    expected = "a network from gs.train.from_dense.prepare" if dense else "a network from gs.train.sparsify"
    raise PlanError(f"{type(method).__name__}: found no optimiser of its weights, expected {expected} in the trainer")


def _check(method: object) -> None:
    if not isinstance(method, (SparseTraining, DenseMethod)):
        raise PlanError(f"callback: found {type(method).__name__}, expected a method of gs.train, such as RigL")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"callback: found no package {name}, expected pip install {name.partition('.')[0]}") from error


def hugging_face(method: SparseTraining | DenseMethod) -> Any:
    """A ``transformers.TrainerCallback`` that moves live weights after every step of the optimiser.

    Its state is written into every checkpoint of the Trainer (``sparsifier.safetensors``) and read again by
    ``train(resume_from_checkpoint=…)``: a run that was killed goes on as it would have. Penalties of `DenseMethod`
    belong into the model's loss; the callback cannot add them.

    Args:
        method: the same that ``sparsify`` (or ``prepare``) was given.

    Returns:
        For ``Trainer(…, callbacks=[…])``. ``callback.sparsifier`` is the `Sparsifier` once training has begun.

    Raises:
        DataError: transformers is not installed, or a checkpoint without a sparsifier's state.
        PlanError: no method of training.
    """
    _check(method)
    transformers = _package("transformers")

    class SparsifierCallback(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.sparsifier: _Stepping | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.sparsifier = _stepping(method, given["model"], [given["optimizer"]])
            if state.global_step > 0:
                self.sparsifier.load_state_dict(read_state(_checkpoint(args, state) / _FILE))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            assert self.sparsifier is not None
            self.sparsifier.step()

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.sparsifier is not None and state.is_world_process_zero:
                write_state(_checkpoint(args, state) / _FILE, self.sparsifier.state_dict())

    return SparsifierCallback()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def lightning(method: SparseTraining | DenseMethod) -> Any:
    """A ``lightning.pytorch.Callback`` that moves live weights after every step of the optimiser.

    Its state is part of Lightning's checkpoints. Convert the network in the module's ``__init__``, before
    ``configure_optimizers`` is called. Penalties of `DenseMethod` belong into ``training_step``.

    Args:
        method: the same that ``sparsify`` (or ``prepare``) was given.

    Returns:
        For ``Trainer(…, callbacks=[…])``. ``callback.sparsifier`` is the `Sparsifier` once training has begun.

    Raises:
        DataError: lightning is not installed.
        PlanError: no method of training.
    """
    _check(method)
    pytorch = _package("lightning.pytorch")

    class SparsifierCallback(pytorch.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.sparsifier: _Stepping | None = None
            self._loaded: Mapping[str, Any] | None = None
            self._steps = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.sparsifier = _stepping(method, pl_module, trainer.optimizers)
            if self._loaded is not None:
                self.sparsifier.load_state_dict(self._loaded)
                self._loaded = None
            self._steps = trainer.global_step

        def on_train_batch_end(self, trainer: Any, *given: Any, **more: Any) -> None:
            # Gradients are cleared when the next batch begins; with accumulation not every batch is a step.
            if trainer.global_step > self._steps:
                assert self.sparsifier is not None
                self.sparsifier.step()
                self._steps = trainer.global_step

        def state_dict(self) -> dict[str, Any]:
            return {} if self.sparsifier is None else self.sparsifier.state_dict()

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            self._loaded = state_dict or None

    return SparsifierCallback()
