"""Evidence: statistics of what reaches the layers, and of how the loss depends on their weights, from a few batches.

All statistics are sums, so they merge. In output-first coordinates of the whole tensor, with ``in`` the product of the
weight's dimensions after the first (a convolution's inputs are unfolded):

- "count" [1]: rows (samples, tokens, pixels) seen; "sum" Σ x, "sq" Σ x², "zeros" Σ [x = 0], each [in];
- "gram" [in, in]: Σ x·xᵀ; layers that see the same inputs have the very same tensor;
- of a convolution in g > 1 groups, which see different inputs: [g, in] and [g, in, in], ``in`` = channels/g · kernel;
- of an embedding: "count" tokens, "sq" and the diagonal of "gram" tokens / rows (see `watch`);
- "grad" Σ dL/dw and "grad_sq" Σ (dL/dw)², a summand per batch, shape of the weight;
- "fisher" Σ g·gᵀ over blocks of a row's gradients, a summand per batch, see `fisher_blocks`;
- "initial_grad", "hessian_grad" and "flow", of a network before training, shape of the weight: see `initial`.

`Encoding.hand_down` turns them into those of a child (a factor, a gate, what channels were kept).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.calls import call, inputs_of, rejected
from gossamer.drive.initial import AT_START, initial
from gossamer.drive.progress import Progress
from gossamer.drive.tune import Loss
from gossamer.drive.watch import Watch, add_to, no_fast_path, watched_names
from gossamer.encoding.node import INPUT_STATISTICS, Encoding
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Evidence
from gossamer.methods.second_order import fisher_blocks
from gossamer.network.inspect import assign, tensors
from gossamer.network.rebuild import pass_by, refresh

__all__ = ["check_finite", "gather", "inputs_of", "twin"]

OF_GRADIENTS = frozenset({"grad", "grad_sq", "fisher"})


def twin(model: nn.Module, specs: Sequence[TensorSpec], trees: Mapping[str, Encoding]) -> nn.Module:
    """A network in eval mode with the dense weights of trees; its parameters share memory with plain trees.

    Args:
        model: of the original architecture; not changed, its parameters are not copied.
        specs: its tensors.
        trees: per canonical name; removed channels are zeros, removed blocks pass their first input.
    """
    kept: dict[int, Any] = {id(p): p for p in model.parameters()}
    network = copy.deepcopy(model, kept).eval()
    for spec in specs:
        dense = trees[spec.name].to_dense().detach().to(spec.dtype)
        # a forward pass may write into buffers, not into parameters
        assign(network, spec.names, dense.clone() if spec.kind is Kind.BUFFER else dense)
    refresh(network)
    pass_by(network, specs, trees)
    return network


def gather(
    model: nn.Module,
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    needs: frozenset[str],
    data: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    batches: int = 32,
    names: frozenset[str] | None = None,
    progress: Progress,
) -> Mapping[str, Evidence]:
    """Run a few batches through the network and sum statistics up.

    Args:
        model: of the original architecture; not changed.
        specs: its tensors.
        trees: what its weights are now; removed channels take part as zeros, removed blocks pass their first input.
        needs: names of statistics.
        data: batches (inputs, targets), or inputs alone where no gradients are asked for.
        loss: (outputs, targets) → scalar, for gradients.
        batches: at most that many.
        names: canonical names of the tensors to gather for; None: all of two or more dimensions.
        progress: where to say how far it is.

    Returns:
        Evidence per canonical tensor name. Inputs are seen where the network calls a linear, convolution, embedding or
        recurrent function on the weight itself; for other tensors those statistics are absent.

    Raises:
        PlanError: a statistic that nothing gathers.
        DataError: no batch, batches without targets, or values that are not finite.

    Cost: a forward pass per batch, a backward pass for gradients, [in, in] numbers per layer for "gram".
    """
    known = INPUT_STATISTICS | OF_GRADIENTS | AT_START
    unknown = needs - known
    if unknown:
        raise PlanError(f"found a need for {sorted(unknown)}, expected some of {sorted(known)}")
    network = twin(model, specs, trees)
    held = tensors(network)
    weights = frozenset(
        s.name
        for s in specs
        if held[s.name].is_floating_point() and len(s.shape) >= 2 and (names is None or s.name in names)
    )
    watch = Watch(watched_names(network, specs, weights), needs & INPUT_STATISTICS)
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
            try:
                with torch.inference_mode(), no_fast_path(), watch:
                    call(network, inputs_of(batch))
            except Exception as error:  # the network raises whatever it raises
                raise rejected(f"batch {seen}", error) from error
        seen += 1
        progress.update("looking at the data", seen, total)
    if seen == 0:
        raise DataError("found no batches to look at, expected at least one")
    for name, statistics in watch.finish().items():
        found[name] |= statistics
    check_finite(found)
    return found


def check_finite(found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse statistics of activations or gradients that are not numbers.

    Raises:
        DataError: names the tensor.
    """
    for name, statistics in found.items():
        for key, value in statistics.items():
            if not bool(torch.isfinite(value).all()):
                raise DataError(f"tensor {name!r}: found {key!r} of its inputs or gradients that is not finite")


def _add_gradients(
    network: nn.Module,
    batch: Any,
    loss: Loss,
    watch: Watch,
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
        with no_fast_path(), watch:
            outputs = call(network, batch[0])
        gradients = torch.autograd.grad(loss(outputs, batch[1]), list(named.values()), allow_unused=True)
    by_name = dict(zip(named, gradients, strict=True))
    for spec in specs:
        gradient = by_name.get(spec.name)
        if gradient is None or spec.name not in found:
            continue
        gradient = gradient.detach().float()
        gradient = gradient.permute(spec.output_first) if spec.output_first else gradient
        if "grad" in needs:
            add_to(found[spec.name], "grad", gradient)
        if "grad_sq" in needs:
            add_to(found[spec.name], "grad_sq", gradient.square())
        if "fisher" in needs:
            add_to(found[spec.name], "fisher", fisher_blocks(gradient))
