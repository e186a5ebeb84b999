"""The blocks of a network: what is compressed at a time when it is calibrated from its inputs to its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from gossamer.errors import PlanError
from gossamer.methods.base import matches

__all__ = ["Block", "find_blocks", "split"]

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A module that is compressed at a time.

    Args:
        name: its name in the network.
        module: itself.
    """

    name: str
    module: nn.Module


def find_blocks(network: nn.Module, named: Sequence[str] = ()) -> tuple[Block, ...]:
    """Divide a network into modules without common parts that hold, together, all layers.

    Blocks are the children of containers (ModuleList, Sequential, ModuleDict) of two or more members of one class;
    containers inside containers are divided further. What lies beside them (embeddings, heads) is divided into the
    largest modules in which there are none. Parameters of modules that contain blocks belong to no block.

    Args:
        network: any.
        named: glob patterns of module names; what they match is taken as it is instead.

    Returns:
        In the order of the network's modules, not of their use.

    Raises:
        PlanError: a pattern that matches no module with weights.

    Example:
        >>> layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        >>> [b.name for b in find_blocks(nn.ModuleDict({"embed": nn.Embedding(9, 4), "layers": layers}))]
        ['embed', 'layers.0', 'layers.1']
    """
    names = {name for name, module in network.named_modules(remove_duplicate=False) if name and _has_weights(module)}
    for pattern in named:
        if not any(matches((name,), pattern) for name in names):
            some = ", ".join(sorted(names)[:4])
            raise PlanError(
                f"blocks: found {pattern!r}, which matches no module with weights, expected names like {some}"
            )
    found: dict[int, Block] = {}
    for block in _divided("", network, named, inside=False):
        found.setdefault(id(block.module), block)
    return tuple(found.values())


def split(blocks: Sequence[Block], uncalled: Sequence[int]) -> tuple[Block, ...]:
    """Blocks of which some, which the network does not call, give way to their children with weights."""
    found: dict[int, Block] = {}
    for number, block in enumerate(blocks):
        children = [(n, m) for n, m in block.module.named_children() if _has_weights(m)]
        parts = [Block(f"{block.name}.{n}", m) for n, m in children] if number in uncalled else []
        for part in parts or [block]:
            found.setdefault(id(part.module), part)
    return tuple(found.values())


def _divided(name: str, module: nn.Module, named: Sequence[str], *, inside: bool) -> Iterator[Block]:
    children = [(f"{name}.{n}" if name else n, m) for n, m in module.named_children() if _has_weights(m)]
    if not children or (named and name and matches((name,), named)):
        if name:
            yield Block(name, module)
        return
    if named:
        goes_on = any(matches((f"{name}.{n}" if name else n,), named) for n, _ in module.named_modules() if n)
    elif type(module).forward is nn.Module.forward:
        goes_on = True  # it is never called: its members are
    elif inside and not isinstance(module, _CONTAINERS):
        goes_on = False  # a member of a repeated container is one block, whatever it is made of
    else:
        goes_on = any(_repeats(m) for m in module.modules())
    if name and not goes_on:
        yield Block(name, module)
        return
    for child_name, child in children:
        yield from _divided(child_name, child, named, inside=not named and (inside or _repeats(module)))


def _repeats(module: nn.Module) -> bool:
    """Whether it is a container of two or more members of one class."""
    if not isinstance(module, _CONTAINERS):
        return False
    kinds = Counter(type(child) for child in module.children() if _has_weights(child))
    return any(count >= 2 for count in kinds.values())


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
