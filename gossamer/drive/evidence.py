"""Evidence: statistics of what reaches the layers, and of how the loss depends on their weights, from a few batches.

All statistics are sums, so they merge. In output-first coordinates of the whole tensor, with ``in`` the product of the
weight's dimensions after the first (a convolution's inputs are unfolded):

- "count" [1]: rows (samples, tokens, pixels) seen; "sum" Σ x, "sq" Σ x², "zeros" Σ [x = 0], each [in];
- "gram" [in, in]: Σ x·xᵀ;
- "grad" Σ dL/dw and "grad_sq" Σ (dL/dw)², a summand per batch, shape of the weight;
- "fisher" Σ g·gᵀ over blocks of a row's gradients, a summand per batch, see `fisher_blocks`;
- "initial_grad", "hessian_grad" and "flow", of a network before training, shape of the weight: see `initial`.

`Encoding.hand_down` turns them into those of a child (a factor, a gate, what channels were kept).
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gossamer.drive.initial import AT_START, initial
from gossamer.drive.progress import Progress
from gossamer.drive.tune import Loss
from gossamer.encoding.node import INPUT_STATISTICS, Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Evidence
from gossamer.methods.second_order import fisher_blocks
from gossamer.network.inspect import assign, tensors

__all__ = ["gather", "inputs_of"]

OF_GRADIENTS = frozenset({"grad", "grad_sq", "fisher"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def inputs_of(batch: Any) -> Any:
    """What the network takes of a batch: the first of (inputs, targets), or a batch of inputs alone."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch


def gather(
    model: nn.Module,
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    needs: frozenset[str],
    data: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    batches: int = 32,
    progress: Progress,
) -> Mapping[str, Evidence]:
    """Run a few batches through the network and sum statistics up.

    Args:
        model: of the original architecture; not changed.
        specs: its tensors.
        trees: what its weights are now; removed channels take part as zeros.
        needs: names of statistics.
        data: batches (inputs, targets), or inputs alone where no gradients are asked for.
        loss: (outputs, targets) → scalar, for gradients.
        batches: at most that many.
        progress: where to say how far it is.

    Returns:
        Evidence per canonical tensor name. Inputs are seen where the network calls linear, conv1d, conv2d or a
        recurrent layer on the weight itself; for other tensors those statistics are absent.

    Raises:
        PlanError: a statistic that nothing gathers.
        DataError: no batch, batches without targets, or values that are not finite.

    Cost: a forward pass per batch, a backward pass for gradients, [in, in] numbers per layer for "gram".
    """
    known = INPUT_STATISTICS | OF_GRADIENTS | AT_START
    unknown = needs - known
    if unknown:
        raise PlanError(f"found a need for {sorted(unknown)}, expected some of {sorted(known)}")
    network = copy.deepcopy(model).eval()
    for spec in specs:
        assign(network, spec.names, trees[spec.name].to_dense().detach().to(spec.dtype, copy=True))
    held = tensors(network)
    weights = {s.name: held[s.name] for s in specs if held[s.name].is_floating_point() and len(s.shape) >= 2}
    parameters = {id(p): n for n, p in network.named_parameters(remove_duplicate=False)}
    canonical = {n: s.name for s in specs for n in s.names}
    watch = _Watch(
        {key: canonical[n] for key, n in parameters.items() if canonical[n] in weights}, needs & INPUT_STATISTICS
    )
    found: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    if needs & AT_START:
        at_start = initial(network, needs, list(itertools.islice(data, batches)), loss)
        for spec in specs:
            for key, value in at_start.get(spec.name, {}).items() if spec.name in found else ():
                found[spec.name][key] = value.permute(spec.output_first) if spec.output_first else value
        if not needs - AT_START:
            return found
    seen = 0
    total = min(batches, len(cast(Any, data))) if hasattr(data, "__len__") else batches
    for batch in itertools.islice(data, batches):
        if needs & OF_GRADIENTS:
            _add_gradients(network, batch, loss, watch, specs, needs, found)
        else:
            with torch.inference_mode(), _no_fast_path(), watch:
                network(inputs_of(batch))
        seen += 1
        progress.update("looking at the data", seen, total)
    if seen == 0:
        raise DataError("found no batches to look at, expected at least one")
    for name, statistics in watch.found.items():
        found[name] |= statistics
    for name, statistics in found.items():
        for key, value in statistics.items():
            if not bool(torch.isfinite(value).all()):
                raise DataError(f"tensor {name!r}: found {key!r} of its inputs or gradients that is not finite")
    return found


