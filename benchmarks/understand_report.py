"""A report on ten files of LeNet-5, made and opened in headless Chromium: ``python -m … DIR report/LeNet-5/0``."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.rows import ROOT
from benchmarks.understand_networks import CLASSES, NETWORKS, VARIANTS
from benchmarks.understand_page import measured_page
from benchmarks.understand_worker import Place
from gossamer.report import report_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """One page, kept as ``benchmarks/out/report.html``; the last line of the output is the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("task")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = time.process_time()
    place = Place(given.data, quick=given.quick)
    network = next(n for n in NETWORKS if n.name == given.task.split("/")[1])
    wanted = [(0, v) for v in VARIANTS[1:]]
    if not given.quick:
        wanted += [(1, "50% sparse"), (1, "90% sparse"), (1, "98% sparse")]
    data = place.fashion
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for seed, variant in wanted:
            name = f"{variant} seed {seed}".replace("%", "").replace(" ", "-")
            files.append(shutil.copyfile(place.coded(network, seed, variant), Path(folder) / f"{name}.gsm"))
        report = report_of(
            files,
            network=network.factory,
            data=(data.test, data.test_labels),
            train_data=(data.train, data.train_labels),
            dense=place.dense(network, 0),
            classes=CLASSES,
            title="LeNet-5 on Fashion-MNIST",
        )
    page = ROOT / "benchmarks" / "out" / "report.html"
    report.save(page)
    print(json.dumps({"cpu_seconds": time.process_time() - begin, "row": {"files": len(files), **measured_page(page)}}))


if __name__ == "__main__":
    main()
