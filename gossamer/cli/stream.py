"""`compress` over a checkpoint on disk: arguments to the streaming driver."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from gossamer.cli.commands import check_output, show_plan
from gossamer.cli.network import factory_of
from gossamer.cli.output import size, table
from gossamer.cli.recipes import Chosen
from gossamer.coding import Effort
from gossamer.drive.checkpoint import CheckpointSource
from gossamer.drive.estimate import estimate
from gossamer.drive.progress import TerminalProgress
from gossamer.drive.recipe_file import dump_recipe
from gossamer.drive.stream import stream
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Method
from gossamer.store.checkpoint import open_checkpoint
from gossamer.store.json_file import write_json

__all__ = ["compress_checkpoint"]


def compress_checkpoint(
    *,
    checkpoint: Path,
    chosen: Chosen,
    network: str | None,
    output: Path | None,
    data: str | None,
    dry_run: bool,
    keep_plan: bool,
    effort: Effort,
    resume: bool,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """A folder of shards, or one file, in; one container out."""
    check_output(output, dry_run=dry_run)
    if data is not None:
        raise PlanError(
            "--data: found training data for a checkpoint that is read in pieces, expected --network and one file"
        )
    shards = open_checkpoint(checkpoint)
    if output is not None and output.resolve() in {s.path.resolve() for s in shards.shards}:
        raise DataError(f"{output}: found an input file, expected another name: inputs are never overwritten")
    model = None
    if network is not None:
        with torch.device("meta"):
            model = factory_of(network)()
    source = CheckpointSource(shards, model)
    steps = chosen.for_checkpoint(source.specs())
    dense_bytes = sum(shard.size for shard in shards.shards)

    def bind(method: Method) -> Method:
        return method if model is None else method.bind(model, None)

    if dry_run:
        expected = estimate(source, steps, bind)
        rows = [
            [stage.name, f"{stage.tensors}", f"{stage.passes}", f"{stage.seconds:.0f}"] for stage in expected.stages
        ]
        console.print(table("What will be done", ["stage", "tensors", "passes", "seconds"], rows))
        console.print(
            f"{len(source.specs())} tensors in {len(shards.shards)} files, {size(dense_bytes)} bytes. Estimated: "
            f"{expected.seconds:.0f} s, {size(expected.memory_bytes)} bytes of memory, at most about "
            f"{size(expected.file_bytes)} bytes of output."
        )
        console.print("Dry run: no weight was read, nothing was written.")
        write_json(json_file, {"recipe": dump_recipe(steps), "estimate": asdict(expected), "dense_bytes": dense_bytes})
        return
    assert output is not None
    with TerminalProgress(enabled=False if quiet else None) as progress:
        done = stream(
            source,
            steps,
            output,
            identity=shards.identity(),
            bind=bind,
            resume=resume,
            keep_plan=keep_plan,
            effort=effort,
            progress=progress,
        )
    show_plan(console, done.plans, done.skipped)
    again = f"; {done.resumed} tensors were finished before" if done.resumed else ""
    console.print(
        f"{escape(str(output))}: {size(done.file_bytes)} bytes, {dense_bytes / done.file_bytes:.1f}x smaller than "
        f"{size(dense_bytes)}{again}"
    )
    document = {"recipe": dump_recipe(steps), "plan": done.plans, "skipped": done.skipped, "dense_bytes": dense_bytes}
    document |= {"resumed": done.resumed, "file": str(output), "file_bytes": done.file_bytes}
    write_json(json_file, {**document, "ratio": dense_bytes / done.file_bytes})
