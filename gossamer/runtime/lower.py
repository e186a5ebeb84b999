"""From encodings to a fast callable: per layer the fastest of the measured candidates, dense always among them.

Then neighbouring layers keep a layout that suits them (`gossamer.runtime.graph`), if the network can be captured and
that is measured to be faster. Layer by layer: every layer is one call, whole outputs are written before the next.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Dense
from gossamer.errors import CompositionError, DataError
from gossamer.measure.latency import interleaved
from gossamer.network.inspect import owner_of
from gossamer.network.inspect import specs as specs_of
from gossamer.network.rebuild import small_tree
from gossamer.runtime.candidates import WORTH_TRYING, density_of, is_stem, offers_for, resident_bytes
from gossamer.runtime.convolution import SparseConv, geometry_of, refusal
from gossamer.runtime.cpu import unavailable
from gossamer.runtime.folding import fold_norms, fuse_convolutions
from gossamer.runtime.graph import FeatureMajor, feature_major, untraceable
from gossamer.runtime.operators import factorized
from gossamer.runtime.tiled import GroupedLinear, tiler
from gossamer.runtime.tuning import Memory, convolution_key, layer_key

__all__ = ["Choice", "Lowered", "lower"]

_SECONDS_PER_LAYER = 0.15
_SECONDS_PER_NETWORK = 0.5
_TILE_FROM = 16  # tokens from which on a network may be feature-major


@dataclass(frozen=True)
class Choice:
    """What runs a layer, and why.

    Args:
        layer: module name.
        kernel: name of the chosen candidate.
        density: share of weights that are not zero.
        ms: measured time of the choice; on grouped rows without the change of layout, if the network can be captured.
        dense_ms: measured time of the dense layer.
        bytes: of the weights as held in memory.
        dense_bytes: of the dense weights.
        reason: why nothing else was tried; empty if candidates were timed.
        layout: of a layer on grouped rows: "feature-major", or "module replacement" with why not; else empty.
    """

    layer: str
    kernel: str
    density: float
    ms: float
    dense_ms: float
    bytes: int
    dense_bytes: int
    reason: str = ""
    layout: str = ""


@final
class Lowered(nn.Module):
    """A network whose layers run on what was measured to be fastest. For inference; any batch size.

    Args:
        network: with its layers replaced.
        choices: per layer.
        captured: computes the same with neighbouring layers feature-major, where that is faster.
    """

    def __init__(self, network: nn.Module, choices: Sequence[Choice], captured: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.captured = None if captured is None else captured.eval().requires_grad_(False)
        self._choices = tuple(choices)

    def forward(self, *inputs: Any) -> Any:
        """The network's outputs."""
        network = self.network if self.captured is None else self.captured
        if torch.is_inference_mode_enabled():  # entering it again would cost a small network a twentieth of its time
            return network(*inputs)
        with torch.inference_mode():
            return network(*inputs)

    def explain(self) -> tuple[Choice, ...]:
        """Per layer: chosen kernel, density, times, bytes."""
        return self._choices


