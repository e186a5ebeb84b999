"""`BlockByBlock`: methods with evidence from data, one block at a time, each fed by the compressed ones before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gossamer.drive.block_run import BlockRun, Calibration
from gossamer.drive.blocks import find_blocks
from gossamer.drive.calls import inputs_of
from gossamer.drive.one_shot import plan_method
from gossamer.drive.packed import tensors_in
from gossamer.drive.recipe import Stage, State, plan_json
from gossamer.drive.tune import batches_of
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Method

__all__ = ["BlockByBlock"]


@final
@dataclass(frozen=True, kw_only=True)
class BlockByBlock(Stage):
    """Compress a trained network with a few samples, block by block.

    Blocks are found in the network's structure (`find_blocks`) or named, and go in the order of their first call. For
    each, the samples run through the compressed blocks before it and through the block as it was; what its layers see
    is summed up; the methods change its weights, in order; its new outputs are recorded for the next one. Outputs that
    later blocks need (skip connections, an encoder's states) stay recorded until then. Blocks whose calls take turns,
    as in a recurrent decoder, are one step. That recorded outputs can stand in for blocks is verified on the first
    sample; where they cannot, the compressed part is run anew for each of at most 8 groups of blocks.

    The first method is planned once for the whole network, so that budgets and scopes hold across blocks; if it must
    look at statistics for that, the samples first run through the dense network, once per round. Methods behind it are
    planned for each block by itself. Tensors that are used in more than one block, or outside of all, and gradients
    (with any method's "grad" and the like) are measured on the dense network at the start; those tensors come first.

    Args:
        methods: in order; those of several passes belong into a recipe of their own.
        blocks: glob patterns of module names that are blocks as they are, such as "encoder.layer.*"; empty: found.
        samples: at most so many rows (along the first dimension) of the data, whole batches; the first in any case.
        layer_by_layer: change the layers of a block in the order of their use, those with the same inputs together, and
            look anew after each: a pass over the block for each such group instead of one.
        activation_bytes: outputs of blocks to hold in memory; what is beyond is on disk.
        statistic_bytes: statistics of layers to hold at once; more of a block are gathered in several passes.

    Cost: two passes over the samples; [in, in] numbers for every layer of the present block that needs "gram".

    Exact: a run that is killed and resumed gives the very same result (`gs.compress(…, checkpoint=…)`).

    Example:
        >>> import torch
        >>> from gossamer.drive.recipe import run
        >>> from gossamer.methods.prune import Magnitude
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> state = run(net, [BlockByBlock(methods=(Magnitude(sparsity=0.5),))], data=[torch.randn(8, 4)])
        >>> int(state.trees["2.weight"].to_dense().count_nonzero())
        8

    Source: the procedure of Frantar et al. 2022, GPTQ, arXiv 2210.17323, section 4.
    """

    methods: tuple[Method, ...]
    blocks: tuple[str, ...] = ()
    samples: int = 128
    layer_by_layer: bool = False
    activation_bytes: int = 1 << 30
    statistic_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("methods", "blocks"):
            given: object = getattr(self, name)
            object.__setattr__(self, name, tuple(given) if isinstance(given, (tuple, list)) else (given,))
        for method in self.methods:
            if not isinstance(method, Method):
                raise PlanError(f"BlockByBlock: found {type(method).__name__} among methods, expected methods")
            if method.passes > 1:
                raise PlanError(
                    f"BlockByBlock: found {type(method).__name__} with {method.passes} passes, expected a method of "
                    "one pass; in a recipe of its own it runs"
                )
        if not self.methods:
            raise PlanError("BlockByBlock: methods: found none, expected at least one")
        for name, least in (("samples", 1), ("activation_bytes", 0), ("statistic_bytes", 1)):
            if getattr(self, name) < least:
                raise PlanError(f"BlockByBlock: {name}: found {getattr(self, name)}, expected at least {least}")

    @property
    def needs_data(self) -> bool:
        """It runs the network."""
        return True

    def inside(self) -> tuple[Method, ...]:
        """The methods."""
        return self.methods

    def run(self, state: State) -> None:
        """Change the trees, block by block."""
        if not state.training:
            self._dry_run(state)
            return
        batches = self._batches(batches_of(state.data, "BlockByBlock"))
        example = batches[0].inputs
        methods = tuple(m.bind(state.model, example if m.uses_example else None) for m in self.methods)
        BlockRun(
            state,
            methods,
            batches,
            blocks=self.blocks,
            layer_by_layer=self.layer_by_layer,
            activation_bytes=self.activation_bytes,
            statistic_bytes=self.statistic_bytes,
            settings=self,
        ).run()

    def _batches(self, data: Iterable[Any]) -> Sequence[Calibration]:
        found: list[Calibration] = []
        rows = 0
        for batch in data:
            inputs = inputs_of(batch)
            first = next(tensors_in(inputs), None)
            if first is None:
                raise DataError(f"batch {len(found)}: found no tensor in {type(batch).__name__}, expected inputs")
            if first.dim() and not len(first):
                raise DataError(f"batch {len(found)}: found no rows, expected samples")
            rows += len(first) if first.dim() else 1
            if found and rows > self.samples:
                break
            found.append(Calibration(batch, inputs))
        if not found:
            raise DataError("BlockByBlock: found no batches, expected at least one")
        return found

    def _dry_run(self, state: State) -> None:
        """Plans that need no evidence; for the others the blocks alone are told."""
        found = {"blocks": [block.name for block in find_blocks(state.model, self.blocks)]}
        for number, method in enumerate(self.methods):
            plan: Mapping[str, Any] = {"method": type(method).__name__, "steps": []}
            bound = method.bind(state.model, None)
            if number == 0 and not bound.observes and not bound.runs_network:
                plan = plan_json(method, plan_method(bound, state.source()))
            state.plans.append({**plan, **found})
