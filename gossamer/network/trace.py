"""The calls of a network in order, by symbolic tracing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

__all__ = ["Trace", "traced"]


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Args:
        graph: its calls.
        modules: by name.
        calls: how often each module is used; code that reads a module's tensor itself counts as one use more.
    """

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    calls: Mapping[str, int]

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None: it calls something else."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None


def traced(model: nn.Module) -> Trace | str:
    """Trace a network, or say why that is not possible."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx raises whatever the traced code raises
        return f"the network cannot be traced: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] += 1
        elif node.op == "get_attr":
            calls[str(node.target).rpartition(".")[0]] += 1
    return Trace(graph, dict(model.named_modules()), calls)