def lower(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    specs: Sequence[TensorSpec] | None = None,
    trees: Mapping[str, Encoding] | None = None,
) -> Lowered:
    """Replace layers by faster ones where measured.

    Args:
        model: dense network; zeros in its Linear and convolution weights are used. Not changed.
        example_inputs: one tensor or a tuple of arguments; candidates are timed on what reaches each layer.
        specs: tensors of the original network, with ``trees``.
        trees: encodings, which also tell factorized weights apart. None: zeros in the weights are looked for.

    Returns:
        A drop-in callable for inference.

    Raises:
        DataError: inputs that the network rejects.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise CompositionError("lower: found a network with attached weights, expected harvest(net) first, then lower")
    network = copy.deepcopy(model).eval()
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    weights = _weights(network, specs, trees)
    seen, expected = _inputs_of(network, [names[0] for names, _ in weights], arguments)
    why_not = unavailable()
    if why_not:
        warnings.warn(f"sparse kernels are not available, PyTorch runs everything: {why_not}", stacklevel=2)
    network = _folded(network, arguments, expected, weights) if not why_not else network
    tokens = max((x.numel() // max(1, x.shape[-1]) for x in seen.values()), default=0)
    # With fewer tokens than a vector has places most of a tile is padding: layers are timed as they stand.
    tiles = not why_not and tokens >= _TILE_FROM and not untraceable(network, arguments)
    tuner = _Tuner(Memory.of_this_machine(), jit=not why_not, traceable=tiles)
    choices: dict[str, Choice] = {}
    replaced: list[tuple[tuple[str, ...], nn.Module]] = []
    for names, tree in weights:
        name = names[0]
        layer = network.get_submodule(name)
        if name not in seen:
            choices[name] = _kept_dense(name, layer, "the layer was not called with the example inputs")
            continue
        chosen, choices[name] = tuner.choose(name, layer, tree, seen[name])
        if chosen is not layer:
            replaced.append((names, layer))
            network = _put(network, names, chosen)
    # Code may read a layer's weight itself, or take another path without our hooks: run it as users will.
    while replaced and (problem := _differs(network, arguments, expected)):
        names, layer = replaced.pop()
        network = _put(network, names, layer)
        choices[names[0]] = _kept_dense(names[0], layer, f"with faster layers the network {problem}")
    captured = None
    if any(isinstance(module, SparseConv) for module in network.modules()):
        fused = fuse_convolutions(network, arguments)
        if fused is not network and not _differs(fused, arguments, expected):
            return Lowered(network, [_between_convolutions(network, choice) for choice in choices.values()], fused)
    if any(isinstance(module, GroupedLinear) for module in network.modules()):
        captured = _captured(network, arguments, expected, choices, tuner)
    return Lowered(network, list(choices.values()), captured)


def _between_convolutions(network: nn.Module, choice: Choice) -> Choice:
    """What is said of a Linear layer on grouped rows in a network that was captured for its convolutions."""
    if not isinstance(network.get_submodule(choice.layer), GroupedLinear):
        return choice
    return replace(choice, layout="module replacement: the network is captured for its convolutions")


def _folded(
    network: nn.Module, arguments: tuple[Any, ...], expected: Any, weights: list[tuple[tuple[str, ...], Encoding]]
) -> nn.Module:
    """The network with BatchNorm folded into convolutions, if some of these have zeros to gain from."""
    layers = {names[0]: network.get_submodule(names[0]) for names, _ in weights}
    convolutions = [m for m in layers.values() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    if not any(density_of(m) < WORTH_TRYING and not isinstance(geometry_of(m), str) for m in convolutions):
        return network
    folded = copy.deepcopy(network)
    skip = frozenset(name for names, tree in weights if factorized(tree) for name in names)
    changed = fold_norms(folded, arguments, skip)
    return folded if changed and not _differs(folded, arguments, expected) else network


def _captured(
    network: nn.Module, arguments: tuple[Any, ...], expected: Any, choices: dict[str, Choice], tuner: _Tuner
) -> nn.Module | None:
    """The network feature-major, if that can be done and is faster; says so in the choices, which are changed."""
    made = feature_major(network, arguments, tiler())
    if isinstance(made, str):
        why_not = made
    elif problem := _differs(made.network, arguments, expected):
        why_not = f"captured, it {problem}"
    else:
        modules: dict[str, nn.Module] = {"module replacement": network, "feature-major": made.network}
        calls = {name: _call_all(module, arguments) for name, module in modules.items()}
        times = tuner.network_times(choices.values(), arguments, calls)
        why_not = "" if times["feature-major"] < times["module replacement"] else "measured to be faster"
    inside = made.linears if isinstance(made, FeatureMajor) and not why_not else ()
    for name, choice in choices.items():
        if isinstance(network.get_submodule(name), GroupedLinear):
            outside = why_not or "no neighbour shares its layout"
            layout = "feature-major" if name in inside else f"module replacement: {outside}"
            choices[name] = replace(choice, layout=layout)
    return made.network if isinstance(made, FeatureMajor) and not why_not else None


def _differs(network: nn.Module, arguments: tuple[Any, ...], expected: Any) -> str:
    """What goes wrong when the lowered network runs: an exception, or outputs that are not the dense ones."""
    with torch.inference_mode():
        try:
            found = network(*arguments)
        except Exception as error:  # the network's own code raises whatever it raises
            return "fails: " + " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return ""
    if found.shape != expected.shape:
        return f"returns shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    off = float((found.double() - expected.double()).abs().nan_to_num().max()) if expected.numel() else 0.0
    return "" if off <= tolerance * max(largest, 1e-30) else f"is off by {off:.1e} of {largest:.1e}"


def _weights(
    network: nn.Module, specs: Sequence[TensorSpec] | None, trees: Mapping[str, Encoding] | None
) -> list[tuple[tuple[str, ...], Encoding]]:
    """Linear and convolution layers, and factorized embeddings, under all their names, with their weight's tree."""
    known: dict[str, Encoding] = {}
    if specs is not None and trees is not None:
        known = {n: small_tree(trees[s.name]) for s in specs for n in s.names}
    else:
        parameters = dict(network.named_parameters())
        known = {
            n: Dense(parameters[s.name].detach()) for s in specs_of(network) for n in s.names if s.name in parameters
        }
    found: dict[int, tuple[tuple[str, ...], Encoding]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        tree = known.get(_join(name, "weight"))
        if tree is None or type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding):
            continue
        if isinstance(module, nn.Embedding) and not factorized(tree):
            continue  # a lookup touches few rows: zeros in the others cost nothing
        names, tree = found.get(id(module), ((), tree))
        found[id(module)] = ((*names, name), tree)
    return list(found.values())


