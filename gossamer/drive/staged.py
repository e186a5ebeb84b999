"""A planned method applied lazily: the trees of one stage of a recipe, made anew whenever they are asked for."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.drive.one_shot import Planned, apply_step
from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding, Leaf
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
            names = list(dict.fromkeys(p.spec.name for t in step.targets for p in planned.places(t)))
            merged = _Group(names, [step])
            for group in {id(g): g for n in names if (g := self._groups.get(n)) is not None}.values():
                merged.names = list(dict.fromkeys(group.names + merged.names))
                merged.steps = group.steps + merged.steps
            self._groups |= dict.fromkeys(merged.names, merged)
        self._order = {id(step): i for i, step in enumerate(planned.plan.steps)}
        self._ready: dict[str, Encoding] = {}
        self._outlines: dict[str, Encoding] = {}
        self._masked: dict[str, Encoding] = {}
        # What several tensors share they must share in outline too. Leaves are held weakly: they come and go.
        self._metas: dict[int, tuple[weakref.ref[Tensor], Tensor]] = (
            inner._metas if isinstance(inner, StagedSource) else {}
        )
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
                for place in self._planned.places(target):
                    if place.spec.name != name:
                        continue
                    made = self._outlined_site(target, tree.at(place.path))
                    if made is None:
                        return self._remembered(name)
                    tree = tree.put(place.path, made)
            self._outlines[name] = tree
        return self._outlines[name]

    def _outlined_site(self, target: str, old: Encoding) -> Encoding | None:
        """Free masks over plain numbers are common enough to be told without looking."""
        if self._planned.method.leaves_some:
            return None
        made = self._planned.method.produces(skeleton_of(old))
        masked = Skeleton(Masked, (("where", Skeleton(Mask)), ("value", Skeleton(Dense))))
        if made != masked:
            return None
        if target not in self._masked:
            shape = old.dense_shape()
            bits = torch.empty((torch.Size(shape).numel() + 7) // 8, dtype=torch.uint8, device="meta")
            self._masked[target] = Masked(Mask(bits, shape), Dense(torch.empty(0, device="meta")))
        return self._masked[target]

    def _remembered(self, name: str) -> Encoding:
        """Outlines of all tensors that are made together: at hand at once, they show what they share."""
        self.forget()
        trees = {member: self.read(member) for member in self._groups[name].names}
        self._outlines |= {member: tree.map_leaves(self._meta) for member, tree in trees.items()}
        return self._outlines[name]

    def _meta(self, leaf: Leaf) -> Tensor:
        known, meta = self._metas.get(id(leaf.tensor), (None, None))
        if known is None or meta is None or known() is not leaf.tensor:
            meta = leaf.tensor.to("meta")
            self._metas[id(leaf.tensor)] = weakref.ref(leaf.tensor), meta
        return meta

    def forget(self) -> None:
        """Drop what was made for tensors that nobody asked for, so that those read from now on are made together."""
        self._ready.clear()
        if isinstance(self._inner, StagedSource):
            self._inner.forget()
