"""Statistics of batch normalisation taken anew after weights were changed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import final

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.drive.calls import call, inputs_of
from gossamer.drive.recipe import Stage, State
from gossamer.errors import DataError, PlanError

__all__ = ["ReestimateNorms"]


@final
@dataclass(frozen=True, kw_only=True)
class ReestimateNorms(Stage):
    """Put the means and variances of batch normalisations to those of the compressed network.

    Pruned or rounded weights change what normalisations see; running statistics of the dense network then no longer
    normalise. They are reset and averaged over the batches, each with the same weight, in one pass without gradients;
    all other modules stay in eval mode. A network without batch normalisation stays as it is.

    Args:
        batches: at most so many of the data.

    Source: Hubara et al. 2021, arXiv 2006.10518, section 4 (BatchNorm tuning); Li et al. 2020, EagleEye, arXiv
    2007.02491, section 3.3 (adaptive BN statistics).
    """

    batches: int = 32

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise PlanError(f"ReestimateNorms: batches: found {self.batches}, expected at least 1")

    @property
    def needs_data(self) -> bool:
        """Inputs; targets are not used."""
        return True

    def run(self, state: State) -> None:
        """One pass over the data."""
        if not state.training:
            return
        network = state.network().eval()
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        seen = 0
        with torch.no_grad():
            for batch in islice(state.data or (), self.batches):
                call(network, inputs_of(batch))
                seen += 1
                state.progress.update("normalisations", seen, self.batches)
        if seen == 0:
            raise DataError("ReestimateNorms: found no batches, expected at least one")
        _refuse_unseen(norms)
        network.eval()
        state.take(network)


def _refuse_unseen(norms: list[_BatchNorm]) -> None:
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0:
            raise DataError("ReestimateNorms: found a normalisation that no batch reaches, expected data for all")
        if not bool((norm.running_mean.isfinite() & norm.running_var.isfinite()).all()):
            raise DataError("ReestimateNorms: found statistics that are not finite, expected numbers")
