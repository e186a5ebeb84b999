"""How the outputs of a network's blocks reach each other, found out by running it once, and verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.drive.blocks import Block
from gossamer.drive.calls import call, rejected
from gossamer.drive.packed import Json, Unpackable, pack, tensors_in
from gossamer.drive.watch import Watch, no_fast_path, watched_names
from gossamer.encoding.spec import TensorSpec

__all__ = ["OUTSIDE", "Called", "Hooked", "Route", "find_route", "together"]

OUTSIDE = -1  # the step of tensors that are used in several blocks, or in none


@dataclass(frozen=True)
class Called:
    """One call of a block in the first run.

    Args:
        block: its number.
        inputs: copies of the tensors among its arguments.
        uses: blocks whose outputs took part in making them since those blocks returned.
        outputs: structure and tensors; None: of a type that cannot be kept.
    """

    block: int
    inputs: tuple[Tensor, ...]
    uses: frozenset[int]
    outputs: tuple[Json, list[Tensor]] | None


@dataclass(frozen=True)
class Route:
    """The order in which a network is compressed.

    Args:
        steps: numbers of the blocks that are compressed together: one, or several whose calls take turns.
        needs: per step the earlier ones whose outputs it takes, or code between blocks before it.
        calls: of the blocks in the first run.
        inside: tensor → the step whose blocks alone use it; what is used elsewhere, too, is not in it.
        order: tensors in the order of their first use, those with the same inputs together.
        rows: per tensor the rows that it saw of the first sample.
        broken: why outputs of blocks cannot stand in for the blocks; empty: they can, as far as the run shows.
        solid: whether code between blocks writes into their outputs.
    """

    steps: tuple[tuple[int, ...], ...]
    needs: tuple[frozenset[int], ...]
    calls: tuple[Called, ...]
    inside: Mapping[str, int]
    order: tuple[tuple[str, ...], ...]
    rows: Mapping[str, float]
    broken: str = ""
    solid: bool = False

    def last_use(self, step: int) -> int:
        """The last step that needs its outputs; -1: none."""
        return max((k for k, needed in enumerate(self.needs) if step in needed), default=-1)

    def grouped(self, most: int) -> Route:
        """The same order in so many steps at most."""
        size = -(-len(self.steps) // most)
        if size <= 1:
            return self
        parts = [self.steps[i : i + size] for i in range(0, len(self.steps), size)]
        needs = [
            frozenset(o // size for n in self.needs[i * size : (i + 1) * size] for o in n) - {i}
            for i in range(len(parts))
        ]
        steps = tuple(tuple(b for members in part for b in members) for part in parts)
        inside = {name: step // size for name, step in self.inside.items()}
        return replace(self, steps=steps, needs=tuple(needs), inside=inside)


class Hooked:
    """Takes the calls of blocks over while it is entered.

    Args:
        blocks: whose ``forward`` is replaced, on the objects.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._before: list[Any] = []
        self._depth = 0

    def __enter__(self) -> None:
        for number, block in enumerate(self._blocks):
            original = block.module.forward
            self._before.append(vars(block.module).get("forward"))

            def forward(*args: Any, _number: int = number, _original: Any = original, **kwargs: Any) -> Any:
                if self._depth:
                    self.nested(_number)
                    return _original(*args, **kwargs)
                return self.called(_number, _original, args, kwargs)

            block.module.forward = forward

    def __exit__(self, *error: object) -> None:
        self._depth = 0
        for block, before in zip(self._blocks, self._before, strict=True):
            del block.module.forward
            if before is not None:
                block.module.forward = before
        self._before.clear()

    def within(self, original: Any, args: Any, kwargs: Any) -> Any:
        """Run a block itself; blocks that it calls are its own affair."""
        self._depth += 1
        try:
            return original(*args, **kwargs)
        finally:
            self._depth -= 1

    def nested(self, number: int) -> None:
        """A block is called inside another."""

    def called(self, number: int, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block is called by the network."""
        raise NotImplementedError


@final
class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """From which blocks the numbers of a tensor come, by storage; forgotten where a block made them anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pause = False
        self.control: frozenset[int] = frozenset()
        self._of: dict[int, frozenset[int]] = {}
        self._alive: list[Any] = []  # so that no storage takes the address of another

    def of(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        return self.control.union(*(self._of.get(self._key(t), frozenset()) for t in tensors))

    def put(self, tensors: Iterable[Tensor], origin: frozenset[int]) -> None:
        for tensor in tensors:
            self._of[self._key(tensor)] = origin

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return int(storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if self.pause:
            return result
        origin = self.of(tensors_in((args, given))) - self.control
        if not origin:
            return result
        made = list(tensors_in(result))
        if not made:  # a number that Python may decide by
            self.control |= origin
        for tensor in made:
            self.put((tensor,), self._of.get(self._key(tensor), frozenset()) | origin)
        return result


@final
class _Trace(Hooked):
    def __init__(self, blocks: Sequence[Block], names: Mapping[int, TensorSpec]) -> None:
        super().__init__(blocks)
        self.origins, self.calls = _Origins(), list[Called]()
        self.joined: list[tuple[int, int]] = []
        self.users: dict[str, set[int]] = {}
        self._names, self._now = names, -1

    def nested(self, number: int) -> None:
        self.joined.append((self._now, number))

    def called(self, number: int, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(tensors_in((args, kwargs)))
        uses = self.origins.of(given)
        copies = tuple(t.detach().clone() for t in given)
        self._now, self.origins.pause = number, True
        result = self.within(original, args, kwargs)
        self._now, self.origins.pause = -1, False
        made = list(tensors_in(result))
        self.origins.put(made, frozenset({number}))
        tensors: list[Tensor] = []
        try:
            structure = pack(result, tensors)
            outputs = (structure, [t.clone() for t in tensors])
        except Unpackable:
            outputs = None
        self.calls.append(Called(number, copies, uses, outputs))
        return result

    def used(self, spec: TensorSpec) -> None:
        self.users.setdefault(spec.name, set()).add(self._now)


class _Uses(torch.overrides.TorchFunctionMode):
    """Tells which block a parameter is used in, by whatever function."""

    def __init__(self, names: Mapping[int, TensorSpec], trace: _Trace) -> None:
        super().__init__()
        self._names, self._trace = names, trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            for tensor in tensors_in((args, kwargs)):
                spec = self._names.get(id(tensor))
                if spec is not None:
                    self._trace.used(spec)
        return func(*args, **(kwargs or {}))


def find_route(
    network: nn.Module, blocks: Sequence[Block], specs: Sequence[TensorSpec], first: Any, where: str
) -> Route:
    """Run the network once and see in which order its blocks are called and what of each reaches which other.

    Args:
        network: in eval mode.
        blocks: of it.
        specs: of its tensors.
        first: inputs of the first sample.
        where: what to call the sample in messages.

    Returns:
        The order. Blocks that are never called are in no step.

    Raises:
        DataError: the network rejects the sample.

    Cost: one forward pass; the outputs of all blocks are held once.
    """
    names = watched_names(network, specs, frozenset(s.name for s in specs))
    trace = _Trace(blocks, names)
    watch = Watch(names, frozenset({"count"}))
    with torch.no_grad(), no_fast_path(), trace.origins, watch, _Uses(names, trace), trace:
        try:
            call(network, first)
        except Exception as error:  # the network raises whatever it raises
            raise rejected(where, error) from error
    steps = _steps(trace)
    step_of = {b: k for k, members in enumerate(steps) for b in members}
    needs = [set[int]() for _ in steps]
    for made in trace.calls:
        mine = step_of[made.block]
        needs[mine] |= {step_of[b] for b in made.uses} - {mine}
    unkept = next((blocks[c.block].name for c in trace.calls if c.outputs is None), None)
    later = any(other > k for k, needed in enumerate(needs) for other in needed)
    broken = f"outputs of {unkept} are no tensors" if unkept else "blocks call back" if later else ""
    inside = {
        name: step_of[next(iter(users))] for name, users in trace.users.items() if len(users) == 1 and -1 not in users
    }
    rows = {name: float(found["count"]) for name, found in watch.finish().items()}
    return Route(
        tuple(steps), tuple(frozenset(n) for n in needs), tuple(trace.calls), inside, watch.order, rows, broken
    )


def _steps(trace: _Trace) -> list[tuple[int, ...]]:
    """Blocks by first call; those whose calls take turns, or that call each other, together."""
    spans: dict[int, list[int]] = {}
    for time, made in enumerate(trace.calls):
        spans.setdefault(made.block, [time, time])[1] = time
    for outer, inner in trace.joined:
        for block in (outer, inner):
            at = spans.get(outer, spans.get(inner))
            if at is not None:
                spans.setdefault(block, list(at))
    steps: list[tuple[list[int], int]] = []
    joined = {frozenset(pair) for pair in trace.joined}
    for block, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        touching = steps and (first <= steps[-1][1] or any({block, other} in joined for other in steps[-1][0]))
        if touching:
            members, end = steps.pop()
            steps.append(([*members, block], max(end, last)))
        else:
            steps.append(([block], last))
    return [tuple(members) for members, _ in steps]


def together(place: dict[str, int], names: Sequence[str]) -> None:
    """Tensors that belong together but lie in several steps go outside."""
    if len({place[n] for n in names}) > 1:
        place |= dict.fromkeys(names, OUTSIDE)
