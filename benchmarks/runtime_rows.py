"""Rows of `benchmarks.runtime` for whole networks: all sparsities and all peers of one setting take turns."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import gossamer as gs
from benchmarks.runtime_networks import NETWORKS, prune
from benchmarks.sparse_linear import busy_seconds
from gossamer.measure.latency import Runner, in_turns, runner
from gossamer.measure.onnx_file import exported
from gossamer.measure.peers import Peer, PeerKind, running
from gossamer.runtime.lower import Lowered

__all__ = ["DENSE_FP32", "Setting", "Variant", "rows_of"]

DENSE_FP32 = ("torch_ms", "onnxruntime_ms", "openvino_ms")
_DENSE_KINDS = (PeerKind.ONNXRUNTIME, PeerKind.OPENVINO, PeerKind.OPENVINO_BF16, PeerKind.ONNXRUNTIME_INT8)


@dataclass(frozen=True)
class Variant:
    """How a network is made sparse.

    Args:
        sparsity: of every weight but stem, embeddings and classifier.
        form: of the zeros and values: "unstructured", "4x1 blocks", or "8-bit values" (zeros anywhere).
        dtype: of activations and of what is compressed.
    """

    sparsity: float
    form: Literal["unstructured", "4x1 blocks", "8-bit values"] = "unstructured"
    dtype: Literal["fp32", "bf16"] = "fp32"

    @property
    def key(self) -> str:
        """Short name."""
        extra = "" if self == Variant(self.sparsity) else f" {self.form} {self.dtype}"
        return f"{self.sparsity:g}{extra}"

    def of(self, network: nn.Module) -> nn.Module | gs.Compressed:
        """The network made sparse, which is changed on the way."""
        prune(network, self.sparsity, rows=4 if self.form == "4x1 blocks" else 1)
        if self.form == "8-bit values":
            return gs.compress(network, [gs.quantize.RoundToNearest(bits=8, only="*blocks*weight")])
        return network.bfloat16() if self.dtype == "bf16" else network

    def inputs(self, x: Tensor) -> Tensor:
        """As such a network takes them."""
        return x.bfloat16() if self.dtype == "bf16" and x.is_floating_point() else x


@dataclass(frozen=True)
class Setting:
    """What one group of rows has in common.

    Args:
        network: name in `NETWORKS`.
        batch: examples at once.
        threads: of every runner.
        variants: a row each.
        deepsparse: sparsities at which DeepSparse runs too, on unstructured zeros.
        seconds: for all runners together; each runs at least three times.
    """

    network: str
    batch: int
    threads: int
    variants: tuple[Variant, ...]
    deepsparse: tuple[float, ...]
    seconds: float

    @property
    def key(self) -> str:
        """Of the file that keeps the rows."""
        names = "-".join(v.key for v in self.variants).replace(" ", "_")
        return f"{self.network}-{self.batch}-{self.threads}-{names}"


def rows_of(setting: Setting, peers: Path | None) -> list[dict[str, Any]]:
    """One row for every sparsity, dense peers the same in all of them."""
    torch.set_num_threads(setting.threads)
    dense, x = _dense_of(setting.network, setting.batch)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, fasts = {}, {}
        for variant in setting.variants:
            sparse = variant.of(_dense_of(setting.network, setting.batch)[0])
            fasts[variant], ours[variant] = _lowered_row(sparse, variant.inputs(x))
            del sparse
            gc.collect()
        missing: dict[str, str] = {}
        started: dict[str, Peer] = {}
        for key, kinds, sparsity in _contestants(setting):
            made = folder / key
            made.mkdir()
            file = exported(partial(_pruned, setting.network, setting.batch, sparsity), peers, made)
            file = "no folder of peers given" if peers is None else file
            found, absent = stack.enter_context(running(kinds, peers, file, setting.threads))
            started |= {_name(kind, sparsity): peer for kind, peer in found.items()}
            missing |= {_name(kind, sparsity): why for kind, why in absent.items()}
        form, torch_run = best_of_torch(dense, x)
        runners: dict[str, Runner] = {v.key: runner(partial(fast, v.inputs(x))) for v, fast in fasts.items()}
        runners |= {"torch": torch_run, **{name: peer.run for name, peer in started.items()}}
        processes = [os.getpid(), *(peer.process_id for peer in started.values())]
        start, busy, own = time.perf_counter(), busy_seconds(), sum(used(p) for p in processes)
        taken = in_turns(runners, seconds=setting.seconds, in_a_row=3 if setting.batch == 1 else 1)
        others = busy_seconds() - busy - (sum(used(p) for p in processes) - own)
        others = max(0.0, others / (time.perf_counter() - start))
        versions = {name: peer.version for name, peer in started.items()}
    rows = []
    for variant, row in ours.items():
        sparsity = variant.sparsity
        names = {"ms": variant.key, "torch_ms": "torch", "deepsparse_ms": _name(PeerKind.DEEPSPARSE, sparsity)}
        names |= {f"{kind.value}_ms": kind.value for kind in _DENSE_KINDS}
        times = {key: taken.get(name) for key, name in names.items()}
        rows.append(
            {
                "network": setting.network,
                "sparsity": sparsity,
                "batch": setting.batch,
                "threads": setting.threads,
                "dtype": variant.dtype,
                "format": variant.form,
                **{key: None if ms is None else round(float(np.median(ms)), 4) for key, ms in times.items()},
                "spread": {
                    k: [round(float(q), 4) for q in np.percentile(ms, [25, 75])] for k, ms in times.items() if ms
                },
                **row,
                "torch_form": form,
                "missing": missing,
                "versions": {"torch": torch.__version__, **versions},
                "others_busy": round(others, 2),
            }
        )
        best = min((rows[-1][key], key) for key in DENSE_FP32 if rows[-1][key])
        rows[-1] |= {"speed_up": round(best[0] / rows[-1]["ms"], 3), "best_dense": best[1]}
    return rows


def quartiles(ms: list[float]) -> list[float]:
    """25th and 75th percentile."""
    return [round(float(q), 4) for q in np.percentile(ms, [25, 75])]


def _contestants(setting: Setting) -> Iterator[tuple[str, tuple[PeerKind, ...], float]]:
    """Name of a folder, who runs the file in it, and how many zeros that has."""
    slow: set[PeerKind] = set()  # without instructions for them: a minute and a half per run of BERT-base, batch 16
    if setting.batch > 1 and not _has("avx512_bf16", "amx_bf16", "bf16"):
        slow.add(PeerKind.OPENVINO_BF16)
    if setting.batch > 1 and not _has("avx512_vnni", "avx_vnni", "asimddp"):
        slow.add(PeerKind.ONNXRUNTIME_INT8)
    yield "dense", tuple(kind for kind in _DENSE_KINDS if kind not in slow), 0.0
    for sparsity in setting.deepsparse:
        yield f"pruned-{sparsity:g}", (PeerKind.DEEPSPARSE,), sparsity


def _has(*instructions: str) -> bool:
    """Whether Linux says that the processor has any of them."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text(encoding="utf-8").split() if file.exists() else []
    return not set(instructions).isdisjoint(flags)


