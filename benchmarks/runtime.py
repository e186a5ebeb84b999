"""Sparse networks against dense peers: ``python -m benchmarks.runtime --peers .peers --json FILE [--quick]``.

``benchmarks/peers.sh`` prepares the peers; a missing one is reported and its column is null. All runners of a row take
turns within one run. Finished rows are kept by a hash of the code that made them. The last line of the output, and
FILE, is one JSON document; times are medians in milliseconds.

Not measured, for the parts do not exist yet: convolutions (ResNet-50, MobileNetV2), bf16, matrix × vector formats,
blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gossamer as gs
from benchmarks.rows import Rows, code_hash, cpu_name
from benchmarks.runtime_networks import bert_base, mlp, prune, vit_b16
from benchmarks.runtime_peak import peak
from benchmarks.sparse_linear import busy_seconds
from gossamer.measure.latency import in_turns, runner
from gossamer.measure.onnx_file import exported
from gossamer.measure.peers import PeerKind, running
from gossamer.runtime import kernel_cache, linear, tiled
from gossamer.runtime.group_code import Way
from gossamer.runtime.lower import Lowered
from gossamer.runtime.tiled import GroupedLinear, tiler

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "bert-base": (bert_base, lambda batch: torch.randint(30522, (batch, 128))),
    "vit-b16": (vit_b16, lambda batch: torch.randn(batch, 3, 224, 224)),
    "mlp-4096": (mlp, lambda batch: torch.randn(batch, 4096)),
}
DENSE_FP32 = ("torch_ms", "onnxruntime_ms", "openvino_ms")
SHAPES = ((768, 768), (3072, 768), (768, 3072))


@dataclass(frozen=True)
class Plan:
    """What one run measures.

    Args:
        networks: names of `NETWORKS`.
        sparsities: of networks.
        batches: sizes.
        threads: numbers.
        shapes: of single layers.
        layers: sparsities of single layers.
        seconds: for all runners of a row together; each runs at least three times.
    """

    networks: tuple[str, ...]
    sparsities: tuple[float, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    layers: tuple[float, ...]
    seconds: float


FULL = Plan(tuple(NETWORKS), (0.5, 0.7, 0.8, 0.9, 0.95), (1, 16), (1, 2), SHAPES, (0.5, 0.7, 0.8, 0.9, 0.95), 15.0)
QUICK = Plan(("bert-base",), (0.9,), (1,), (1,), SHAPES[:1], (0.5, 0.9, 0.95), 6.0)


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
    for cached in (kernel_cache.load_kernels, kernel_cache.load_tile_kernels, linear._kernels, tiled._tiler):
        cached.cache_clear()


def lowered(network: nn.Module, x: Tensor) -> tuple[Lowered, float]:
    """The network lowered as in a new process, and the seconds that took."""
    forget()
    start = time.perf_counter()
    fast: Lowered = gs.lower(network, x)  # type: ignore[operator]
    return fast, time.perf_counter() - start


def used(process: int) -> float:
    """Processor seconds of another process; 0 where Linux does not tell."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pair(network: nn.Module, x: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What is exported, called in the process that does."""
    return network, (x,)


def relative_error(network: nn.Module, fast: nn.Module, x: Tensor) -> float:
    """max|y − y64| / max|y64| over the first example."""
    with torch.inference_mode():
        found = fast(x)[:1]
        double = network.double()
        exact = double(x[:1].double() if x.is_floating_point() else x[:1])
        network.float()
    return float((found - exact).abs().max() / exact.abs().max())


def network_row(
    name: str, sparsity: float, batch: int, threads: int, network: nn.Module, peers: Path | None, seconds: float
) -> dict[str, Any]:
    """One row; the network is pruned already."""
    torch.set_num_threads(threads)
    torch.manual_seed(batch)
    x = NETWORKS[name][1](batch)
    with tempfile.TemporaryDirectory() as folder, empty_cache():
        _, cold = lowered(network, x)
        fast, warm = lowered(network, x)
        none = "no folder of peers given"
        file = exported(partial(pair, network, x), peers, Path(folder)) if peers is not None else none
        with running(PeerKind, peers, file, threads) as (started, missing):
            runners = {"ms": runner(partial(fast, x)), "torch_ms": runner(partial(network, x))}
            runners |= {f"{kind.value}_ms": peer.run for kind, peer in started.items()}
            ours = [os.getpid(), *(peer.process_id for peer in started.values())]
            start, busy, own = time.perf_counter(), busy_seconds(), sum(used(p) for p in ours)
            taken = in_turns(runners, seconds=seconds)
            others = busy_seconds() - busy - (sum(used(p) for p in ours) - own)
            others = max(0.0, others / (time.perf_counter() - start))
            versions = {kind.value: peer.version for kind, peer in started.items()}
        choices = [c for c in fast.explain() if c.density < 0.999]
        medians = {key: round(float(np.median(ms)), 4) for key, ms in taken.items()}
        best = min((medians[key], key) for key in DENSE_FP32 if key in medians)
        error = relative_error(network, fast, x)
    return {
        "network": name,
        "sparsity": sparsity,
        "batch": batch,
        "threads": threads,
        "dtype": "fp32",
        "format": "unstructured",
        **{key: medians.get(key) for key in ("ms", "torch_ms", *(f"{kind.value}_ms" for kind in PeerKind))},
        "spread": {key: [round(float(q), 4) for q in np.percentile(ms, [25, 75])] for key, ms in taken.items()},
        "speed_up": round(best[0] / medians["ms"], 3),
        "best_dense": best[1],
        "resident_weight_bytes": sum(c.bytes for c in choices),
        "dense_weight_bytes": sum(c.dense_bytes for c in choices),
        "lower_cold_s": round(cold, 3),
        "lower_warm_s": round(warm, 3),
        "max_rel_err": error,
        "kernels": sorted({f"{c.kernel}, {c.layout}" if c.layout else c.kernel for c in choices}),
        "missing": {kind.value: reason for kind, reason in missing.items()},
        "versions": {"torch": torch.__version__, **versions},
        "others_busy": round(others, 2),
    }


