"""Sparse gradients between processes: the k largest of every bucket are sent, the rest is kept for the next step."""

# No `from __future__ import annotations`: DistributedDataParallel looks at a hook's annotations.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # there where torch has gloo
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gossamer.errors import DataError, PlanError
from gossamer.nn.layer import SparseLayer
from gossamer.nn.topology import Topology

__all__ = ["Sent", "TopKGradients", "largest"]


@dataclass
class Sent:
    """What one process has sent so far.

    Args:
        steps: backward passes.
        bytes: indices and values that it sent: its own of every bucket to every other process.
        dense_bytes: what a ring all-reduce of the same float32 gradients would have sent, 2 · (n − 1)/n of them.
    """

    steps: int = 0
    bytes: int = 0
    dense_bytes: int = 0


def largest(buffer: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions of the k largest magnitudes, int32 ascending, and their values.

    Example:
        >>> largest(torch.tensor([1.0, -5.0, 0.0, 3.0]), 2)
        (tensor([1, 3], dtype=torch.int32), tensor([-5.,  3.]))
    """
    if k >= buffer.numel():
        return torch.arange(buffer.numel(), dtype=torch.int32), buffer.clone()
    at = buffer.abs().topk(k, sorted=False).indices.sort().values
    return at.to(torch.int32), buffer[at]


@final
class TopKGradients:
    """A communication hook for DistributedDataParallel: sparse gradients with error feedback.

    Each process adds what it has not sent yet to its gradient, sends the k largest numbers of the sum with their
    positions to all others, and keeps the rest. All processes get the mean over processes of what was sent. Nothing is
    lost, only late: at any time, what was sent plus what is kept is the sum of a process's gradients. When the live
    weights of a sparse layer move, what is kept follows those that survive; that of the others goes with them.

    Args:
        model: on the CPU, float32; the hook is registered there.
        density: share of each bucket's gradients that is sent, above 0, at most 1; at least one number is.

    Raises:
        PlanError: a density out of range.

    Cost: a selection and two copies of each bucket per step, memory of one more gradient; 8 bytes sent per number
        instead of about 4 (so it pays below a density of about 2/n of n processes).

    Exact: with density 1 the gradients are those of DistributedDataParallel for two processes, bit for bit; for more
        up to the order of sums. The sum that is conserved is one of float32 numbers.

    Source: Stich, Cordonnier and Jaggi 2018, arXiv 1809.07599, algorithm 1 (memory); Lin et al. 2018, arXiv 1712.01887,
        section 3 (without momentum correction and warm-up); Aji and Heafield 2017, arXiv 1704.05021.
    """

    def __init__(self, model: DistributedDataParallel, density: float) -> None:
        if not 0 < density <= 1:
            raise PlanError(f"TopKGradients: density: found {density}, expected a number above 0, at most 1")
        self.density = density
        self.sent = Sent()
        self._group = model.process_group
        self._names = {id(p): n for n, p in model.module.named_parameters()}
        self._kept: dict[str, Tensor] = {}
        self._layers = {id(m.values): m for m in model.module.modules() if isinstance(m, SparseLayer)}
        self._where: dict[str, Topology] = {}  # of sparse layers' values that are kept
        model.register_comm_hook(self, _hook)

    def kept(self) -> dict[str, Tensor]:
        """What this process has not sent yet, flat, by the parameters' names."""
        return {name: rest.clone() for name, rest in self._kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and what was counted; differs between processes."""
        counted = (self.sent.steps, self.sent.bytes, self.sent.dense_bytes)
        return {"kept": self.kept(), "sent": counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in the process with the same rank; load the network first.

        Raises:
            DataError: parameters that the model does not have.
        """
        unknown = sorted(set(state["kept"]) - set(self._names.values()))
        if unknown:
            raise DataError(f"TopKGradients: found {unknown[0]!r}, expected names of the model's parameters")
        self._kept = {name: rest.clone() for name, rest in state["kept"].items()}
        self._where = {self._names[key]: layer.topology for key, layer in self._layers.items()}
        self.sent = Sent(*state["sent"])

    def _kept_of(self, parameter: Tensor) -> Tensor:
        # By parameter, not by bucket: DistributedDataParallel deals buckets anew after the first step.
        name = self._names[id(parameter)]
        rest, layer = self._kept.get(name), self._layers.get(id(parameter))
        if rest is None:
            return torch.zeros(parameter.numel())
        before = self._where.get(name)
        if layer is not None and before is not None and before is not layer.topology:
            from_old, to_new = before.moved(layer.topology)
            rest = torch.zeros(layer.topology.live).index_copy_(0, to_new, rest[from_old])
        return rest

    def _keep(self, parameter: Tensor, rest: Tensor) -> None:
        name, layer = self._names[id(parameter)], self._layers.get(id(parameter))
        self._kept[name] = rest.clone()
        if layer is not None:
            self._where[name] = layer.topology

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """One bucket's gradients, averaged over the processes."""
        buffer, parameters = bucket.buffer(), list(bucket.parameters())
        if buffer.dtype is not torch.float32:
            raise DataError(f"TopKGradients: found gradients of {buffer.dtype}, expected torch.float32")
        processes = self._group.size()
        whole = torch.cat([self._kept_of(p) for p in parameters]).add_(buffer)
        k = max(1, round(self.density * buffer.numel()))
        at, values = largest(whole, k)
        whole[at.long()] = 0.0
        sizes = [p.numel() for p in parameters]
        for parameter, rest in zip(parameters, torch.split(whole, sizes), strict=True):
            self._keep(parameter, rest)
        mine = torch.cat([at, values.view(torch.int32)])
        self.sent.steps += int(bucket.is_last())
        self.sent.bytes += (processes - 1) * mine.numel() * mine.element_size()
        self.sent.dense_bytes += 2 * (processes - 1) * buffer.numel() * buffer.element_size() // processes
        everyone = [torch.empty_like(mine) for _ in range(processes)]
        work = dist.all_gather(everyone, mine, group=self._group, async_op=True)
        assert work is not None

        def add_up(done: Future[Any]) -> Tensor:
            done.value()  # raises what went wrong
            buffer.zero_()
            for theirs in everyone:
                places, numbers = theirs[: at.numel()], theirs[at.numel() :]
                buffer.index_add_(0, places, numbers.view(torch.float32) / processes)
            return buffer

        made: Future[Tensor] = work.get_future().then(add_up)
        return made


def _hook(state: TopKGradients, bucket: GradBucket) -> Future[Tensor]:
    return state.exchange(bucket)
