"""A planned method applied lazily: the trees of one stage of a recipe, made anew whenever they are asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import final

import torch

from gossamer.drive.one_shot import Planned, apply_step
from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton, skeleton_of
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.methods.base import Step

__all__ = ["StagedSource"]


@dataclass
class _Group:
    """Tensors that must be seen together, with the steps over them."""

    names: list[str]
    steps: list[Step]


@final
class StagedSource(Source):
    """What a method makes of a source, computed on demand; nothing is kept but what a step over several tensors left.

    Args:
        planned: the method's plan over ``inner``.
        inner: the stage before.
    """

    def __init__(self, planned: Planned, inner: Source) -> None:
        self._planned, self._inner = planned, inner
        self._groups: dict[str, _Group] = {}
        for step in planned.plan.steps:
            names = list(dict.fromkeys(planned.sites[t].spec.name for t in step.targets))
            merged = _Group(names, [step])
            for group in {id(g): g for n in names if (g := self._groups.get(n)) is not None}.values():
                merged.names = list(dict.fromkeys(group.names + merged.names))
                merged.steps = group.steps + merged.steps
            self._groups |= dict.fromkeys(merged.names, merged)
        self._order = {id(step): i for i, step in enumerate(planned.plan.steps)}
        self._ready: dict[str, Encoding] = {}
        self._outlines: dict[str, Encoding] = {}
        self._lock = threading.RLock()

    def specs(self) -> tuple[TensorSpec, ...]:
        """As before."""
        return self._inner.specs()

    @property
    def before(self) -> Source:
        """The stage that this one is made from."""
        return self._inner

    def together(self, name: str) -> tuple[str, ...]:
        """The tensors that must be at hand to make this one."""
        return tuple(self._groups[name].names) if name in self._groups else (name,)

    def read(self, name: str) -> Encoding:
        """The stage before, and this method's steps over it."""
        if name not in self._groups:
            return self._inner.read(name)
        if len(self._groups[name].names) == 1:
            return self._made(self._groups[name])[name]
        with self._lock:
            if name not in self._ready:
                self._ready |= self._made(self._groups[name])
            return self._ready.pop(name)

    def _made(self, group: _Group) -> dict[str, Encoding]:
        trees = {name: self._inner.read(name) for name in group.names}
        for step in sorted(group.steps, key=lambda s: self._order[id(s)]):
            trees |= apply_step(self._planned, step, trees.__getitem__)
        return trees

    def outlined(self, name: str) -> Encoding:
        """Without reading where the method's rules tell the skeleton and no new weights appear; else made once."""
        if name not in self._groups:
            return self._inner.outlined(name)
        if name not in self._outlines:
            tree = self._inner.outlined(name)
            for target in (t for s in self._groups[name].steps for t in s.targets):
                site = self._planned.sites[target]
                if site.spec.name == name:
                    made = self._outlined_site(tree.at(site.path))
                    if made is None:
                        return self._remembered(name)
                    tree = tree.put(site.path, made)
            self._outlines[name] = tree
        return self._outlines[name]

    def _outlined_site(self, old: Encoding) -> Encoding | None:
        """Free masks over plain numbers are common enough to be told without looking."""
        if self._planned.method.leaves_some:
            return None
        made = self._planned.method.produces(skeleton_of(old))
        masked = Skeleton(Masked, (("where", Skeleton(Mask)), ("value", Skeleton(Dense))))
        if made != masked:
            return None
        shape = old.dense_shape()
        bits = torch.empty((torch.Size(shape).numel() + 7) // 8, dtype=torch.uint8, device="meta")
        return Masked(Mask(bits, shape), Dense(torch.empty(0, device="meta")))

    def _remembered(self, name: str) -> Encoding:
        tree = self.read(name)
        self._outlines[name] = tree.map_leaves(lambda leaf: leaf.tensor.to("meta"))
        return self._outlines[name]
