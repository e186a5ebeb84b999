"""The demo: two networks trained, compressed by every family, reloaded, measured, and one table to read."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gossamer.demo.data import Fashion, load_fashion
from gossamer.demo.job import Result, run_job
from gossamer.demo.networks import train_dense
from gossamer.demo.recipes import CLASSICS, Classic, Job
from gossamer.drive.progress import TerminalProgress
from gossamer.errors import DataError
from gossamer.measure.accuracy import accuracy
from gossamer.store.json_file import write_json

__all__ = ["run_demo"]


def run_demo(
    *, data: Path | None, out: Path | None, json_file: Path | None, seed: int, quiet: bool, console: Console
) -> None:
    """Train, compress, reload, measure, print.

    Args:
        data: folder of the full Fashion-MNIST, or None: the packaged subset.
        out: folder to keep the files in, or None: they are thrown away.
        json_file: where to write the rows.
        seed: of training.
        quiet: no progress bar.
        console: where to print.
    """
    begin = time.perf_counter()
    console.print("[bold]Gossamer demo[/bold]: two small networks that tell ten kinds of clothing apart in photos.")
    fashion = load_fashion(data)
    what = "full Fashion-MNIST" if fashion.full else "a Fashion-MNIST subset that ships with Gossamer"
    console.print(f"Data: {what}, {len(fashion.train):,} training and {len(fashion.test):,} test images.")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: cannot be made: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    keep = nullcontext(str(out)) if out is not None else tempfile.TemporaryDirectory()
    with keep as folder:
        for classic in CLASSICS:
            results = _run_classic(classic, fashion, Path(folder), seed, quiet, console)
            console.print(_table(classic, results))
            rows += [_row(r) for r in results]
    console.print(_explanation(fashion, torch.get_num_threads()))
    if out is not None:
        best = out / _file_name(CLASSICS[0], CLASSICS[0].jobs[-1])
        console.print(f"The files are in {out}; look into one with: gossamer inspect {best}")
    console.print(f"Took {time.perf_counter() - begin:.0f} s.")
    write_json(json_file, {"rows": rows, "seconds": time.perf_counter() - begin, "full": fashion.full})


def _file_name(classic: Classic, job: Job) -> str:
    words = "".join(c if c.isalnum() else "-" for c in f"{classic.name} {job.name}".lower())
    return "-".join(w for w in words.split("-") if w) + ".gsm"


def _run_classic(
    classic: Classic, fashion: Fashion, folder: Path, seed: int, quiet: bool, console: Console
) -> list[Result]:
    with TerminalProgress(enabled=False if quiet else None) as progress:
        title = f"{classic.name}: training the dense network"
        dense = train_dense(
            classic.factory(), fashion, classic.dense, batch=classic.batch, seed=seed, progress=progress, title=title
        )
        before = accuracy(dense, fashion.test, fashion.test_labels)
        results = []
        for i, job in enumerate(classic.jobs, 1):
            path = folder / _file_name(classic, job)
            named = _Titled(progress, f"{classic.name} {i}/{len(classic.jobs)}: {job.name}")
            results.append(run_job(classic, job, dense, before, fashion, seed=seed, path=path, progress=named))
    return results


class _Titled:
    """Progress under a title of our own."""

    def __init__(self, inner: TerminalProgress, title: str) -> None:
        self._inner, self._title = inner, title

    def update(self, text: str, done: int, total: int) -> None:
        """Pass on."""
        self._inner.update(f"{self._title}, {text}", done, total)


def _table(classic: Classic, results: list[Result]) -> Table:
    first = results[0]
    made = Table(
        title=(
            f"\n{classic.name}: dense file {first.ledger.dense_bytes:,} bytes, "
            f"accuracy {first.before.value:.1%} ± {first.before.standard_error:.1%}"
        ),
        title_justify="left",
        title_style="bold",
    )
    for name in ("family", "what was done"):
        made.add_column(name, overflow="fold")
    numbers = ("file bytes", "smaller", "bits per\nparameter", "accuracy\nof the file", "points\nlost")
    for name in (*numbers, "ms, 1 image\n(dense)", "ms, 64 images\n(dense)", "seconds"):
        made.add_column(name, justify="right")
    for r in results:
        style = "dim" if r.job.breaking else "bold green" if r.job.family == "composed" else ""
        one, many = r.latency[1], r.latency[64]
        made.add_row(
            r.job.family,
            r.job.name + (" (breaks)" if r.job.breaking else ""),
            f"{r.ledger.file_bytes:,}",
            f"{r.ledger.ratio:.1f}x",
            f"{r.ledger.bits_per_parameter:.2f}",
            f"{r.after.value:.1%}",
            f"{r.lost_points:+.1f}",
            f"{one[1].median_ms:.3f} ({one[0].median_ms:.3f})",
            f"{many[1].median_ms:.3f} ({many[0].median_ms:.3f})",
            f"{r.seconds:.0f}",
            style=style,
        )
    return made


def _explanation(fashion: Fashion, threads: int) -> str:
    noise = 100 * (0.9 * 0.1 / len(fashion.test)) ** 0.5
    return (
        "\nHow to read this. Each row is one .gsm file, written, read back and then measured. "
        "'smaller' compares with the ordinary file of the dense network; every byte of the new file counts. "
        "'points lost' are percentage points of test accuracy (minus: gained); "
        f"differences below ±{noise:.1f} are noise with {len(fashion.test):,} test images. "
        f"Times are medians on {threads} threads of this machine, the dense network measured in turn with each. "
        "Rows marked (breaks) go too far on purpose, to show where a method ends."
    )


def _row(r: Result) -> dict[str, Any]:
    return {
        "network": r.network,
        "family": r.job.family,
        "name": r.job.name,
        "breaking": r.job.breaking,
        "file_bytes": r.ledger.file_bytes,
        "dense_bytes": r.ledger.dense_bytes,
        "ratio": r.ledger.ratio,
        "bits_per_param": r.ledger.bits_per_parameter,
        "accuracy": r.after.value,
        "dense_accuracy": r.before.value,
        "standard_error": r.after.standard_error,
        "latency_ms": {str(b): c.median_ms for b, (_, c) in r.latency.items()},
        "dense_latency_ms": {str(b): d.median_ms for b, (d, _) in r.latency.items()},
        "seconds": r.seconds,
        "kernels": r.kernels,
    }
