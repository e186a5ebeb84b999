"""Running a network up to one of its blocks, with recorded outputs in the place of those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.drive.blocks import Block
from gossamer.drive.calls import call, rejected
from gossamer.drive.evidence import check_finite
from gossamer.drive.packed import Json, Unpackable, pack, tensors_in, unpack
from gossamer.drive.route import Hooked, Route
from gossamer.drive.shelf import Shelf
from gossamer.drive.watch import Watch, no_fast_path, watched_names
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import DataError
from gossamer.methods.base import Evidence
from gossamer.store.dtypes import dtype_name, named_dtype

__all__ = ["Walk", "verified"]


class _Stop(BaseException):
    """A block behind the one of interest is called."""


class _Unrecorded(BaseException):
    """A block is called more often than it was recorded, or gives what cannot be recorded."""


Recorded = tuple[Json, list[Tensor]]


@final
class _Pass(Hooked):
    """One run of the network for one sample.

    Args:
        blocks: of the network.
        route: their steps.
        step: the one that is really run; those before give what was recorded, the one behind ends the run.
        recorded: step → outputs of its calls in order; None: those before are run, too.
    """

    def __init__(
        self, blocks: Sequence[Block], route: Route, step: int, recorded: Callable[[int], list[Any]] | None
    ) -> None:
        super().__init__(blocks)
        self._step_of = {b: k for k, members in enumerate(route.steps) for b in members}
        self._step, self._recorded = step, recorded
        self._waiting: dict[int, list[Any]] = {}
        self._names = [b.name for b in blocks]
        self.inputs: list[tuple[Tensor, ...]] = []
        self.outputs: list[Any] = []
        self.keep_inputs = False
        self.keep_outputs = False

    def called(self, number: int, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self._step_of.get(number)
        if step is None:
            raise _Unrecorded(f"{self._names[number]} is called for some samples only")
        if step > self._step:
            raise _Stop
        if step < self._step and self._recorded is not None:
            if step not in self._waiting:
                self._waiting[step] = self._recorded(step)
            if not self._waiting[step]:
                raise _Unrecorded(f"{self._names[number]} is called more often than before")
            return self._waiting[step].pop(0)
        if step == self._step and self.keep_inputs:
            self.inputs.append(tuple(t.detach().clone() for t in tensors_in((args, kwargs))))
        result = self.within(original, args, kwargs)
        if step == self._step and self.keep_outputs:
            tensors: list[Tensor] = []
            try:
                structure = pack(result, tensors)
            except Unpackable as error:
                raise _Unrecorded(f"{self._names[number]} gives {error}") from error
            for tensor in tensors:
                if tensor.is_floating_point() and bool(tensor.isnan().any()):
                    raise DataError(f"block {self._names[number]!r}: found outputs that are not finite")
            # Code behind the block may write into what it was given.
            self.outputs.append((structure, [t.clone() for t in tensors]))
        return result


def verified(network: nn.Module, blocks: Sequence[Block], route: Route, first: Any) -> Route:
    """See whether recorded outputs can stand in for blocks: every step is run from them, what it does not need blank.

    Args:
        network: as it was when the route was found.
        blocks: of it.
        route: what to verify.
        first: the sample that it was found with.

    Returns:
        The route without its record, ``broken`` says why they cannot; empty: every block had the very inputs that it
        has in the whole network.
    """
    broken = route.broken
    if not broken:
        broken = _trouble(network, blocks, route, first)
        if broken:
            solid = dataclasses.replace(route, solid=True)  # code between blocks may write into their outputs
            if not _trouble(network, blocks, solid, first):
                route, broken = solid, ""
    return dataclasses.replace(route, calls=(), broken=broken)


def _trouble(network: nn.Module, blocks: Sequence[Block], route: Route, first: Any) -> str:
    for step, needed in enumerate(route.needs):

        def recorded(other: int, needed: frozenset[int] = needed) -> list[Any]:
            made = [c.outputs for c in route.calls if c.block in route.steps[other] and c.outputs is not None]
            return [
                unpack(structure, [t.clone() if other in needed else blank(t.dtype, t.shape, solid=route.solid)
                                   for t in tensors].__getitem__)
                for structure, tensors in made
            ]  # fmt: skip

        run = _Pass(blocks, route, step, recorded)
        run.keep_inputs = True
        expected = [c.inputs for c in route.calls if c.block in route.steps[step]]
        name = blocks[route.steps[step][0]].name
        try:
            with torch.no_grad(), no_fast_path(), run:
                call(network, first)
        except (_Stop, _Unrecorded):
            pass
        except Exception as error:  # what the network does with blank outputs is not known
            return f"{name} cannot be run by itself: {type(error).__name__}"
        if len(run.inputs) != len(expected):
            return f"{name} is called {len(run.inputs)} times by itself and {len(expected)} in the network"
        for found, wanted in zip(run.inputs, expected, strict=True):
            if len(found) != len(wanted) or not all(map(_same, found, wanted)):
                return f"{name} has other inputs than in the whole network"
    return ""


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


@final
class Walk:
    """Goes through a network step by step with all samples.

    Args:
        network: whose weights are what they shall be; blocks behind the present step are never run.
        blocks: of it.
        route: their order.
        samples: inputs, one batch each.
        shelf: where outputs are put.
        specs: of the network's tensors.
        chained: whether recorded outputs stand in for the blocks before; else those are run again every time.
        report: called after every run.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[Block],
        route: Route,
        samples: Sequence[Any],
        shelf: Shelf,
        specs: Sequence[TensorSpec],
        *,
        chained: bool,
        report: Callable[[], None],
    ) -> None:
        self.network, self.blocks, self.route = network, blocks, route
        self.samples, self.shelf, self.chained = samples, shelf, chained
        self.outlines: dict[int, list[Json]] = {}
        self._specs, self._report = specs, report

    def go(self, step: int, names: frozenset[str], needs: frozenset[str], *, record: bool) -> Mapping[str, Evidence]:
        """Run one step with all samples.

        Args:
            step: the one; outputs of what it needs must be recorded.
            names: tensors whose inputs are summed up.
            needs: which statistics of them.
            record: keep the outputs.

        Returns:
            Evidence per name; nothing for tensors that were not used.

        Raises:
            DataError: a sample that the network rejects, or activations that are not finite.
        """
        watch = Watch(watched_names(self.network, self._specs, names), needs) if names and needs else None
        for number, sample in enumerate(self.samples):
            recorded = None if not self.chained else self._recorded(step, number)
            run = _Pass(self.blocks, self.route, step, recorded)
            run.keep_outputs = record and self.chained
            try:
                with torch.inference_mode(), no_fast_path(), watch or nullcontext(), run:
                    call(self.network, sample)
            except _Stop:
                pass
            except DataError as error:
                raise DataError(f"batch {number}: {error}") from error
            except _Unrecorded as error:
                raise DataError(
                    f"batch {number}: {error}: expected blocks=… that keep together what belongs"
                ) from error
            except Exception as error:  # the network raises whatever it raises
                raise rejected(f"batch {number}", error) from error
            if run.keep_outputs:
                self._keep(step, run.outputs)
            self._report()
        found = {} if watch is None else watch.finish()
        check_finite(found)
        return found

    def _keep(self, step: int, outputs: Sequence[Recorded]) -> None:
        structures = [[structure, len(tensors)] for structure, tensors in outputs]
        flat = [t for _, tensors in outputs for t in tensors]
        outline = [[dtype_name(t.dtype), list(t.shape)] for t in flat]
        self.outlines.setdefault(step, []).append([structures, outline])
        if self.route.last_use(step) > step:
            self.shelf.put(step, structures, flat)

    def forget(self, step: int) -> None:
        """Drop outputs that nothing behind a step needs."""
        for other in self.shelf.steps:
            if self.route.last_use(other) <= step:
                self.shelf.drop(other)

    def restart(self) -> None:
        """Drop all outputs: the walk begins anew."""
        for other in self.shelf.steps:
            self.shelf.drop(other)
        self.outlines.clear()

    def _recorded(self, step: int, number: int) -> Callable[[int], list[Any]]:
        def recorded(other: int) -> list[Any]:
            if other in self.route.needs[step]:
                structures, tensors = self.shelf.get(other, number)
            else:
                structures, outline = self.outlines[other][number]
                tensors = [blank(named_dtype(d), shape, solid=self.route.solid) for d, shape in outline]
            return _unpacked(structures, tensors)

        return recorded


def blank(dtype: torch.dtype, shape: Sequence[int], *, solid: bool) -> Tensor:
    """A tensor whose numbers must not matter: NaN, or 0 where that cannot be said.

    Args:
        dtype: of it.
        shape: of it.
        solid: with memory for every number, so that it can be written into.
    """
    value = torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype)
    return value.expand(*shape).clone() if solid else value.expand(*shape)


def _unpacked(structures: Json, tensors: list[Tensor]) -> list[Any]:
    found, at = [], 0
    for structure, count in structures:
        found.append(unpack(structure, tensors[at : at + count].__getitem__))
        at += count
    return found
