"""A network as a graph whose token-wise layers pass feature-major tiles on to each other.

Linear layers that run on grouped rows, the LayerNorms, activations, sums and attention between them stay feature-major;
layouts change only where something else (embeddings, reshaping) reads or writes. An activation that follows a
Linear, and a sum that follows either, happen at its store.

Every layer is one call that writes its whole output before the next one starts.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gossamer.runtime.attention import Attention, TiledAttention, attention_of
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.grouped import GroupedProduct
from gossamer.runtime.tiled import Combine, GroupedLinear, Pack, TiledLinear, TiledNorm, Tiler, Unpack

__all__ = [
    "Either",
    "FeatureMajor",
    "activation_of",
    "adds",
    "captured",
    "drop_identities",
    "feature_major",
    "overwritten",
    "untraceable",
]

_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add")
_IN_PLACE: tuple[Any, ...] = (
    operator.setitem,
    *(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "matmul", "pow", "mod")),
)
_PASS_ON = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
_ABOUT_SHAPES: tuple[Any, ...] = (getattr, "size", "dim", operator.getitem, operator.floordiv, operator.mul)
"""What may go if nobody reads it: how heads were split and merged."""

_FUNCTIONS: Mapping[Any, Activation] = {
    torch.relu: Activation.RELU,
    F.relu: Activation.RELU,
    "relu": Activation.RELU,
    F.silu: Activation.SILU,
    F.relu6: Activation.RELU6,
}
_MODULES: Mapping[type[nn.Module], Activation] = {
    nn.ReLU: Activation.RELU,
    nn.SiLU: Activation.SILU,
    nn.ReLU6: Activation.RELU6,
}


@final
@dataclass(frozen=True)
class FeatureMajor:
    """A captured network, and how much of it is feature-major.

    Args:
        network: computes what the given one does.
        linears: names of the Linear layers that take and return tiles.
        norms: LayerNorms that do.
        attentions: attentions over heads that do.
        fused: activations and sums that happen at a Linear's store.
        changes: how often the layout changes in one pass.
    """

    network: nn.Module
    linears: tuple[str, ...]
    norms: int
    attentions: int
    fused: int
    changes: int


def feature_major(network: nn.Module, arguments: tuple[Any, ...], operations: Tiler) -> FeatureMajor | str:
    """The network with its token-wise layers feature-major.

    Args:
        network: in eval mode, some of its Linear layers replaced by `GroupedLinear`. Not changed.
        arguments: example inputs; later ones may have other batch sizes and lengths.
        operations: at the instruction set of the layers.

    Returns:
        The captured network, or why it cannot be captured.
    """
    try:
        fixed = _fixed(network, arguments)
        graph = _Tracer().trace(network, concrete_args=fixed or None)
        traced = fx.GraphModule(network, graph)
        if overwrites := overwritten(traced):
            return f"{overwrites} overwrites a value that may be read again"
        traced.graph.eliminate_dead_code()  # weights of attention that nobody looks at
        traced.recompile()
        shapes = _Shapes(traced, (torch.float32, torch.bfloat16))
        with torch.inference_mode():
            shapes.run(*arguments)
        made = _Rewriting(traced, shapes.found, operations).run()
    except Exception as error:  # code that depends on values of tensors raises whatever it raises when traced
        return _said(error)
    if not made.linears:
        return "no layer could be feature-major"
    return replace(made, network=Either(made.network, network, arguments))


def untraceable(network: nn.Module, arguments: tuple[Any, ...]) -> str:
    """Why a network cannot be captured for such inputs; empty if it can."""
    try:
        _Tracer().trace(network, concrete_args=_fixed(network, arguments) or None)
    except Exception as error:  # code that depends on values of tensors raises whatever it raises when traced
        return _said(error)
    return ""


_FIXED = (type(None), bool, int, float, str)


def _fixed(network: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments that the captured code takes for granted: those that are no tensors, and defaults."""
    given = iter(arguments)
    fixed = {}
    for name, parameter in inspect.signature(network.forward).parameters.items():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            continue
        value = next(given, parameter.default)
        if isinstance(value, _FIXED):
            fixed[name] = value
    return fixed