def _add_gradients(
    network: nn.Module,
    batch: Any,
    loss: Loss,
    watch: _Watch,
    specs: Sequence[TensorSpec],
    needs: frozenset[str],
    found: dict[str, dict[str, Tensor]],
) -> None:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise DataError(f"found a batch of {type(batch).__name__}, expected (inputs, targets) for gradients")
    with torch.enable_grad():
        named = {n: p for n, p in network.named_parameters() if p.is_floating_point()}
        for parameter in named.values():
            parameter.requires_grad_(True)
        with _no_fast_path(), watch:
            outputs = network(batch[0])
        gradients = torch.autograd.grad(loss(outputs, batch[1]), list(named.values()), allow_unused=True)
    by_name = dict(zip(named, gradients, strict=True))
    for spec in specs:
        gradient = by_name.get(spec.name)
        if gradient is None or spec.name not in found:
            continue
        gradient = gradient.detach().float()
        gradient = gradient.permute(spec.output_first) if spec.output_first else gradient
        if "grad" in needs:
            _add(found[spec.name], "grad", gradient)
        if "grad_sq" in needs:
            _add(found[spec.name], "grad_sq", gradient.square())
        if "fisher" in needs:
            _add(found[spec.name], "fisher", fisher_blocks(gradient))


def _add(statistics: dict[str, Tensor], key: str, value: Tensor) -> None:
    statistics[key] = statistics[key] + value if key in statistics else value.clone()


@contextmanager
def _no_fast_path() -> Iterator[None]:
    # torch's fused transformer layers would hide their linear layers from the watch.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@final
class _Watch(TorchFunctionMode):
    """Sees every functional call on a known weight, whatever module makes it, and sums its inputs up."""

    def __init__(self, names: Mapping[int, str], needs: frozenset[str]) -> None:
        super().__init__()
        self._names, self._needs = names, needs
        self.found: dict[str, dict[str, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if not self._needs:
            return func(*args, **given)
        name = getattr(func, "__name__", "")
        result = func(*args, **given)
        if func is F.multi_head_attention_forward:
            self._see_attention(*args, **given)
        elif func is F.linear:
            self._see(_argument(args, given, 1, "weight"), _argument(args, given, 0, "input"))
        elif name in ("conv1d", "conv2d"):
            self._see_convolution(args, given)
        elif name in _RECURRENT and len(args) >= 3:
            self._see_recurrent(args, result)
        elif name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"):
            hidden = args[1][0] if isinstance(args[1], (tuple, list)) else args[1]
            self._see(args[2], args[0])
            self._see(args[3], hidden)
        return result

    def _see(self, weight: Any, inputs: Tensor) -> None:
        name = self._names.get(id(weight))
        if name is None:
            return
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        mine = self.found.setdefault(name, {})
        if "count" in self._needs:
            _add(mine, "count", torch.tensor([float(len(rows))]))
        if "sum" in self._needs:
            _add(mine, "sum", rows.sum(0))
        if "sq" in self._needs:
            _add(mine, "sq", rows.square().sum(0))
        if "zeros" in self._needs:
            _add(mine, "zeros", (rows == 0).sum(0).float())
        if "gram" in self._needs:
            _add(mine, "gram", rows.T @ rows)  # [in, rows] · [rows, in] → [in, in]

    def _see_attention(self, *args: Any, **given: Any) -> None:
        # Its inner calls cannot be watched: what the output projection reads is had by projecting with the identity.
        bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **given)
        values = bound.arguments
        query, weight = values["query"], values["out_proj_weight"]
        if values["key"] is query and values["value"] is query:
            self._see(values["in_proj_weight"], query)
        values["out_proj_weight"], values["out_proj_bias"] = torch.eye(weight.shape[0]).to(weight), None
        self._see(weight, F.multi_head_attention_forward(*bound.args, **bound.kwargs)[0])

    def _see_convolution(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        inputs, weight = _argument(args, given, 0, "input"), _argument(args, given, 1, "weight")
        if id(weight) not in self._names:
            return
        stride, padding, dilation, groups = (
            _argument(args, given, i, key, default)
            for i, key, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1), (6, "groups", 1))
        )
        flat = weight.dim() == 3
        if groups != 1 or isinstance(padding, str):
            return
        x = inputs.detach().unsqueeze(2) if flat else inputs.detach()
        kernel = (1, *weight.shape[2:]) if flat else tuple(weight.shape[2:])
        two = [(fill, _first(v)) if flat else v for fill, v in ((1, stride), (0, padding), (1, dilation))]
        columns = F.unfold(x.float(), kernel, stride=two[0], padding=two[1], dilation=two[2])  # [b, in·kh·kw, places]
        self._see(weight, columns.transpose(1, 2))

    def _see_recurrent(self, args: tuple[Any, ...], result: Any) -> None:
        # Of packed stacks only the first level's inputs and the last level's states can be seen from outside.
        inputs, state, weights = args[0], args[1], args[2]
        if not (isinstance(weights, (list, tuple)) and isinstance(inputs, Tensor) and inputs.dim() == 3):
            return
        batch_first, both_ways, levels = bool(args[-1]), bool(args[-2]), int(args[4])
        self._see(weights[0], inputs)
        if both_ways or levels != 1:
            return
        first = (state[0] if isinstance(state, (tuple, list)) else state)[0]
        outputs = result[0] if batch_first else result[0].transpose(0, 1)  # [batch, time, hidden]
        self._see(weights[1], torch.cat([first.unsqueeze(1), outputs[:, :-1]], 1))


def _argument(args: tuple[Any, ...], given: Mapping[str, Any], place: int, key: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else given.get(key, default)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (tuple, list)) else value)
