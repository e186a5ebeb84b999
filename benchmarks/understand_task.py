"""What the workers of `benchmarks.understand` with modules of their own have in common."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.understand_networks import NETWORKS, Network
from benchmarks.understand_worker import Place

__all__ = ["run"]


def run(
    what: str | None, row_of: Callable[[Place, Network, list[str]], dict[str, Any]], arguments: Sequence[str] | None
) -> None:
    """Read ``DIR KIND/NETWORK/…``, make the row on one thread, print it as the last line.

    Args:
        what: for ``--help``.
        row_of: (data and files, network, what else the task says) → row.
        arguments: None: those of the process.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("data", type=Path)
    parser.add_argument("task")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = time.process_time()
    _, name, *rest = given.task.split("/")
    row = row_of(Place(given.data, quick=given.quick), next(n for n in NETWORKS if n.name == name), rest)
    print(json.dumps({"cpu_seconds": time.process_time() - begin, "row": row}))