def _join(owner: str, key: str) -> str:
    return f"{owner}.{key}" if owner else key


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs_of(network: nn.Module, names: list[str], arguments: tuple[Any, ...]) -> tuple[dict[str, Tensor], Any]:
    """What reaches each layer, and the outputs, from one forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del module
            if inputs and isinstance(inputs[0], Tensor):
                seen.setdefault(name, inputs[0].detach().clone())

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    with _hooks(handles), torch.inference_mode():
        try:
            outputs = network(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise DataError(f"example_inputs: the network rejects them: {reason}") from error
    return seen, outputs


def _kept_dense(name: str, layer: nn.Module, reason: str) -> Choice:
    weight = cast(Tensor, layer.weight)
    size = weight.numel() * weight.element_size()
    return Choice(name, "dense", density_of(layer), float("nan"), float("nan"), size, size, reason)


@final
class _Tuner:
    """Chooses by measured times, which are remembered."""

    def __init__(self, memory: Memory, *, jit: bool, traceable: bool) -> None:
        self.memory = memory
        self.jit = jit
        self.traceable = traceable

    def choose(self, name: str, layer: nn.Module, tree: Encoding, inputs: Tensor) -> tuple[nn.Module, Choice]:
        """The fastest candidate for a layer."""
        plain = _kept_dense(name, layer, "")
        offers = offers_for(layer, tree, plain.density, inputs, jit=self.jit)
        if len(offers) == 1:
            return layer, replace(plain, reason=_no_candidate(layer, tree, plain.density, inputs, jit=self.jit))
        built: dict[str, nn.Module] = {}

        def measure() -> dict[str, float]:
            built.update({kind: make() for kind, make in offers.items()})
            calls = {kind: self._call(module, inputs) for kind, module in built.items()}
            times = interleaved(calls, seconds=_SECONDS_PER_LAYER * len(calls))
            return {kind: timing.median_ms for kind, timing in times.items()}

        if isinstance(layer, nn.Linear) and not factorized(tree):
            shape = (layer.out_features, layer.in_features)
            tokens = inputs.numel() // max(1, inputs.shape[-1])
            key = f"{layer_key(shape, plain.density, tokens, inputs.dtype)} tiles {self.traceable}"
            times = self.memory.times(key, tuple(offers), measure)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)) and not factorized(tree):
            key = convolution_key(layer, plain.density, tuple(inputs.shape), inputs.dtype)
            times = self.memory.times(key, tuple(offers), measure)
        else:
            times = measure()
        best = min(times, key=lambda kind: times[kind])
        chosen = built[best] if best in built else offers[best]()
        choice = replace(plain, kernel=best, ms=times[best], dense_ms=times["dense"], bytes=resident_bytes(chosen))
        return chosen, choice

    def network_times(
        self, choices: Iterable[Choice], arguments: tuple[Any, ...], calls: Mapping[str, Callable[[], object]]
    ) -> dict[str, float]:
        """Milliseconds of the whole network in several forms."""
        layers = [(c.layer, c.kernel, c.dense_bytes, round(c.density, 2)) for c in choices]
        shapes = [tuple(a.shape) if isinstance(a, Tensor) else repr(type(a)) for a in arguments]

        def measure() -> dict[str, float]:
            times = interleaved(calls, seconds=_SECONDS_PER_NETWORK)
            return {kind: timing.median_ms for kind, timing in times.items()}

        return self.memory.times(f"network {layers} {shapes}", tuple(calls), measure)

    def _call(self, module: nn.Module, inputs: Tensor) -> Callable[[], object]:
        if isinstance(module, GroupedLinear) and self.traceable and inputs.numel():
            packed = tiler().pack(inputs)  # neighbours will hand on tiles
            return lambda: module.product(packed.data)
        return lambda: module(inputs)


def _call_all(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: module(*arguments)


def _no_candidate(layer: nn.Module, tree: Encoding, density: float, inputs: Tensor, *, jit: bool) -> str:
    if factorized(tree):
        return f"{type(tree).__name__} in {type(layer).__name__}: no small operators for it here"
    if density >= WORTH_TRYING and not is_stem(layer):
        return f"density {density:.2f}: too few zeros to gain from"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        why = refusal(layer, tuple(inputs.shape[-len(layer.kernel_size) :]), density) if jit else ""
        if why:
            return f"{type(layer).__name__}: {why}"
    elif not isinstance(layer, nn.Linear):
        return f"{type(layer).__name__}: no sparse kernel for it"
    if not jit:
        return "no compiler for this processor"
    return f"{inputs.dtype}: only float32 has sparse kernels"


def _put(network: nn.Module, names: tuple[str, ...], new: nn.Module) -> nn.Module:
    """The network with a layer replaced under all its names."""
    for name in names:
        if not name:
            return new
        owner, key = owner_of(name)
        setattr(network.get_submodule(owner), key, new)
    return network
