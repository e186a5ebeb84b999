"""Layers for few tokens one after the other, with the activations between them done at the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, fx, nn

from gossamer.runtime.epilogue import Activation
from gossamer.runtime.graph import Either, activation_of, captured, drop_identities
from gossamer.runtime.linear import checked_rows
from gossamer.runtime.spmm import workspace
from gossamer.runtime.vector import VectorLinear, VectorProduct, plain

__all__ = ["VectorChain", "chain_vectors"]


@final
class VectorChain(nn.Module):
    """Products whose outputs nothing else reads: for one token, only the last output becomes a tensor.

    Every product is one call that writes its whole output before the next begins.

    Args:
        products: at least one, each as wide as the one before it is tall.

    Example:
        >>> import torch
        >>> layer = VectorLinear(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), None)
        >>> VectorChain([layer.product, layer.product])(torch.tensor([[1.0, 10.0]]))
        tensor([[ -2., -20.]])
    """

    def __init__(self, products: Sequence[VectorProduct]) -> None:
        super().__init__()
        self.products = tuple(products)
        self._single = (1, products[0].columns)
        # Outputs of the layers between take turns in two places.
        half = -(-max((p.rows for p in products[:-1]), default=0) // 16) * 16
        self._inner = tuple((p.once, 4 * half * (i % 2)) for i, p in enumerate(products[:-1]))
        self._last, self._rows, self._room = products[-1].once, products[-1].rows, max(1, 2 * half)
        self._workspace = workspace()

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., K] → [..., M].

        Raises:
            RuntimeError: x has another dtype, device or width, or a gradient is asked for.
        """
        if x.shape == self._single and plain(x):
            y = x.new_empty(1, self._rows)
            source = x.data_ptr()
            if self._inner:
                room = self._workspace.address(self._room)
                for once, offset in self._inner:
                    once(source, room + offset)
                    source = room + offset
            self._last(source, y.data_ptr())
            return y
        rows = checked_rows(x, self.products[0].columns, "VectorChain")
        for product in self.products:
            rows = product(rows)
        return rows if x.ndim == 2 else rows.view(*x.shape[:-1], self._rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorChain:
        return VectorChain(self.products)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weights, without biases."""
        return sum(product.resident_bytes for product in self.products)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        sizes = " → ".join(str(p.columns) for p in self.products)
        return f"{sizes} → {self._rows}, {', '.join(p.activation.name.lower() for p in self.products)}"


def chain_vectors(network: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    """The network captured, with runs of layers for few tokens and their activations as chains.

    Args:
        network: in eval mode, some of its layers replaced by `VectorLinear`. Not changed.
        arguments: example inputs.

    Returns:
        The captured network, or the given one if there is nothing to gain.
    """
    found = captured(network, arguments)
    if found is None:
        return network
    traced, _ = found
    graph, modules = traced.graph, dict(traced.named_modules())
    drop_identities(graph, modules)
    changed, only = False, None
    done: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node in done or _vector(node, modules) is None:
            continue
        run, products = _run_from(node, modules)
        done.update(run)
        if len(run) == 1:
            continue
        only = VectorChain(products)
        name = f"chain_{node.name}"
        traced.add_submodule(name, only)
        with graph.inserting_before(run[-1]):
            made = graph.call_module(name, (node.args[0],))
        run[-1].replace_all_uses_with(made)
        for old in reversed(run):
            graph.erase_node(old)
        changed = True
    if not changed:
        return network
    graph.lint()
    if len(graph.nodes) == 3 and only is not None and len(arguments) == 1:  # an input, a chain, an output
        (output,) = (node for node in graph.nodes if node.op == "output")
        if isinstance(output.args[0], fx.Node):
            return only
    return Either(fx.GraphModule(traced, graph).eval(), network, arguments)


def _run_from(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], list[VectorProduct]]:
    """A layer and what follows it, as long as each is read by the next only."""
    layer = _vector(node, modules)
    assert layer is not None
    run, products = [node], [layer.product]
    while len(run[-1].users) == 1:
        (user,) = run[-1].users
        activation, layer = activation_of(user, modules), _vector(user, modules)
        if activation is not None and products[-1].activation is Activation.NONE:
            products[-1] = products[-1].with_activation(activation)
        elif layer is not None and layer.product.columns == products[-1].rows:
            products.append(layer.product)
        else:
            break
        run.append(user)
    return run, products


def _vector(node: fx.Node, modules: dict[str, nn.Module]) -> VectorLinear | None:
    layer = modules.get(str(node.target)) if node.op == "call_module" and len(node.args) == 1 else None
    return layer if isinstance(layer, VectorLinear) and not node.kwargs else None
