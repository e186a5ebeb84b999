"""`pack` and `unpack`: arguments to the library, and a line about what came of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import gossamer as gs
from gossamer.cli.output import size
from gossamer.drive.progress import TerminalProgress
from gossamer.errors import PlanError
from gossamer.store.json_file import write_json

__all__ = ["pack_checkpoint", "unpack_checkpoint"]


def pack_checkpoint(
    *,
    source: Path,
    out: Path,
    reference: Path | None,
    verify: bool,
    resume: bool,
    threads: int,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """A file or folder in, a packed one out."""
    _refuse_same(source, out, json_file)
    with TerminalProgress(enabled=False if quiet else None) as progress:
        done = gs.pack(
            source, out, reference=reference, verify=verify, resume=resume, workers=threads, progress=progress
        )
    again = f"; {done.resumed} pieces were finished before" if done.resumed else ""
    console.print(
        f"{escape(str(out))}: {size(done.packed_bytes)} bytes, {done.ratio:.3f}x smaller than "
        f"{size(done.dense_bytes)}, in {done.seconds:.1f} s{again}"
    )
    files = {name: [asdict(unit) for unit in units] for name, units in done.units.items()}
    document = {"source": str(source), "file": str(out), "reference": None if reference is None else str(reference)}
    sizes = {"dense_bytes": done.dense_bytes, "packed_bytes": done.packed_bytes, "ratio": done.ratio}
    write_json(json_file, {**document, **sizes, "seconds": done.seconds, "resumed": done.resumed, "files": files})


def unpack_checkpoint(
    *,
    source: Path,
    out: Path,
    reference: Path | None,
    resume: bool,
    threads: int,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """A packed file or folder in, the one that was packed out."""
    _refuse_same(source, out, json_file)
    with TerminalProgress(enabled=False if quiet else None) as progress:
        done = gs.unpack(source, out, reference=reference, resume=resume, workers=threads, progress=progress)
    console.print(f"{escape(str(out))}: {size(done.dense_bytes)} bytes, every checksum right, in {done.seconds:.1f} s")
    document = {"source": str(source), "file": str(out), "reference": None if reference is None else str(reference)}
    sizes = {"dense_bytes": done.dense_bytes, "packed_bytes": done.packed_bytes, "ratio": done.ratio}
    write_json(json_file, {**document, **sizes, "seconds": done.seconds})


def _refuse_same(source: Path, out: Path, json_file: Path | None) -> None:
    if json_file is not None and json_file.resolve() in (source.resolve(), out.resolve()):
        raise PlanError(f"--json {json_file}: found the checkpoint's own name, expected another file")
