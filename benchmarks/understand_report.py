"""A report on ten files of LeNet-5, made and opened in headless Chromium."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT
from benchmarks.understand_networks import CLASSES, VARIANTS, Network
from benchmarks.understand_page import measured_page
from benchmarks.understand_worker import Place
from gossamer.report import report_of

__all__ = ["row_of"]


def row_of(place: Place, network: Network, kind: str, rest: list[str]) -> dict[str, Any]:
    """One page, kept as ``benchmarks/out/report.html``."""
    del kind
    seed = int(rest[0])
    wanted = [(seed, v) for v in VARIANTS[1:]]
    if not place.quick:
        wanted += [(seed + 1, "50% sparse"), (seed + 1, "90% sparse"), (seed + 1, "98% sparse")]
    data = place.fashion
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for which, variant in wanted:
            name = f"{variant} seed {which}".replace("%", "").replace(" ", "-")
            files.append(shutil.copyfile(place.coded(network, which, variant), Path(folder) / f"{name}.gsm"))
        report = report_of(
            files,
            network=network.factory,
            data=(data.test, data.test_labels),
            train_data=(data.train, data.train_labels),
            dense=place.dense(network, seed),
            classes=CLASSES,
            title="LeNet-5 on Fashion-MNIST",
        )
    page = ROOT / "benchmarks" / "out" / "report.html"
    report.save(page)
    return {"files": len(files), **measured_page(page)}
