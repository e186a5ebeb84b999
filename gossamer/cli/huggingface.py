"""`compress` and `decompress` over local Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from torch.nn import functional as F

import gossamer as gs
from gossamer.cli.commands import check_output, say_removed, show_plan
from gossamer.cli.output import size
from gossamer.cli.recipes import Chosen
from gossamer.coding import Effort
from gossamer.drive.progress import TerminalProgress
from gossamer.drive.recipe_file import dump_recipe
from gossamer.errors import DataError, PlanError
from gossamer.huggingface import (
    causal,
    factory,
    load_folder,
    next_token_loss,
    quiet_transformers,
    save_folder,
    text_windows,
    with_targets,
)
from gossamer.store.json_file import write_json
from gossamer.store.weights import dense_bytes_of

__all__ = ["compress_folder", "decompress_folder"]


def compress_folder(
    *,
    folder: Path,
    chosen: Chosen,
    calib: Path,
    window: int,
    samples: int,
    output: Path | None,
    checkpoint: Path | None,
    resume: bool,
    keep_plan: bool,
    effort: Effort,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """A model folder and text in, one file out."""
    check_output(output, dry_run=False)
    assert output is not None
    if not folder.is_dir():
        raise DataError(f"{folder}: found no folder, expected a local Hugging Face model with --calib")
    if resume and checkpoint is None:
        raise PlanError("--resume: found no --checkpoint beside --calib, expected the folder of the run to go on with")
    data = text_windows(folder, calib, window=window, samples=samples)  # cheaper to find wanting than the network
    if quiet:
        quiet_transformers()
    network = load_folder(folder)
    predicts = causal(network)
    if predicts:
        data = with_targets(data)
    steps = chosen.for_network(network, has_data=predicts)
    dense_bytes = dense_bytes_of(network)
    with TerminalProgress(enabled=False if quiet else None) as progress:
        small = gs.compress(
            network,
            steps,
            data=data,
            loss=next_token_loss if predicts else F.cross_entropy,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
        )
    small.notes["recipe"] = dump_recipe(steps)
    show_plan(console, small.notes["plan"], small.skipped)
    written = small.save(output, plan=keep_plan, effort=effort)
    gs.load(output, into=factory(folder))
    console.print(
        f"{escape(str(output))}: {size(written)} bytes, {dense_bytes / written:.1f}x smaller than {size(dense_bytes)}; "
        f"read back and checked. gossamer decompress --hf {escape(str(folder))} makes a model folder of it"
    )
    document = {"recipe": small.notes["recipe"], "plan": small.notes["plan"], "skipped": small.skipped}
    document |= {"dense_bytes": dense_bytes, "windows": sum(len(_ids(batch)) for batch in data)}
    write_json(json_file, {**document, "file": str(output), "file_bytes": written, "ratio": dense_bytes / written})


def _ids(batch: object) -> list[object]:
    inputs = batch[0] if isinstance(batch, tuple) else batch
    assert isinstance(inputs, dict)
    return list(inputs["input_ids"])


def decompress_folder(*, file: Path, like: Path, output: Path, json_file: Path | None, console: Console) -> None:
    """A model folder from a file; removed channels and blocks are zeros in it."""
    network = factory(like)()
    small = gs.load(file, into=network)
    network.load_state_dict(small.state_dict())
    written = save_folder(network, like, output)
    console.print(f"{escape(str(output))}: {size(written)} bytes of dense weights, loads with from_pretrained")
    say_removed(small, console)
    write_json(json_file, {"folder": str(output), "bytes": written})
