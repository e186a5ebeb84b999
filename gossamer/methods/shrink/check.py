"""Couplings are tried on the network before they are believed: cut, the network must run and compute what it should."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Kept, View
from gossamer.methods.shrink.coupling import Coupling, Cut, cuts_of
from gossamer.network.inspect import assign, specs, tensors
from gossamer.network.rebuild import materialise, refresh

__all__ = ["believed", "cut_network", "difference", "fill_of", "kept_tree", "outputs_of", "shapes_of"]

# Of the largest output: sums in another order give a thousandth of it, a wrong channel far more.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2
_TIPPED = 0.01


def shapes_of(listed: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Output-first shape of every tensor under its canonical name."""
    return {s.name: tuple(s.shape[i] for i in s.output_first) if s.output_first else s.shape for s in listed}


def kept_tree(dense: Tensor, cut: Mapping[int, Cut], *, fixed: bool = False, fill: float = 0.0) -> Kept:
    """A tensor cut along some of its dimensions."""
    keep = [cut[d].mask() if d in cut else None for d in range(dense.dim())]
    repeat = [cut[d].repeat if d in cut else 1 for d in range(dense.dim())]
    for dim, one in cut.items():
        dense = dense.index_select(dim, one.indices())
    return Kept(Dense(dense, fixed), tuple(keep), tuple(repeat), fill)


def fill_of(name: str) -> float:
    """What stands for a removed value: 1 for a variance, else 0."""
    return 1.0 if name.endswith("running_var") else 0.0


def cut_network(
    model: nn.Module, couplings: Sequence[tuple[Coupling, Tensor]]
) -> tuple[nn.Module, dict[str, Encoding]]:
    """A smaller copy of a network, and the trees that it was made of.

    Args:
        model: not changed.
        couplings: each with its bool mask [channels], True = kept.
    """
    listed, values = specs(model), tensors(model)
    cuts = cuts_of(couplings, shapes_of(listed))
    trees: dict[str, Encoding] = {}
    for spec in listed:
        if spec.name in cuts:
            dense = values[spec.name]
            dense = dense.permute(spec.output_first) if spec.output_first else dense
            tree: Encoding = kept_tree(dense, cuts[spec.name], fill=fill_of(spec.name))
            trees[spec.name] = View(tree, spec.output_first) if spec.output_first else tree
    return materialise(copy.deepcopy(model), listed, trees), trees


def outputs_of(model: nn.Module, example: Any) -> list[Tensor]:
    """Every tensor that the network returns for the example, in order."""
    named = example if isinstance(example, Mapping) else {}
    arguments = example if isinstance(example, tuple) else () if named else (example,)
    with torch.no_grad():
        return _tensors(model(*arguments, **named))


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, Mapping):
        values: Iterable[Any] = found.values()
    elif dataclasses.is_dataclass(found) and not isinstance(found, type):
        values = [getattr(found, field.name) for field in dataclasses.fields(found)]
    else:
        values = found if isinstance(found, (tuple, list)) else ()
    return [t for value in values for t in _tensors(value)]


def believed(
    model: nn.Module, couplings: Sequence[Coupling], example: Any
) -> tuple[tuple[Coupling, ...], dict[str, str]]:
    """The couplings that hold: with half of their channels cut, the network runs and equals the zero-masked one.

    All are tried at once; only if that fails, each on its own. Where statistics are taken over the channels, outputs
    must only keep their shape.

    Args:
        model: in eval mode; not changed.
        couplings: as a tracer found them.
        example: inputs of the network.

    Returns:
        Those that hold, and per producer of the others the reason.
    """
    before = outputs_of(model, example)
    exact = [c for c in couplings if c.exact]
    if not _wrong(model, couplings, example, before) and not _wrong(model, exact, example, before):
        return tuple(couplings), {}
    good: list[Coupling] = []
    reasons: dict[str, str] = {}
    for coupling in _tied_where_needed(model, couplings, example, before):
        why = _wrong(model, [coupling], example, before)
        if why:
            reasons |= dict.fromkeys(coupling.producers, f"without some of its channels the network {why}")
        else:
            good.append(coupling)
    if good and (why := _wrong(model, good, example, before)):
        reasons |= {p: f"together with other layers' channels cut the network {why}" for c in good for p in c.producers}
        return (), reasons
    return tuple(good), reasons


def _tied_where_needed(
    model: nn.Module, couplings: Sequence[Coupling], example: Any, before: Sequence[Tensor]
) -> list[Coupling]:
    """Where code splits a layer's channels evenly, as many of every part must stay: one coupling of all parts."""
    by_producer: dict[tuple[tuple[str, ...], int], list[Coupling]] = {}
    for coupling in couplings:
        by_producer.setdefault((coupling.producers, coupling.channels), []).append(coupling)
    found: list[Coupling] = []
    for parts in by_producer.values():
        if len(parts) > 1 and any(_wrong(model, [part], example, before) for part in parts):
            members = tuple(m for part in parts for m in part.members)
            tied = Coupling(parts[0].producers, parts[0].channels, members, all(p.exact for p in parts))
            found.append(tied)
        else:
            found += parts
    return found


def _wrong(model: nn.Module, couplings: Sequence[Coupling], example: Any, before: Sequence[Tensor]) -> str:
    """What goes wrong with half of the channels cut; empty: nothing."""
    # Other channels and another number of them for every coupling: one that is taken for another must show.
    orders = [torch.randperm(c.channels, generator=torch.Generator().manual_seed(i)) for i, c in enumerate(couplings)]
    chosen = [
        (c, order < max(1, (c.channels + 1) // 2 - i % 2))
        for i, (c, order) in enumerate(zip(couplings, orders, strict=True))
        if c.channels > 1
    ]
    if not chosen:
        return ""
    try:
        small, trees = cut_network(model, chosen)
        found = outputs_of(small, example)
    except Exception as error:  # the network's own code raises whatever it raises
        return "fails: " + " ".join(f"{type(error).__name__}: {error}".split())[:120]
    shapes = [tuple(t.shape) for t in found]
    if shapes != [tuple(t.shape) for t in before]:
        return f"returns shapes {shapes}, expected {[tuple(t.shape) for t in before]}"
    if not all(c.exact for c in couplings):
        return ""
    masked = copy.deepcopy(model)
    for spec in specs(masked):
        if spec.name in trees:
            assign(masked, spec.names, trees[spec.name].to_dense().detach())
    refresh(masked)
    off = difference(found, outputs_of(masked, example))
    return f"is off by {off} from the one with zeros" if off else ""


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """By how much outputs differ from what was expected; empty: by rounding alone.

    What is infinite must be so in both; where something is not a number there is nothing to compare. Of whole numbers,
    such as classes, one in a hundred may differ: rounding tips those that are nearly equal.
    """
    for mine, good in zip(found, expected, strict=True):
        if not good.numel() or bool(good.isnan().any()):
            continue
        if not good.is_floating_point():
            other = float((mine != good).double().mean())
            if other > _TIPPED:
                return f"{other:.0%} of the numbers"
            continue
        finite = good.isfinite()
        if not torch.equal(mine.isfinite(), finite):
            return "numbers that are not finite"
        largest = max(float(good[finite].abs().max()) if bool(finite.any()) else 0.0, 1e-30)
        off = float((mine.double() - good.double())[finite].abs().max()) if bool(finite.any()) else 0.0
        half = good.dtype in (torch.float16, torch.bfloat16)
        if not off <= (_HALF_TOLERANCE if half else _TOLERANCE) * largest:
            return f"{off:.1e} of {largest:.1e}"
    return ""