def layer_row(shape: tuple[int, int], sparsity: float, seconds: float) -> dict[str, Any]:
    """The best kernel for one shape on one thread, eight matrices in turn, beside multiply-adds from registers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens, columns = 256, shape[1]
    weights = [torch.randn(shape) * (torch.rand(shape) >= sparsity) for _ in range(8)]
    work = 2e-9 * tokens * sum(int(w.count_nonzero()) for w in weights)
    x = tiler().pack(torch.randn(tokens, columns))
    forms: dict[str, list[GroupedLinear]] = {
        f"{way.name.lower()}, panels of {-(-columns // panels)}": [
            GroupedLinear(w, None, way, width=-(-columns // panels)) for w in weights
        ]
        for way in Way
        for panels in {-(-columns // width) for width in (96, 128, 192, 256, 768)}
    }
    rates: dict[str, list[float]] = {form: [] for form in forms}
    peaks: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(peaks) < 5 * len(forms):
        for form, layers in forms.items():
            peaks.append(peak().gflops())
            start = time.perf_counter()
            for layer in layers:
                layer.product(x.data)
            rates[form].append(work / (time.perf_counter() - start))
    medians = {form: float(np.median(found)) for form, found in rates.items()}
    best = max(medians, key=lambda form: medians[form])
    top = float(np.median(peaks))
    return {
        "shape": list(shape),
        "format": "unstructured",
        "sparsity": sparsity,
        "n": tokens,
        "kernel": best,
        "gflops": round(medians[best], 1),
        "peak_gflops": round(top, 1),
        "fraction_of_peak": round(medians[best] / top, 3),
    }


def measure(plan: Plan, peers: Path | None, name: str) -> dict[str, Any]:
    """All rows of a plan."""
    kept = Rows(name, code_hash("gossamer/runtime/*.py", "gossamer/measure/peer*.py", "benchmarks/runtime*.py"))
    layers = []
    for shape in plan.shapes:
        for sparsity in plan.layers:

            def make_layer(shape: tuple[int, int] = shape, sparsity: float = sparsity) -> dict[str, Any]:
                return layer_row(shape, sparsity, plan.seconds / 3)

            layers.append(kept.get(f"layer-{shape[0]}x{shape[1]}-{sparsity}", make_layer))
            found = layers[-1]
            rate = f"{found['gflops']} GFLOP/s, {found['fraction_of_peak']:.0%} of peak"
            print(f"{shape} {sparsity:.0%}: {rate}, {found['kernel']}", flush=True)
    rows = []
    for network_name in plan.networks:
        for sparsity in plan.sparsities:
            network: nn.Module | None = None
            for batch in plan.batches:
                for threads in plan.threads:

                    def make(
                        network_name: str = network_name,
                        sparsity: float = sparsity,
                        batch: int = batch,
                        threads: int = threads,
                    ) -> dict[str, Any]:
                        nonlocal network
                        if network is None:
                            torch.manual_seed(0)
                            network = prune(NETWORKS[network_name][0](), sparsity)
                        return network_row(network_name, sparsity, batch, threads, network, peers, plan.seconds)

                    rows.append(kept.get(f"{network_name}-{sparsity}-{batch}-{threads}", make))
                    _say(rows[-1])
    document = {"cpu": cpu_name(), "peak_gflops": max((r["peak_gflops"] for r in layers), default=None)}
    return {**document, "rows": rows, "layers": layers}


def _say(row: dict[str, Any]) -> None:
    others = ", ".join(f"{k[:-3]} {row[k]:.1f}" for k in ("torch_ms", *(f"{p.value}_ms" for p in PeerKind)) if row[k])
    print(
        f"{row['network']} {row['sparsity']:.0%} batch {row['batch']} threads {row['threads']}: {row['ms']:.1f} ms "
        f"({others}), {row['speed_up']:.2f}x {row['best_dense'][:-3]}",
        flush=True,
    )
    for peer, reason in row["missing"].items():
        print(f"  {peer}: {reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder that benchmarks/peers.sh has filled")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="BERT-base at 90%%, batch 1, one thread")
    given = parser.parse_args()
    if given.peers is not None and not given.peers.is_dir():
        parser.error(f"--peers: found no folder {given.peers}, expected one made by benchmarks/peers.sh")
    peers = given.peers.absolute() if given.peers is not None else None
    text = json.dumps(measure(QUICK if given.quick else FULL, peers, "runtime_quick" if given.quick else "runtime"))
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
