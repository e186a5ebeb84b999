"""The race with torchattacks on one network of `benchmarks.understand`: ``python -m … DIR race/LeNet-5/0/dense``."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.understand_attacks import raced, saved
from benchmarks.understand_networks import NETWORKS
from benchmarks.understand_worker import EPSILONS, Place

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """One race; the last line of the output is the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("task")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = time.process_time()
    _, name, seed, variant = given.task.split("/")
    place = Place(given.data, quick=given.quick)
    network = next(n for n in NETWORKS if n.name == name)
    inputs, targets = place.fashion.test[: place.images], place.fashion.test_labels[: place.images]
    with tempfile.TemporaryDirectory() as folder:
        file = saved(place.network(network, int(seed), variant), inputs[:1], Path(folder) / "network.ts")
        row = raced(
            file,
            inputs,
            targets,
            epsilons=EPSILONS,
            steps=5 if given.quick else 20,
            queries=10 if given.quick else 100,
        )
    print(json.dumps({"cpu_seconds": time.process_time() - begin, "row": row}))


if __name__ == "__main__":
    main()