@final
class Either(nn.Module):
    """The captured network for the kinds of arguments that it was captured with, else the other one.

    Tensors that were of one shape must be so again, for what was added without broadcasting would broadcast now.
    """

    def __init__(self, captured: nn.Module, other: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.captured = captured
        self.other = other
        self._tensors = tuple(isinstance(a, Tensor) for a in arguments)
        self._fixed = tuple((i, a) for i, a in enumerate(arguments) if isinstance(a, _FIXED))
        given = [(i, a.shape) for i, a in enumerate(arguments) if isinstance(a, Tensor)]
        self._places = tuple(i for i, _ in given)
        self._equal = tuple((i, j) for i, a in given for j, b in given if i < j and a == b)

    def forward(self, *inputs: Any) -> Any:
        """What either computes."""
        if tuple(isinstance(value, Tensor) for value in inputs) == self._tensors and all(
            type(inputs[i]) is type(value) and inputs[i] == value for i, value in self._fixed
        ):
            whole = all(inputs[i].numel() for i in self._places)
            if whole and all(inputs[i].shape == inputs[j].shape for i, j in self._equal):
                return self.captured(*inputs)
        return self.other(*inputs)


def overwritten(traced: fx.GraphModule) -> str:
    """A node that works in place on a value that others may read, for tiles are copies; empty if there is none."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        name = getattr(node.target, "__name__", str(node.target))
        in_place = (
            getattr(module, "inplace", False)
            or node.kwargs.get("inplace", False)
            or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
            or node.target in _IN_PLACE
        )
        if "out" in node.kwargs:
            return str(node.name)
        changed = node.all_input_nodes[0] if in_place and node.all_input_nodes else None
        while changed is not None and len(changed.users) == 1 and _passes_on(changed, modules):
            changed = changed.all_input_nodes[0] if changed.all_input_nodes else None
        # What another module or a sum returns is no view of another value.
        if changed is not None and (
            len(changed.users) > 1 or _passes_on(changed, modules) or not (changed.op == "call_module" or adds(changed))
        ):
            return str(node.name)
    return ""


def _passes_on(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module returns its input, or a view of it."""
    return node.op == "call_module" and isinstance(modules.get(str(node.target)), _PASS_ON)


def drop_identities(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Takes out what does nothing in eval mode, such as dropout, but would stand between layers."""
    for node in list(graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        plain = isinstance(module, (nn.Dropout, nn.Identity))
        off = node.target is F.dropout and (node.kwargs.get("training"), *node.args[2:3]) in ((False,), (None, False))
        if (plain or off) and node.args and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def adds(node: fx.Node) -> bool:
    """Whether a node is a sum, in place or not."""
    return node.op in ("call_function", "call_method") and node.target in _SUMS


def activation_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Activation | None:
    """Which function of one tensor a node is, if kernels have it."""
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        return None
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if type(module) is nn.GELU or node.target is F.gelu:
        approximate = getattr(module, "approximate", node.kwargs.get("approximate", "none"))
        return Activation.GELU_TANH if approximate == "tanh" else Activation.GELU
    if module is not None:
        return _MODULES.get(type(module))
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


def captured(
    network: nn.Module, arguments: tuple[Any, ...]
) -> tuple[fx.GraphModule, Mapping[fx.Node, tuple[int, ...]]] | None:
    """The network as a graph, and the shapes of its float32 tensors; None if it cannot be had or overwrites values."""
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network, concrete_args=_fixed(network, arguments) or None))
        if overwritten(traced):
            return None
        shapes = _Shapes(traced, (torch.float32,))
        with torch.inference_mode():
            shapes.run(*arguments)
    except Exception:  # code that depends on values of tensors raises whatever it raises when traced
        return None
    return traced, shapes.found


def _said(error: Exception) -> str:
    return "tracing failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:160]


class _Tracer(fx.Tracer):
    """Does not look into PyTorch's own layers, nor into ours."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node."""
        return type(m).__module__.startswith("gossamer.runtime.") or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the graph once and keeps the shape of every tensor of some dtypes on the CPU."""

    def __init__(self, traced: fx.GraphModule, dtypes: tuple[torch.dtype, ...]) -> None:
        super().__init__(traced)
        self.dtypes = dtypes
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One step."""
        out = super().run_node(n)
        if isinstance(out, Tensor) and out.dtype in self.dtypes and out.is_cpu:
            self.found[n] = tuple(out.shape)
        return out


@final
class _Rewriting:
    def __init__(self, traced: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]], operations: Tiler) -> None:
        self.traced = traced
        self.graph = traced.graph
        self.shapes = shapes
        self.operations = operations
        self.modules = dict(traced.named_modules())
        drop_identities(self.graph, self.modules)
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.attentions = {n: found for n in self.order if (found := attention_of(n, shapes)) is not None}
        self.inside = self._inside()
        self.attentions = {n: found for n, found in self.attentions.items() if n in self.inside}
        self.tiles: dict[fx.Node, fx.Node] = {}  # a node of the old graph → its value as tiles
        self.rows: dict[fx.Node, fx.Node] = {}  # a node inside → its value as rows
        self.changes = 0

    def run(self) -> FeatureMajor:
        """Rewrites the graph, from its beginning to its end."""
        fused = self._fused()
        absorbed = {n for pair in fused.values() for n in pair if n is not None}
        between = {n for attention in self.attentions.values() for n in attention.inside}
        linears, norms = [], 0
        for node in self.order:
            with self.graph.inserting_before(node):
                module = self._module(node)
                if node in absorbed or node in between:
                    continue
                if node in self.attentions:
                    self.tiles[node] = self._attention(node, self.attentions[node])
                elif node not in self.inside:
                    self._read_rows(node)
                elif isinstance(module, GroupedLinear):
                    self._linear(node, module.product, *fused.get(node, (None, None)))
                    linears.append(str(node.target))
                elif isinstance(module, nn.LayerNorm):
                    norm = TiledNorm(module, self.operations)
                    self.tiles[node] = self._call(node.name, norm, [self._as_tiles(node.args[0])])
                    norms += 1
                else:
                    self.tiles[node] = self._elementwise(node)
        for node in reversed(self.order):
            if node in self.inside or node in between:
                self.graph.erase_node(node)
        self.graph.eliminate_dead_code(lambda node: node.target not in _ABOUT_SHAPES)
        self.graph.lint()
        network = fx.GraphModule(self.traced, self.graph)
        return FeatureMajor(network.eval(), tuple(linears), norms, len(self.attentions), len(absorbed), self.changes)

    def _linear(self, node: fx.Node, product: GroupedProduct, act: fx.Node | None, total: fx.Node | None) -> None:
        if act is not None:
            activation = self._activation(act)
            assert activation is not None
            product = product.with_activation(activation)
        arguments = [self._as_tiles(node.args[0])]
        if total is not None:
            arguments.append(self._as_tiles(self._other(total, act or node)))
        made = self._call(node.name, TiledLinear(product, self.operations), arguments)
        self.tiles.update({n: made for n in (node, act, total) if n is not None})

    def _attention(self, node: fx.Node, found: Attention) -> fx.Node:
        module = TiledAttention(found.heads, causal=found.causal, scale=found.scale, operations=self.operations)
        return self._call(node.name, module, [self._as_tiles(n) for n in (found.query, found.key, found.value)])

    def _elementwise(self, node: fx.Node) -> fx.Node:
        activation = self._activation(node)
        inputs = node.args[:1] if activation is not None else node.args
        combine = Combine(activation or Activation.NONE, self.operations)
        return self._call(node.name, combine, [self._as_tiles(value) for value in inputs])

    def _call(self, name: str, module: nn.Module, arguments: list[fx.Node]) -> fx.Node:
        name = f"{type(module).__name__.lower()}_{name}"
        self.traced.add_submodule(name, module)
        return self.graph.call_module(name, tuple(arguments))

    def _as_tiles(self, value: Any) -> fx.Node:
        assert isinstance(value, fx.Node)
        if value not in self.tiles:  # then it is outside, and is there as rows
            self.changes += 1
            self.tiles[value] = self._call(value.name, Pack(self.operations), [value])
        return self.tiles[value]

    def _read_rows(self, node: fx.Node) -> None:
        """A node outside reads rows of what has become tiles, unless it only asks for their shape."""
        asks = node.target in (getattr, "size", "dim") and node.op in ("call_function", "call_method")
        if asks and node.target is getattr:
            asks = node.args[1] in ("shape", "ndim")
        for value in node.all_input_nodes:
            if value in self.inside and asks:
                node.replace_input_with(value, self.tiles[value])
            elif value in self.inside:
                if value not in self.rows:
                    self.changes += 1
                    self.rows[value] = self._call(value.name, Unpack(self.operations), [self.tiles[value]])
                node.replace_input_with(value, self.rows[value])

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _activation(self, node: fx.Node) -> Activation | None:
        return activation_of(node, self.modules)

    def _is_sum(self, node: fx.Node) -> bool:
        """Of two tensors of one shape, and nothing else."""
        if not adds(node) or len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return False
        first, second = node.all_input_nodes[0], node.all_input_nodes[-1]
        a, b = self.shapes.get(first), self.shapes.get(second)
        return a is not None and a == b and len(a) > 1

    def _is_norm(self, node: fx.Node) -> bool:
        module = self._module(node)
        return type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and len(node.args) == 1

    def _inside(self) -> set[fx.Node]:
        """What is to be feature-major: Linear layers on grouped rows, and what of their neighbours can be."""
        linears = {
            node
            for node in self.order
            if isinstance(self._module(node), GroupedLinear) and len(self.shapes.get(node, ())) > 1 and node.args
        }
        inside = set(linears)
        grown = True
        while grown:
            before = len(inside)
            for node in self.order:
                if node not in self.shapes or node in inside:
                    continue
                reads = any(value in inside for value in node.all_input_nodes)
                feeds = any(user in linears for user in node.users)
                elementwise = self._activation(node) is not None or self._is_sum(node)
                attention = self.attentions.get(node)
                if attention and {attention.query, attention.key, attention.value} <= inside:
                    inside.add(node)
                if (elementwise and reads) or (self._is_norm(node) and (reads or feeds)):
                    inside.add(node)
            grown = len(inside) > before
        return inside

    def _fused(self) -> dict[fx.Node, tuple[fx.Node | None, fx.Node | None]]:
        """Linear layer → the activation and the sum that happen at its store."""
        found: dict[fx.Node, tuple[fx.Node | None, fx.Node | None]] = {}
        taken: set[fx.Node] = set()
        for node in self.order:
            if node not in self.inside or not isinstance(self._module(node), GroupedLinear):
                continue
            act = total = None
            user = self._only_user(node)
            if user is not None and self._activation(user) is not None:
                act = user
                user = self._only_user(act)
            if user is not None and self._is_sum(user) and user not in taken:
                other = self._other(user, act or node)
                # What is added must be there when the product runs, and must not be the product itself.
                if other is not (act or node) and self.order[other] < self.order[node]:
                    total = user
            if act is not None or total is not None:
                found[node] = (act, total)
                taken.update(n for n in (act, total) if n is not None)
        return found

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads a value, if it is inside too."""
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0] in self.inside else None

    def _other(self, total: fx.Node, one: fx.Node) -> fx.Node:
        a, b = total.args
        other = b if a is one else a
        assert isinstance(other, fx.Node)
        return other