def _name(kind: PeerKind, sparsity: float) -> str:
    return f"{kind.value} {sparsity:g}" if kind is PeerKind.DEEPSPARSE else kind.value


def _dense_of(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    torch.manual_seed(batch)
    return network, NETWORKS[name][1](batch)


def _pruned(name: str, batch: int, sparsity: float) -> tuple[nn.Module, tuple[Any, ...]]:
    network, x = _dense_of(name, batch)
    return prune(network, sparsity), (x,)


def _lowered_row(sparse: nn.Module | gs.Compressed, x: Tensor) -> tuple[Lowered, dict[str, Any]]:
    """The network lowered, and what is known of it without timing."""
    with empty_cache():
        cold = lowered(sparse, x)[1]
        fast, warm = lowered(sparse, x)
    choices = [c for c in fast.explain() if c.density < 0.999]
    return fast, {
        "resident_weight_bytes": sum(c.bytes for c in choices),
        "dense_weight_bytes": sum(c.dense_bytes for c in choices),
        "lower_cold_s": round(cold, 3),
        "lower_warm_s": round(warm, 3),
        "max_rel_err": relative_error(sparse, fast, x),
        "kernels": sorted({f"{c.kernel}, {c.layout}" if c.layout else c.kernel for c in choices}),
    }


@contextmanager
def empty_cache() -> Iterator[None]:
    """Kernels and choices are kept in a folder that starts empty."""
    before = os.environ.get("GOSSAMER_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GOSSAMER_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("GOSSAMER_CACHE")
            if before is not None:
                os.environ["GOSSAMER_CACHE"] = before
            forget()


def forget() -> None:
    """What the process remembers of kernels, as a new one would."""
    for name, module in list(sys.modules.items()):
        if name.startswith("gossamer.runtime."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def lowered(sparse: nn.Module | gs.Compressed, x: Tensor) -> tuple[Lowered, float]:
    """The network lowered as in a new process, and the seconds that took."""
    forget()
    start = time.perf_counter()
    fast: Lowered = sparse.lower(x) if isinstance(sparse, gs.Compressed) else gs.lower(sparse, x)  # type: ignore[operator]
    return fast, time.perf_counter() - start


def best_of_torch(network: nn.Module, x: Tensor) -> tuple[str, Runner]:
    """PyTorch as it runs this network fastest: as it stands, or traced, frozen and optimised, in either layout."""
    forms: dict[str, Runner] = {"eager": runner(partial(network, x))}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what replaces it needs a compiler of C++
        forms["torch.jit, frozen"] = runner(partial(frozen(network, x), x))
        if x.dim() == 4:
            last = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            y = x.to(memory_format=torch.channels_last)
            forms["torch.jit, frozen, channels last"] = runner(partial(frozen(last, y), y))
        taken = in_turns(forms, seconds=1.0, at_least=1)
    best = min(taken, key=lambda form: float(np.median(taken[form])))
    return best, forms[best]


def frozen(network: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """Traced, with its weights as constants in the layout that oneDNN wants."""
    traced = torch.jit.trace(network, x)  # type: ignore[no-untyped-call]
    made: Callable[[Tensor], Any] = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return made


def used(process: int) -> float:
    """Processor seconds of another process; 0 where Linux does not tell."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def relative_error(sparse: nn.Module | gs.Compressed, fast: nn.Module, x: Tensor) -> float:
    """max|y − y64| / max|y64| over the first example; the network ends in float64."""
    network = sparse.dense() if isinstance(sparse, gs.Compressed) else sparse
    with torch.inference_mode():
        found = fast(x)[:1]
        double = network.double()
        exact = double(x[:1].double() if x.is_floating_point() else x[:1])
    return float((found - exact).abs().max() / exact.abs().max())
