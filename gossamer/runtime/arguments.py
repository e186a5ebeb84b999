"""Arguments and results of whole networks: by position or by keyword, nested, and objects that a call changes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError

__all__ = ["Parameters", "difference", "example_arguments", "fresh", "other_sizes", "tensors_in", "untouched"]

_KEPT = (Tensor, type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


@final
class Parameters:
    """What a network's ``forward`` takes.

    Args:
        network: is only looked at.

    Example:
        >>> parameters = Parameters(nn.LSTM(2, 3))
        >>> parameters.in_order((1,), {})
        (1, None)
        >>> parameters.in_order((), {"input": 1, "hx": 2})
        (1, 2)
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = inspect.signature(network.forward).parameters.values()
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [p for p in parameters if p.kind in plain]
        self._positions = {p.name: i for i, p in enumerate(named)}
        self._defaults = tuple(p.default for p in named)

    def in_order(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """All arguments by position, defaults included; None if they cannot be passed like that.

        Args:
            given: by position.
            named: by keyword.
        """
        if len(given) >= len(self._defaults) and not named:
            return given
        filled = [*given, *self._defaults[len(given) :]]
        for name, value in named.items():
            at = self._positions.get(name, -1)
            if at < len(given):  # unknown, or given twice
                return None
            filled[at] = value
        return None if any(value is inspect.Parameter.empty for value in filled) else tuple(filled)


def example_arguments(network: nn.Module, example: Any) -> tuple[Any, ...]:
    """Example inputs by position, defaults included as far as they can be.

    Args:
        network: that takes them.
        example: one argument, a tuple of them, or a mapping of keywords.

    Raises:
        DataError: keywords that ``forward`` does not take by position.
    """
    if isinstance(example, Mapping):
        arguments = Parameters(network).in_order((), example)
        if arguments is None:
            taken = ", ".join(inspect.signature(network.forward).parameters)
            raise DataError(f"example_inputs: found {', '.join(map(str, example))}, expected arguments of ({taken})")
        return arguments
    given = example if isinstance(example, tuple) else (example,)
    return Parameters(network).in_order(given, {}) or given


def fresh(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments, but copies of objects that a call may change, such as a cache of keys and values."""
    return tuple(value if _kept(value) else _copied(value) for value in arguments)


def untouched(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with tensors copied too, for networks that work in place on their inputs."""
    return tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in fresh(arguments))


def _copied(value: Any) -> Any:
    # Tensors that a gradient could be asked of do not let themselves be copied deeply.
    return copy.deepcopy(value, {id(tensor): tensor.detach().clone() for tensor in tensors_in(value)})


def _kept(value: Any) -> bool:
    return isinstance(value, _KEPT) or (type(value) is tuple and all(_kept(part) for part in value))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in tuples, lists, mappings, dataclasses and plain objects, in order.

    Example:
        >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), None]})]
        [1, 2]
    """
    return _tensors_in(value, set())


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif not isinstance(value, (*_KEPT, type, nn.Module)) and hasattr(value, "__dict__"):
        parts = vars(value).values()  # dataclasses too
    if parts and id(value) not in seen:  # objects may refer to each other
        for part in parts:
            yield from _tensors_in(part, seen | {id(value)})


def other_sizes(arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The arguments with one more example, and up to eight tokens; then with one more example only.

    Example:
        >>> [tuple(a[0].shape) for a in other_sizes((torch.zeros(2, 30),))]
        [(3, 8), (3, 30)]
    """

    def resized(value: Any, tokens: int | None) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2 or not value.numel():
            return value
        more = torch.cat([value, value[:1]])
        return more if tokens is None or value.ndim > 3 else more[:, :tokens].contiguous()

    yield tuple(resized(value, 8) for value in arguments)
    yield tuple(resized(value, None) for value in arguments)


def difference(network: nn.Module, arguments: tuple[Any, ...], expected: Any) -> str:
    """What goes wrong when a lowered network runs: an exception, or outputs that are not the dense ones.

    Args:
        network: lowered.
        arguments: example inputs.
        expected: outputs of the dense network.

    Returns:
        One line; empty if nothing does.
    """
    with torch.inference_mode():
        try:
            found = network(*untouched(arguments))
        except Exception as error:  # the network's own code raises whatever it raises
            return "fails: " + " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if type(found) is not type(expected):
        return f"returns {type(found).__name__}, expected {type(expected).__name__}"
    ours, theirs = list(tensors_in(found)), list(tensors_in(expected))
    if len(ours) != len(theirs):
        return f"returns {len(ours)} tensors, expected {len(theirs)}"
    return next((said for pair in zip(ours, theirs, strict=True) if (said := _apart(*pair))), "")


def _apart(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"returns shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return ""
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    largest = float(expected.abs().max())
    off = float((found.double() - expected.double()).abs().nan_to_num().max())
    return "" if off <= tolerance * max(largest, 1e-30) else f"is off by {off:.1e} of {largest:.1e}"
