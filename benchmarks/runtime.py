"""Sparse networks against dense peers: ``python -m benchmarks.runtime --peers .peers --json FILE [--quick]``.

``benchmarks/peers.sh`` prepares the peers; a missing one is reported and its column is null. All sparsities and all
peers of one setting (network, batch, threads) take turns within one run. Finished settings are kept by a hash of the
code that made them, so that a run goes on where another ended; none is started after ``--minutes``. The last line of
the output, and FILE, is one JSON document; times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Rows, code_hash, cpu_name
from benchmarks.runtime_layers import layer_row
from benchmarks.runtime_rows import Setting, Variant, rows_of
from benchmarks.runtime_vector import vector_rows

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_BARS = (("bert-base", 1), ("resnet-50", 1), ("resnet-50", 16))
SHAPES = ((768, 768), (3072, 768), (768, 3072))


@dataclass(frozen=True)
class Plan:
    """What one run measures.

    Args:
        settings: of networks, what matters most first.
        shapes: of single layers.
        layers: sparsities of single layers.
        blocks: rows of their blocks, 1 for zeros anywhere.
        vector: rows and columns of the matrix that meets a vector.
        seconds: per layer.
    """

    settings: tuple[Setting, ...]
    shapes: tuple[tuple[int, int], ...]
    layers: tuple[float, ...]
    blocks: tuple[int, ...]
    vector: int
    seconds: float


def full() -> Plan:
    """What bars are about first, then batch 1. All sparsities at batch 1 on one thread, else what an hour allows."""
    order = [(name, batch, threads) for name, batch in _BARS for threads in (1, 2)]
    order += [(name, 1, 1) for name in ("vit-b16", "mobilenet-v2", "mlp-4096")]
    order += [(name, 16, threads) for name in ("bert-base", "mlp-4096") for threads in (1, 2)]
    order += [(name, 16, 1) for name in ("mobilenet-v2", "vit-b16")]
    order += [(name, batch, 2) for name in ("mlp-4096", "mobilenet-v2", "vit-b16") for batch in (1, 16)]
    order = list(dict.fromkeys(order))

    def plain(batch: int, threads: int) -> tuple[Variant, ...]:
        if threads == 2:
            return (Variant(0.9),)
        return tuple(Variant(sparsity) for sparsity in (SPARSITIES if batch == 1 else (0.7, 0.9)))

    others = (Variant(0.9, "8-bit values"), Variant(0.9, "4x1 blocks"), Variant(0.9, dtype="bf16"))
    settings = [
        Setting(
            name,
            batch,
            threads,
            plain(batch, threads) + (others if (name, batch, threads) == ("bert-base", 1, 1) else ()),
            (0.7, 0.9) if (batch, threads) == (1, 1) else (0.9,),
            15.0,
        )
        for name, batch, threads in order
    ]
    return Plan(tuple(settings), SHAPES, SPARSITIES, (1, 4), 4096, 4.0)


QUICK = Plan(
    (Setting("bert-base", 1, 1, (Variant(0.9),), (0.9,), 10.0),), SHAPES[:1], (0.5, 0.9, 0.95), (1,), 2048, 3.0
)


def measure(plan: Plan, peers: Path | None, name: str, minutes: float) -> dict[str, Any]:
    """All rows of a plan that can be started in time."""
    end = time.monotonic() + 60 * minutes
    kept = Rows(
        name, code_hash("gossamer/jit/*.py", "gossamer/runtime/*.py", "gossamer/measure/*.py", "benchmarks/runtime*.py")
    )
    layers = []
    for shape, rows in ((shape, rows) for rows in plan.blocks for shape in plan.shapes):
        for sparsity in plan.layers:

            def make_layer(
                shape: tuple[int, int] = shape, sparsity: float = sparsity, rows: int = rows
            ) -> dict[str, Any]:
                return layer_row(shape, sparsity, plan.seconds, rows=rows)

            layers.append(kept.get(f"layer-{shape[0]}x{shape[1]}-{rows}-{sparsity}", make_layer))
            found = layers[-1]
            rate = f"{found['gflops']} GFLOP/s, {found['fraction_of_peak']:.0%} of peak"
            print(f"{shape} {sparsity:.0%}: {rate}, {found['kernel']}", flush=True)
    found = kept.get(f"vectors-{plan.vector}", lambda: {"rows": vector_rows(plan.vector, sparsities=plan.layers)})
    vectors = found["rows"]
    for row in vectors:
        print(f"{row['shape']} · vector {row['sparsity']:.0%}, {row['format']}: {row['speed_up']}x torch", flush=True)
    made_rows: list[dict[str, Any]] = []
    late = []
    for setting in plan.settings:
        if time.monotonic() > end and not kept.has(setting.key):
            late.append(setting.key)
            continue

        def make(setting: Setting = setting) -> dict[str, Any]:
            start = time.monotonic()
            made = rows_of(setting, peers)
            return {"rows": made, "seconds": round(time.monotonic() - start, 1)}

        found = kept.get(setting.key, make)
        for row in found["rows"]:
            _say(row)
        print(f"  in {found['seconds']} s", flush=True)
        made_rows += found["rows"]
    for key in late:
        print(f"{key}: not started, {minutes:g} minutes were over", flush=True)
    document = {"cpu": cpu_name(), "peak_gflops": max((r["peak_gflops"] for r in layers), default=None)}
    return {**document, "rows": made_rows, "layers": layers, "vectors": vectors, "not_started": late}


def _say(row: dict[str, Any]) -> None:
    others = ", ".join(f"{k[:-3]} {row[k]:.1f}" for k in row if k.endswith("_ms") and row[k])
    what = f"{row['network']} {row['sparsity']:.0%} {row['format']} {row['dtype']}"
    how = f"batch {row['batch']} threads {row['threads']}"
    best = f"{row['speed_up']:.2f}x {row['best_dense'][:-3]}"
    print(f"{what} {how}: {row['ms']:.1f} ms ({others}), {best}", flush=True)
    for peer, reason in row["missing"].items():
        print(f"  {peer}: {reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder that benchmarks/peers.sh has filled")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="BERT-base at 90%%, batch 1, one thread")
    parser.add_argument("--minutes", type=float, default=55.0, help="after which no setting is started")
    given = parser.parse_args()
    if given.peers is not None and not given.peers.is_dir():
        parser.error(f"--peers: found no folder {given.peers}, expected one made by benchmarks/peers.sh")
    peers = given.peers.absolute() if given.peers is not None else None
    plan, name = (QUICK, "runtime_quick") if given.quick else (full(), "runtime")
    text = json.dumps(measure(plan, peers, name, given.minutes))
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
