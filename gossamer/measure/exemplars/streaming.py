"""Variance of gradients while a network trains: nothing is kept of a checkpoint but what it adds to running means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.exemplars.moments import GradientMoments
from gossamer.measure.exemplars.running import check_data, predictions
from gossamer.measure.exemplars.vog import Vog, add_checkpoint, finished

__all__ = ["VogCallback"]


@final
class VogCallback:
    """Looks at a network every so many steps of any training loop; afterwards `vog` gives the scores.

    In a loop of your own, dense or sparse, call `step` after the optimiser's (and the sparsifier's) step; in a recipe
    pass the object itself as ``gs.Tune(…, watch=callback)``. Random numbers, gradients of parameters, the modules'
    modes and statistics of normalisations are left as they are: training goes as it would have without.

    Args:
        inputs: floats [n, ...], the examples to be scored.
        targets: int64 [n].
        every: steps from one checkpoint to the next.
        logit: "predicted" (by each checkpoint) or "true"; the "final" prediction is not known yet.
        batch: examples at a time.
        dtype: of running means; see `GradientMoments`.

    Raises:
        DataError: inputs without gradients, fewer than ten of them, or targets that do not fit.

    Cost: two numbers per input element in memory; at a checkpoint a forward and a backward pass over the inputs.

    Example:
        >>> inputs, targets = torch.randn(50, 4), torch.randint(3, (50,))
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> watch = VogCallback(inputs, targets, every=5)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(model(inputs), targets).backward()
        ...     optimizer.step()
        ...     looked = watch.step(model)
        >>> found = watch.vog(model)
        >>> found.checkpoints, len(found.scores)
        (4, 50)
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        every: int,
        logit: Literal["predicted", "true"] = "predicted",
        batch: int = 500,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_data("VogCallback", inputs, targets, batch)
        if every < 1:
            raise DataError(f"VogCallback: every: found {every}, expected at least 1")
        if len(inputs) < 10 or targets.dim() != 1 or not inputs.is_floating_point():
            raise DataError(
                f"VogCallback: found {inputs.dtype} inputs and targets {tuple(targets.shape)}, "
                "expected floats and [n] with n of 10 or more"
            )
        if logit not in ("predicted", "true"):
            raise DataError(f"VogCallback: logit: found {logit!r}, expected 'predicted' or 'true'")
        self._inputs, self._targets, self._batch = inputs, targets, batch
        self._logit: Literal["predicted", "true"] = logit
        self._every = every
        self._moments = GradientMoments(inputs.shape, dtype)
        self._step = 0

    @property
    def checkpoints(self) -> int:
        """How many were looked at."""
        return self._moments.count

    def step(self, model: nn.Module) -> bool:
        """Count a step; after every so many look at the network.

        Returns:
            Whether it was looked at.
        """
        self._step += 1
        if self._step % self._every:
            return False
        self.look(model)
        return True

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        """`step` for `Tune`, which counts itself."""
        del steps
        self._step = step - 1
        self.step(model)

    def look(self, model: nn.Module) -> None:
        """Take the network as it is now as a checkpoint.

        Raises:
            DataError: outputs that do not fit, or gradients that are not finite: training has diverged.
        """
        where = f"VogCallback: checkpoint {self.checkpoints + 1}"
        chosen = self._targets if self._logit == "true" else None
        add_checkpoint(where, self._moments, model, self._inputs, chosen, self._batch)

    def vog(self, model: nn.Module) -> Vog:
        """Scores from what was seen so far.

        Args:
            model: the finished network: its errors are what the deciles show, its predictions the classes within which
                scores of "predicted" are normalised.

        Raises:
            DataError: fewer than two checkpoints.
        """
        predicted, _ = predictions("VogCallback", model, self._inputs, self._batch)
        return finished(self._logit, self._moments, predicted, self._targets.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Running means and the number of steps, for `gossamer.store`'s ``write_state`` or ``torch.save``."""
        return {"step": self._step, "moments": self._moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit.

        Raises:
            DataError: that of other inputs.
        """
        if not isinstance(state.get("step"), int) or not isinstance(state.get("moments"), Mapping):
            raise DataError(f"VogCallback: found a state with {sorted(map(str, state))}, expected step and moments")
        self._moments.load_state_dict(state["moments"])
        self._step = state["step"]
