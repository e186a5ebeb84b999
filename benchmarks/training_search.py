"""Recipes for `TRAINED`: ``python -m benchmarks.training_search --data DIR --json FILE [--minutes 40]``.

Dense training and RigL at 90%, several recipes and lengths each, one seed, on 55,000 training images with the other
5,000 to look at: the test images are the benchmark's. The last table says, for the accuracy of the best dense run less
0.3 points, when each recipe is there, and in which part of the fastest dense recipe's time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.training_recipes import Recipe, adamw, sgd
from benchmarks.training_runs import Run, reached, trained
from gossamer.demo.data import Fashion, load_fashion

_NETWORK = "mlp-784-2048-2048-10"
_HELD_OUT = 5000


def candidates() -> Iterator[tuple[str, Recipe]]:
    """(method, recipe), what matters most first."""
    for epochs, sparse_epochs in ((10, 12), (6, 8), (15, 18)):
        for smoothing in (0.1, 0.0):
            for optimizer, rate, sparse_rate in ((adamw, 1e-3, 2e-3), (sgd, 0.1, 0.1)):
                yield "rigl", Recipe(optimizer, sparse_rate, sparse_epochs, smoothing=smoothing)
                yield "dense", Recipe(optimizer, rate, epochs, smoothing=smoothing)
    for optimizer, rate in ((adamw, 1e-3), (adamw, 4e-3), (sgd, 0.2)):
        yield "rigl", Recipe(optimizer, rate, 12, smoothing=0.1)
    for optimizer, rate in ((adamw, 5e-4), (sgd, 0.05)):
        yield "dense", Recipe(optimizer, rate, 10, smoothing=0.1)


def split(data: Fashion) -> Fashion:
    """The training images, of which the last are to look at."""
    return replace(
        data,
        train=data.train[:-_HELD_OUT],
        train_labels=data.train_labels[:-_HELD_OUT],
        test=data.train[-_HELD_OUT:],
        test_labels=data.train_labels[-_HELD_OUT:],
    )


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A line per recipe."""
    dense = [row for row in rows if row["method"] == "dense"]
    goal = max((row["accuracy"] for row in dense), default=1.0) - 0.003
    times = [t for t in (reached(row, goal) for row in dense) if t is not None]
    lines = [f"goal {goal:.2%}"]
    for row in rows:
        at = reached(row, goal)
        when = "never" if at is None else f"{at:.1f} s" + (f", {at / min(times):.2f} of dense" if times else "")
        lines.append(f"{row['name']}: {row['accuracy']:.2%} (train {row['train_accuracy']:.2%}); goal: {when}")
    return lines


def main() -> None:
    """Train all that fits in the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the Fashion-MNIST files")
    parser.add_argument("--json", type=Path, required=True, help="where results are written, after every run")
    parser.add_argument("--minutes", type=float, default=40.0, help="after which nothing is started")
    given = parser.parse_args()
    data, rows = split(load_fashion(given.data)), []
    end = time.monotonic() + 60 * given.minutes
    for method, recipe in candidates():
        if time.monotonic() > end:
            break
        sparsity = 0.9 if method == "rigl" else 0.0
        run = Run(_NETWORK, method, sparsity, 0, min(2, os.cpu_count() or 1), True, str(given.data))
        name = f"{method} {recipe.optimizer.__name__} {recipe.rate:g}, {recipe.epochs} epochs, {recipe.smoothing:g}"
        rows.append({"name": name, "method": method, **trained(run, data, recipe)})
        print(f"{name}: {rows[-1]['accuracy']:.2%} in {rows[-1]['total_seconds']:.0f} s", flush=True)
        given.json.write_text(json.dumps(rows), encoding="utf-8")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
