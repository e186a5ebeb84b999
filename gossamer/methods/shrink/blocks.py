"""Whole residual blocks removed, those first without which the outputs change least."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Kept
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, DERIVED, Ask, Found, Method, Plan, Rule, Site, Step, Summary, matches
from gossamer.methods.shrink.check import outputs_of
from gossamer.methods.shrink.measured import changed_by, median_ms, uses_of
from gossamer.methods.shrink.structured import dense_sites
from gossamer.methods.shrink.target import Bound, Target
from gossamer.network.inspect import specs
from gossamer.network.rebuild import Skipped

__all__ = ["Blocks", "residual_blocks"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Backward nodes of layers with weights: a path through one of them is no skip connection.
_LAYERS = ("Convolution", "Addmm", "MmBackward", "BmmBackward", "Baddbmm", "Linear", "Mkldnn", "Scaled", "Embedding")


@final
@dataclass(frozen=True, kw_only=True)
class Blocks(Method):
    """Remove whole residual blocks; in the rebuilt network a block's first input passes instead.

    A block is an innermost module whose output (the first, if its ``forward`` is declared to return a tuple; the others
    become None) has its input's shape and to which the input is added. Greedily, the
    block goes without which (and without those gone before) the outputs on the first batch change least:
    Σ ‖after − before‖² / Σ ‖before‖². A module whose weights would all be gone keeps one of its blocks.

    The encoding holds the block's tensors with nothing kept along dimension 0; `to_dense` is zero. A network of the
    original architecture with these zeros is *not* the network without the block where normalisations or shortcuts
    follow inside: the rebuilt one is, and equals the network in which the block is skipped.

    Args:
        sparsity: fraction of the blocks removed, 0 to 1; or one of the next three.
        parameters: largest fraction of the parameters that stays.
        macs: largest fraction of the layers' multiplications that stays.
        ms: longest time of a forward pass with the first batch, measured.

    Cost: about b² / 2 forward passes for b blocks.

    Example:
        >>> Blocks(sparsity=0.25).sparsity
        0.25

    Source: Veit et al. 2016, arXiv 1605.06431, section 4.1 (residual networks bear it); Men et al. 2024, ShortGPT,
    arXiv 2403.03853.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)

    sparsity: float | None = None
    parameters: float | None = None
    macs: float | None = None
    ms: float | None = None
    bound: Bound | None = field(default=None, metadata=DERIVED)
    candidates: tuple[str, ...] = field(default=(), metadata=DERIVED)

    def __post_init__(self) -> None:
        self.target().check("Blocks")

    def target(self) -> Target:
        """How much goes."""
        return Target(sparsity=self.sparsity, parameters=self.parameters, macs=self.macs, ms=self.ms)

    @property
    def runs_network(self) -> bool:
        """Cuts are tried and measured before they are believed."""
        return self.bound is None

    def bind(self, model: nn.Module, example: Any) -> Method:
        """Find the residual blocks of this network by running it."""
        if self.bound is not None:
            return self
        if example is None:
            raise PlanError("Blocks: found no inputs to measure with, expected data=…")
        own = copy.deepcopy(model).eval()
        names, reasons = residual_blocks(own, example)
        return dataclasses.replace(self, bound=Bound((), reasons, own, example), candidates=names)

    def _chosen(self) -> tuple[str, ...]:
        if self.bound is None:
            raise PlanError("Blocks: found no network, expected bind(model, example) before planning")
        named: dict[str, list[str]] = {b: [b] for b in self.candidates}
        for spec in specs(self.bound.model):
            for block in self.candidates:
                named[block] += [n for n in spec.names if n.startswith(f"{block}.")]
        return tuple(
            b for b, n in named.items() if (not self.only or matches(n, self.only)) and not matches(n, self.skip)
        )

    def rules(self) -> tuple[Rule, ...]:
        """Dense tensors become kept ones of which nothing is kept."""
        return (Rule(DENSE, lambda _: Skeleton(Kept, (("inner", DENSE),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Remove blocks first, then channels, then factorize, prune, share or quantize what is left"

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """Every tensor inside a candidate that has dimensions."""
        block = next((b for b in self._chosen() if spec.name.startswith(f"{b}.")), None)
        if block is None:
            found = self.bound.reasons.get(spec.name.rpartition(".")[0], "") if self.bound else ""
            return Found((), found if spec.kind in (Kind.LINEAR, Kind.CONV) else "")
        if not spec.shape:
            return Found(())
        if not all(n.startswith(f"{block}.") for n in spec.names):
            return Found((), "is tied to a tensor outside its block")
        paths = dense_sites(skeleton)
        return Found(paths) if paths else Found((), f"found {skeleton}, expected Dense. {self.advice(skeleton)}")

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Remove greedily until the target is met; one step per tensor of the blocks that go."""
        del summaries, ask
        bound = self.bound
        assert bound is not None
        present = {s.spec.name for s in sites}
        blocks, skipped = [], {}
        for block in self._chosen():
            missing = [
                s.name for s in bound.listed() if s.shape and s.name.startswith(f"{block}.") and s.name not in present
            ]
            if missing:
                skipped[missing[0]] = f"the block {block} cannot go without it"
            else:
                blocks.append(block)
        gone = self._remove(blocks, bound, skipped)
        steps, shared = [], {}
        for site in sites:
            if any(site.spec.name.startswith(f"{block}.") for block in gone):
                name = f"none.{site.shape[0]}"
                shared[name] = Mask.of(torch.zeros(site.shape[0], dtype=torch.bool))
                steps.append(Step((site.key,), {"none": name}))
        return Plan(tuple(steps), shared, skipped)

    def _remove(self, blocks: Sequence[str], bound: Bound, skipped: dict[str, str]) -> list[str]:
        before = outputs_of(bound.model, bound.example)
        cost, allowed = self._cost(bound, len(blocks))
        gone: list[str] = []
        while cost(gone) > allowed:
            changes: dict[str, float] = {}
            for block in blocks:
                if block in gone or block in skipped or _empties(bound.model, [*gone, block]):
                    continue
                try:
                    after = outputs_of(_without(bound.model, [*gone, block]), bound.example)
                except Exception as error:  # the network's own code raises whatever it raises
                    why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
                    skipped[block] = f"without the block the network fails: {why}"
                    continue
                changes[block] = changed_by(before, after)
            if not changes:
                break
            gone.append(min(changes, key=changes.__getitem__))
        if self.sparsity is None and cost(gone) > allowed:
            raise PlanError(
                f"Blocks: found {cost(gone):.4g} with all removed that can be, expected {allowed:.4g} "
                "(parameters, MACs or ms)"
            )
        return gone

    def _cost(self, bound: Bound, count: int) -> tuple[Callable[[Sequence[str]], float], float]:
        if self.sparsity is not None:
            return lambda gone: count - len(gone), count - round(self.sparsity * count)
        if self.ms is not None:
            return lambda gone: median_ms(_without(bound.model, gone), bound.example), self.ms
        listed = bound.listed()
        if self.parameters is not None:
            uses = {s.name: 1 for s in listed if s.kind is not Kind.BUFFER}
        else:
            measured = uses_of(bound.model, bound.example)
            uses = {s.name: sum(measured.get(n, 0) for n in s.names) for s in listed}
        sizes = {s.name: uses.get(s.name, 0) * prod(s.shape) for s in listed}
        allowed = self.parameters if self.parameters is not None else self.macs
        assert allowed is not None

        def left(gone: Sequence[str]) -> float:
            return float(sum(n for name, n in sizes.items() if not any(name.startswith(f"{b}.") for b in gone)))

        return left, allowed * left([])

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Nothing of one tensor."""
        dense = weight.to_dense()
        mask = shared[entry["none"]]
        assert isinstance(mask, Mask)
        fixed = isinstance(weight, Dense) and weight.fixed
        empty = torch.empty((0, *dense.shape[1:]), dtype=dense.dtype)
        return Kept(Dense(empty, fixed), (mask, *[None] * (dense.dim() - 1)), (1,) * dense.dim())


def _without(model: nn.Module, blocks: Sequence[str]) -> nn.Module:
    made = copy.deepcopy(model)
    for block in blocks:
        owner, _, key = block.rpartition(".")
        setattr(made.get_submodule(owner), key, Skipped.instead_of(made.get_submodule(block)))
    return made


def _empties(model: nn.Module, gone: Sequence[str]) -> bool:
    """Whether a module that is more than a container would lose all its tensors: rebuilding would take it for gone."""
    for block in gone:
        parts = block.split(".")[:-1]
        for i in range(len(parts) + 1):
            name = ".".join(parts[:i])
            module = model.get_submodule(name)
            if isinstance(module, _CONTAINERS):
                continue
            prefix = f"{name}." if name else ""
            inside = [s.name for s in specs(module) if s.shape]
            if all(any(f"{prefix}{n}".startswith(f"{b}.") for b in gone) for n in inside):
                return True
    return False


def residual_blocks(model: nn.Module, example: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the innermost modules with a skip connection around them, in the order of the network.

    Args:
        model: in eval mode.
        example: its inputs.

    Returns:
        The names, and per module that only keeps its shape the reason why it is none.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    reasons: dict[str, str] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], found: Any) -> None:
            first = inputs[0] if inputs else None
            several = isinstance(found, (tuple, list)) and bool(found)
            main = found[0] if several else found
            if several != bool(Skipped.instead_of(module).members):
                # Nothing else would be known of it when the file is loaded.
                seen.setdefault(name, []).extend([])
                reasons[name] = (
                    f"it returns {'a tuple' if several else 'no tuple'}, expected what its forward is declared to "
                    "return, such as -> tuple[Tensor, ...]"
                )
            elif isinstance(first, Tensor) and isinstance(main, Tensor) and first.shape == main.shape:
                seen.setdefault(name, []).append((first, main))
            else:
                seen.setdefault(name, []).extend([])
                reasons[name] = "its output is not a tensor of its first input's shape"

        return keep

    own = copy.deepcopy(model).requires_grad_(True)
    arguments = example if isinstance(example, tuple) else (example,)
    arguments = tuple(
        a.detach().clone().requires_grad_(True) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    )
    handles = [
        m.register_forward_hook(hook(n))
        for n, m in own.named_modules()
        if n and not isinstance(m, _CONTAINERS) and next(m.children(), None) is not None
    ]
    try:
        with torch.enable_grad():
            own(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, calls in seen.items():
        if len(calls) != 1 or name in reasons:
            reasons.setdefault(name, f"it is called {len(calls)} times, expected once")
        elif not _skips(*calls[0]):
            reasons[name] = "its input is not added to its output"
        else:
            found.append(name)
    order = {n: i for i, (n, _) in enumerate(model.named_modules())}
    inner = [n for n in found if not any(other.startswith(f"{n}.") for other in found)]
    return tuple(sorted(inner, key=order.__getitem__)), reasons


def _skips(first: Tensor, output: Tensor) -> bool:
    """Whether a path of the backward graph leads from the output through an addition to the input past all layers."""
    start, goal = output.grad_fn, first.grad_fn
    stack, visited = [(start, False)], set()
    while stack:
        node, added = stack.pop()
        if node is None or (node, added) in visited:
            continue
        visited.add((node, added))
        reached = node is goal if goal is not None else getattr(node, "variable", None) is first
        if reached and added:
            return True
        name = node.name()
        if reached or any(layer in name for layer in _LAYERS):
            continue
        stack += [(below, added or name.startswith("AddBackward")) for below, _ in node.next_functions]
    return False
