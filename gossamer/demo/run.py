"""The demo: two networks trained, compressed by every family, reloaded, measured, and one table to read."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

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
    page: Path | str = ""
    keep = nullcontext(str(out)) if out is not None else tempfile.TemporaryDirectory()
    with keep as folder:
        for classic in CLASSICS:
            dense, results = _run_classic(classic, fashion, Path(folder), seed, quiet)
            console.print(_heading(classic, results))
            console.print(_table(results))
            rows += [_row(r) for r in results]
            if classic is CLASSICS[0]:
                page = _page(classic, dense, results, fashion, Path(folder), out, quiet)
    console.print(_explanation(fashion, torch.get_num_threads()))
    if out is not None:
        best = out / _file_name(CLASSICS[0], CLASSICS[0].jobs[-1])
        console.print(f"The files are in {out}; look into one with: gossamer inspect {best}")
    console.print(f"Took {time.perf_counter() - begin:.0f} s.")
    if isinstance(page, Path):
        console.print(f"All of {CLASSICS[0].name} as one page to look at:")
        console.print(escape(str(page)), soft_wrap=True)
    else:
        console.print(f"No page to look at: {escape(page)}")
    shown = {"page": str(page)} if isinstance(page, Path) else {}
    write_json(json_file, {"rows": rows, "seconds": time.perf_counter() - begin, "full": fashion.full, **shown})


def _file_name(classic: Classic, job: Job) -> str:
    words = "".join(c if c.isalnum() else "-" for c in f"{classic.name} {job.name}".lower())
    return "-".join(w for w in words.split("-") if w) + ".gsm"


def _run_classic(
    classic: Classic, fashion: Fashion, folder: Path, seed: int, quiet: bool
) -> tuple[nn.Module, list[Result]]:
    with TerminalProgress(enabled=False if quiet else None) as progress:
        title = f"{classic.name}: training the dense network"
        dense = train_dense(
            classic.factory(), fashion, classic.dense, batch=classic.batch, seed=seed, progress=progress, title=title
        )
        before = accuracy(dense, fashion.test, fashion.test_labels)
        results = []
        jobs = [job for job in classic.jobs if not job.breaking]  # where methods end is for the benchmark
        for i, job in enumerate(jobs, 1):
            path = folder / _file_name(classic, job)
            named = _Titled(progress, f"{classic.name} {i}/{len(jobs)}: {job.name}")
            results.append(run_job(classic, job, dense, before, fashion, seed=seed, path=path, progress=named))
    return dense, results


def _page(
    classic: Classic,
    dense: nn.Module,
    results: list[Result],
    fashion: Fashion,
    folder: Path,
    out: Path | None,
    quiet: bool,
) -> Path | str:
    """The report of a network's files, beside them or in a folder of its own; or why there is none."""
    try:
        from gossamer.demo.page import write_page
    except DataError as error:
        return str(error)
    files = [folder / _file_name(classic, r.job) for r in results]
    file = (out if out is not None else Path(tempfile.mkdtemp(prefix="gossamer-demo-"))) / "report.html"
    with TerminalProgress(enabled=False if quiet else None) as progress:
        write_page(file, files, classic, dense, fashion, progress=progress)
    return file.absolute()


class _Titled:
    """Progress under a title of our own."""

    def __init__(self, inner: TerminalProgress, title: str) -> None:
        self._inner, self._title = inner, title

    def update(self, text: str, done: int, total: int) -> None:
        """Pass on."""
        self._inner.update(f"{self._title}, {text}", done, total)


def _heading(classic: Classic, results: list[Result]) -> str:
    first = results[0]
    one, many = (sorted(r.latency[b][0].median_ms for r in results)[len(results) // 2] for b in (1, 64))
    return (
        f"\n[bold]{classic.name}[/bold] as trained: {first.ledger.dense_bytes:,} bytes, "
        f"{first.before.value:.1%} right (± {first.before.standard_error:.1%}), "
        f"{one:.2f} ms for 1 image, {many:.2f} ms for 64"
    )


def _table(results: list[Result]) -> Table:
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    made.add_column("what was done", overflow="fold", min_width=18)  # the longest word
    names = ("file,\nbytes", "times\nsmaller", "bits/\nweight", "right, %\nbefore→", "speed,\n1", "speed,\n64")
    for name in (*names, "took\ns"):
        made.add_column(name, justify="right", no_wrap=True)
    for r in results:
        made.add_row(
            f"{r.job.family}: {r.job.name}",
            f"{r.ledger.file_bytes:,}",
            f"{r.ledger.ratio:.1f}",
            f"{r.ledger.bits_per_parameter:.2f}",
            f"{100 * r.before.value:.1f}→{100 * r.after.value:.1f}",
            _speed(r, 1),
            _speed(r, 64),
            f"{r.seconds:.0f}",
            style="bold green" if r.job.family == "composed" else "",
        )
    return made


def _speed(result: Result, batch: int) -> str:
    dense, small = result.latency[batch]
    return f"{dense.median_ms / small.median_ms:.1f}x"


def _explanation(fashion: Fashion, threads: int) -> str:
    noise = 100 * (2 * 0.88 * 0.12 / len(fashion.test)) ** 0.5
    count = "one thread" if threads == 1 else f"{threads} threads"
    return (
        "\nHow to read this. Every row is one .gsm file that was written, read back and then measured. 'Times smaller' "
        "compares it with the ordinary file of the same network, every byte counted; 'bits per weight' was 32. "
        f"'Right' is the share of {len(fashion.test):,} unseen photos that the network names correctly, dense before, "
        f"reloaded after; two networks of equal skill differ by about {noise:.1f} points by chance. 'Speed' "
        f"is against the dense network, for 1 and for 64 images at once, timed in turn on {count} of this "
        "machine: 2.0x is half the time.\n"
        "value-compression packs the same numbers better; quantization and sharing keep fewer different numbers; "
        "down-sizing removes neurons; factorization splits a layer into two thin ones; sparsification sets weights to "
        "zero; composed does the last, then sharing, then packing."
    )


def _row(r: Result) -> dict[str, Any]:
    return {
        "network": r.network,
        "family": r.job.family,
        "name": r.job.name,
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
