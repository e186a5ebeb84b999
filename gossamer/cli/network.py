"""``package.module:factory`` → the thing itself; the user names the code that is run, a file never does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError, GossamerError, PlanError

__all__ = ["Inputs", "calling", "example_inputs", "factory_of", "named_object"]


def named_object(name: str, what: str) -> Any:
    """Import ``package.module:object``; the current folder counts.

    Raises:
        DataError: no such module or object.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise DataError(f"{what}: found {name!r}, expected package.module:name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DataError(f"{what}: cannot import {module_name!r}: {reason}") from error
    if not hasattr(module, attribute):
        raise DataError(f"{what}: found no {attribute!r} in {module_name!r}")
    return getattr(module, attribute)


@contextmanager
def calling(name: str, what: str, given: str = "without arguments") -> Iterator[None]:
    """Whatever the user's function raises in here becomes one line.

    Raises:
        DataError: it raised something else than an error of ours.
    """
    try:
        yield
    except GossamerError:
        raise
    except Exception as error:  # the user's code raises whatever it raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DataError(f"{what} {name}: calling it {given} failed: {reason}") from error


def factory_of(name: str) -> Callable[[], nn.Module]:
    """The factory, checked by calling it once.

    Raises:
        DataError: not a callable that returns a module.
    """
    factory = named_object(name, "--network")
    with calling(name, "--network"):
        made = factory() if callable(factory) else None
    if not isinstance(made, nn.Module):
        raise DataError(f"--network {name}: found {type(made).__name__}, expected a factory of a torch.nn.Module")

    def make() -> nn.Module:
        result: nn.Module = factory()
        return result

    return make


def example_inputs(shape: str, batch: int, seed: int = 0) -> Tensor:
    """Random inputs [batch, *shape] of mean 0 and deviation 1.

    Args:
        shape: sizes without the batch, such as ``1,28,28``.
        batch: samples.
        seed: for the numbers.

    Raises:
        DataError: not a list of sizes.
    """
    try:
        sizes = [int(s) for s in shape.replace("x", ",").split(",")]
    except ValueError as error:
        raise DataError(f"--shape: found {shape!r}, expected sizes like 1,28,28") from error
    if any(s < 1 for s in sizes):
        raise DataError(f"--shape: found {shape!r}, expected sizes of at least 1")
    return torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(seed))


@final
@dataclass(frozen=True)
class Inputs:
    """What a network is run on: ``--shape`` or ``--inputs``.

    Args:
        shape: sizes of one sample, for random numbers; or None.
        function: ``package.module:function`` that takes a batch size and returns a tensor or a tuple; or None.

    Raises:
        PlanError: none or both.
    """

    shape: str | None
    function: str | None

    def __post_init__(self) -> None:
        if (self.shape is None) == (self.function is None):
            found = "neither" if self.shape is None else "both"
            raise PlanError(f"found {found} of --shape and --inputs, expected exactly one")

    def of(self, batch: int) -> tuple[Any, ...]:
        """Positional arguments for so many samples.

        Raises:
            DataError: not sizes, or the function fails.
        """
        if self.shape is not None:
            return (example_inputs(self.shape, batch),)
        assert self.function is not None
        function = named_object(self.function, "--inputs")
        with calling(self.function, "--inputs", f"with {batch}"):
            made = function(batch)
        return made if isinstance(made, tuple) else (made,)
