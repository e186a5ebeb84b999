"""Training steps of one network by one contender, on demand, with the contender's Python.

``PYTHON -m benchmarks.training_worker CONTENDER NETWORK SPARSITY THREADS``: builds, runs three steps, prints one line
of JSON; then every line on standard input, a number of steps, is answered by one line, the milliseconds of each.
Imports Gossamer only to measure it; waits without using the processor. A process measures one contender, so its peak
is that contender's. Contenders: "dense" (eager), "compiled" (torch.compile), "dense_bf16" (autocast), "sparselab",
"ours", and those of `RELAXED`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training_networks import NETWORKS, Network, replaced

__all__ = ["RELAXED", "built", "resident", "state_bytes"]


def _relaxed(name: str, **settings: Any) -> Any:
    """A method with a dense phase; it is imported only where it is measured."""
    import gossamer.train.from_dense as methods
    from gossamer.methods.prune import Magnitude

    if name in ("Feedback", "HardThresholding"):
        settings["prune"] = Magnitude(sparsity=0.9)
    if name == "ACDC":  # its sparse phase, which is masked too
        half = methods.Phase(10**9, sparse=True)
        return methods.Phases(prune=Magnitude(sparsity=0.9), phases=(half,))
    return getattr(methods, name)(**settings)


RELAXED: dict[str, Callable[[], Any]] = {
    "phases-sparse": lambda: _relaxed("ACDC"),
    "feedback": lambda: _relaxed("Feedback", every=16),
    "hard-thresholding": lambda: _relaxed("HardThresholding", every=16),
    "hard-concrete": lambda: _relaxed("HardConcrete"),
    "soft-threshold": lambda: _relaxed("SoftThreshold"),
    "variational-dropout": lambda: _relaxed("VariationalDropout"),
    "group-lasso": lambda: _relaxed("GroupLasso"),
    "hoyer": lambda: _relaxed("Hoyer"),
}
"""Methods with a dense phase, at 90% where they have a sparsity."""

_BATCHES = 4  # different inputs, so that no step finds its own in the cache


def built(contender: str, network: Network, sparsity: float) -> tuple[nn.Module, str]:
    """The network as the contender trains it, and the contender's version."""
    torch.manual_seed(0)
    if contender == "sparselab":
        import sparselab  # type: ignore[import-not-found]

        def of_sparselab(layer: nn.Module) -> nn.Module:
            if not isinstance(layer, nn.Linear):
                raise SystemExit("no sparse convolution")
            made = sparselab.SparseLinear(
                layer.in_features, layer.out_features, bias=layer.bias is not None, sparsity=sparsity
            )
            assert isinstance(made, nn.Module)
            return made

        return replaced(network.make(), network.dense, of_sparselab), str(sparselab.__version__)
    model = network.make()
    if contender in RELAXED:
        from gossamer.train.from_dense import prepare

        return prepare(model, RELAXED[contender]()), torch.__version__
    if contender == "ours":
        import gossamer
        from gossamer import nn as sparse

        def of_ours(layer: nn.Module) -> nn.Module:
            weight = layer.get_parameter("weight")
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[torch.randperm(weight.numel())[: round((1 - sparsity) * weight.numel())]] = True
            if isinstance(layer, nn.Linear):
                return sparse.SparseLinear.of(layer, mask.view(weight.shape))
            if not hasattr(sparse, "SparseConv2d"):
                raise SystemExit("no sparse convolution")
            made = sparse.SparseConv2d.of(layer, mask.view(weight.shape))
            assert isinstance(made, nn.Module)
            return made

        made = replaced(model, network.dense, of_ours)
        if any(isinstance(m, nn.Conv2d) for m in made.modules()):  # the stem's layout is handed on
            made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made, str(getattr(gossamer, "__version__", "this"))
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if contender == "compiled":
        model = torch.compile(model)  # type: ignore[assignment]
    return model, torch.__version__


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or ("VmHWM") at most; 0 where Linux does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(kind + ":")), 0)


def _forget_peak() -> None:
    """Give freed memory back and start the record of the peak anew: building is not training."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, gradients, optimiser state, and integer buffers, which are positions."""
    held = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
    held += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    held += [b for b in model.buffers() if not b.is_floating_point()]
    return sum(t.numel() * t.element_size() for t in held)


def stepper(contender: str, network: Network, model: nn.Module) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """One training step, and its optimiser."""
    optimizer = network.optimizer(list(model.parameters()))
    generator = torch.Generator().manual_seed(1)
    batches = [
        (network.inputs(network.batch, generator), network.targets(network.batch, generator)) for _ in range(_BATCHES)
    ]
    done, after, penalty = 0, None, None
    if contender in RELAXED:
        from gossamer.train import from_dense

        after, penalty = from_dense.FromDense(model, optimizer, RELAXED[contender]()), from_dense.penalty

    def step() -> None:
        nonlocal done
        inputs, targets = batches[done % _BATCHES]
        done += 1
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=contender == "dense_bf16"):
            loss = F.cross_entropy(model(inputs), targets)
        if penalty is not None:
            loss = loss + penalty(model)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if after is not None:
            after.step()

    return step, optimizer


def main() -> None:
    """Build, say so, step on demand."""
    contender, name, sparsity, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    bare = resident()
    network = NETWORKS[name]
    model, version = built(contender, network, sparsity)
    step, optimizer = stepper(contender, network, model)
    for _ in range(3):
        step()
    _forget_peak()
    for _ in range(3):
        step()
    peak = resident("VmHWM")
    _answer(
        {
            "version": version,
            "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "state_bytes": state_bytes(model, optimizer),
            "peak_bytes": peak,
            "resident_bytes": {"network": max(0, peak - bare), "runtime": bare, "process": peak},
            "process": os.getpid(),
        }
    )
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            taken.append(1e3 * (time.perf_counter() - start))
        _answer(taken)


def _answer(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
