"""The bits of quantized weights in the loss of training, at a price that leads to the file size that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import final

import torch
from torch import Tensor

from gossamer.drive.file_frame import blank_frame
from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.methods.base import Method, Site
from gossamer.methods.quantize.rate_budget import wanted_bytes
from gossamer.store.pieces import code_tensor

__all__ = ["RateLoss"]

_FIRST, _LEAST, _MOST = 0.02, 1e-6, 1e4  # of the price: before anything is known, and its bounds
_GAIN = 0.05  # of the price's logarithm per step, for being off by as much again; more where steps are few
_FEW = 1500
_MEASURED = 40  # times in a run that the weights are coded


@final
class RateLoss:
    """λ · bits per weight, as a term of the loss.

    With a target, the bits are led from where they start down to what the file may take: by equal ratios in equal times
    over the first ``ramp`` of the run, then they stay. λ rises while there are more bits than that, and falls while
    there are fewer. Now and then the weights are coded as they are, and what the coder saves over −log2 of the shares
    is given back.

    Args:
        bits: → bits of all symbols, differentiable.
        quantized: → the trees as they would be stored, of the tensors that the bits are of.
        weights: how many weights these have.
        price: λ in units of the loss per bit and weight; it rises in proportion over the ramp. None: by the target.
        target: bytes of the file or a ratio, as in `RateDistortion`; None: by the price.
        ramp: share of the run.
        blanks: trees of all tensors, with nothing in those that the bits are of.
        specs: all tensors.
    """

    def __init__(
        self,
        bits: Callable[[], Tensor],
        quantized: Callable[[], Mapping[str, Encoding]],
        weights: int,
        *,
        price: float | None,
        target: str | int | None,
        ramp: float,
        blanks: Mapping[str, Encoding],
        specs: Sequence[TensorSpec],
    ) -> None:
        self._bits, self._quantized, self._weights, self._ramp = bits, quantized, max(1, weights), ramp
        self._fixed = price
        self.price = _FIRST if price is None else 0.0
        self._step, self._steps = 0, 1
        self._begun: float | None = None
        if target is not None:
            self._frame = blank_frame(specs, (blanks[s.name] for s in specs))
            self._wanted = wanted_bytes("QuantizationAware", target, self._frame)
            self._final = 8.0 * max(1.0, self._wanted - self._frame.fixed_bytes)

    def begin_step(self, step: int, steps: int) -> None:
        """Say where the run is, before the loss of a step is computed."""
        self._step, self._steps = step, steps
        if self._fixed is None and step and step % max(1, steps // _MEASURED) == 0:
            self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        bits = float(self._bits())
        sizes = [
            sum(len(part.data) for part in code_tensor(name, tree, {}).parts)
            for name, tree in self._quantized().items()
        ]
        coded = sum(sizes)
        allowed = self._wanted - (self._frame.total(sizes) - coded)
        self._final = max(8.0, bits * allowed / max(1, coded))

    def __call__(self) -> Tensor:
        """The term for this step."""
        found = self._bits()
        now = max(1.0, float(found.detach()))
        share = min(1.0, self._step / max(1.0, self._ramp * self._steps)) if self._ramp else 1.0
        if self._fixed is not None:
            self.price = self._fixed * share
        else:
            self._begun = now if self._begun is None else self._begun
            first = max(self._begun, self._final)
            goal = self._final * (first / self._final) ** (1 - share)
            off = max(-1.0, min(1.0, now / goal - 1))
            self.price = min(max(self.price * exp(_GAIN * max(1.0, _FEW / self._steps) * off), _LEAST), _MOST)
        return self.price / self._weights * found


def blanked(trees: Mapping[str, Encoding], sites: Sequence[tuple[Method, Site]]) -> dict[str, Encoding]:
    """Trees with nothing in the sites of methods."""
    found = dict(trees)
    for method, site in sites:
        tree = found[site.spec.name]
        found[site.spec.name] = tree.put(site.path, method.blank(site, tree.at(site.path)))
    return found
