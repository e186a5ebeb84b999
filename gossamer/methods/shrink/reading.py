"""Which layers read an embedding, and nothing but that: seen by running the network with its outputs blanked out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.methods.shrink.check import difference, outputs_of

__all__ = ["Reading", "readings"]

_READERS = {
    nn.Linear: ("weight",),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), ("weight_ih_l0", "weight_ih_l0_reverse")),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), ("weight_ih",)),
}


@dataclass(frozen=True)
class Reading:
    """An embedding and all that reads it.

    Args:
        embedding: name of its weight.
        readers: names of the weights that its outputs are multiplied with first.
    """

    embedding: str
    readers: tuple[str, ...]


def readings(model: nn.Module, example: Any) -> tuple[tuple[Reading, ...], dict[str, str]]:
    """Embeddings of fewer rows than columns that only Linear and recurrent layers read, which read nothing else.

    Args:
        model: in eval mode.
        example: inputs.

    Returns:
        Those, and per weight of other embeddings the reason why they are not among them.

    Raises:
        DataError: inputs that the network rejects.
    """
    try:
        expected = outputs_of(model, example)
    except Exception as error:  # the network's own code raises whatever it raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"batch 0: found inputs that the network rejects: {said}") from error
    # Of what is not a number the weights are to blame, which whoever reads them names.
    comparable = any(t.is_floating_point() and not bool(t.isinf().all()) for t in expected)
    found, reasons = [], {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            weight = f"{name}.weight" if name else "weight"
            readers = _readers(model, module, example, expected)
            if not comparable:
                readers = "the network's outputs hold no numbers by which to tell whether it may change"
            if not isinstance(readers, str) and (off := _off(model, weight, readers, example, expected)):
                readers = f"is used elsewhere too: with {', '.join(readers)} as tables the outputs are off by {off}"
            if isinstance(readers, str):
                reasons[weight] = readers
            else:
                found.append(Reading(weight, readers))
    return tuple(found), reasons


def _readers(
    model: nn.Module, embedding: nn.Embedding, example: Any, before: Sequence[Tensor]
) -> tuple[str, ...] | str:
    rows, width = embedding.weight.shape
    if rows >= width:
        return f"has {rows} rows, no fewer than columns ({width})"
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return "is no plain embedding"
    blanks: dict[int, tuple[Tensor, Tensor]] = {}  # the blanks too: while they live no other tensor has their id
    reads: set[str] = set()
    others: set[str] = set()

    def blank(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        nothing = torch.full_like(output, torch.nan)
        blanks[id(nothing)] = (nothing, output)
        return nothing

    def restore(name: str) -> Callable[[nn.Module, Any, Mapping[str, Any]], Any]:
        def hook(module: nn.Module, inputs: Any, named: Mapping[str, Any]) -> Any:
            del module
            first = inputs[0] if inputs else None
            if id(first) not in blanks:
                others.add(name)
                return None
            reads.add(name)
            return (blanks[id(first)][1], *inputs[1:]), dict(named)

        return hook

    modules = {name: module for name, module in model.named_modules() if type(module) in _READERS}
    handles: list[Any] = [embedding.register_forward_hook(blank)]
    handles += [m.register_forward_pre_hook(restore(n), with_kwargs=True) for n, m in modules.items()]
    try:
        after = outputs_of(model, example)
    except Exception as error:  # the network's own code raises whatever it raises
        return "its outputs are needed elsewhere: " + " ".join(f"{type(error).__name__}: {error}".split())[:120]
    finally:
        for handle in handles:
            handle.remove()
    if not reads:
        return "no Linear or recurrent layer reads its outputs as they are"
    if len(before) != len(after) or not all(map(_same, before, after)):
        return f"something beside {', '.join(sorted(reads))} reads its outputs"
    if reads & others:
        return f"{sorted(reads & others)[0]} reads something else too"
    keys = [(name, key) for name in modules if name in reads for key in _READERS[type(modules[name])]]
    return tuple(f"{name}.{key}" if name else key for name, key in keys if hasattr(modules[name], key))


def _off(model: nn.Module, embedding: str, readers: Sequence[str], example: Any, expected: Sequence[Tensor]) -> str:
    """What changes when the embedding is the identity and its readers are tables, as wide as before; empty: nothing."""
    own = copy.deepcopy(model)
    parameters = dict(own.named_parameters(remove_duplicate=False))
    missing = [name for name in (embedding, *readers) if name not in parameters]
    if missing:
        return f"all: {missing[0]} is computed from something else"
    table = parameters[embedding]
    with torch.no_grad():
        for name in readers:
            new = parameters[name].double() @ table.double().T
            parameters[name].zero_()[:, : len(table)] = new.to(table.dtype)
        table.zero_().fill_diagonal_(1.0)
    return difference(outputs_of(own, example), expected)


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or not one.is_floating_point():
        return torch.equal(one, two)
    return torch.allclose(one, two, rtol=0.0, atol=0.0, equal_nan=True)
