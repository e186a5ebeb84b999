"""What the commands do: read, call the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import gossamer as gs
from gossamer.cli.network import calling, factory_of, named_object
from gossamer.cli.output import ledger_tables, size, table
from gossamer.cli.recipes import Chosen
from gossamer.coding import Effort
from gossamer.drive.progress import TerminalProgress
from gossamer.drive.recipe import run
from gossamer.drive.recipe_file import dump_recipe
from gossamer.errors import DataError, PlanError
from gossamer.measure.ledger import ledger_of
from gossamer.network.rebuild import is_empty
from gossamer.store.json_file import write_json
from gossamer.store.safetensors_file import write_safetensors
from gossamer.store.weights import dense_bytes_of, load_weights_into

__all__ = ["check_output", "compress_file", "decompress_file", "inspect_file", "say_removed", "show_plan"]


def compress_file(
    *,
    weights: Path,
    chosen: Chosen,
    network: str,
    output: Path | None,
    data: str | None,
    dry_run: bool,
    keep_plan: bool,
    effort: Effort,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """Weights and recipe or preset in, one file out."""
    check_output(output, dry_run=dry_run)
    if output is not None and output.resolve() == weights.resolve():
        raise DataError(f"{output}: found the input file, expected another name: inputs are never overwritten")
    factory = factory_of(network)
    model = factory()
    steps = chosen.for_network(model, has_data=data is not None or dry_run)
    model = load_weights_into(model, weights).eval()
    dense_bytes = dense_bytes_of(model)
    batches = None
    if data:
        with calling(data, "--data"):
            batches = named_object(data, "--data")()
    if dry_run:
        state = run(model, steps, data=batches, training=False)
        show_plan(console, state.plans, state.skipped)
        console.print("Dry run: nothing was trained, nothing was written.")
        document = {"plan": state.plans, "skipped": state.skipped, "dense_bytes": dense_bytes}
        write_json(json_file, {"recipe": dump_recipe(steps), **document})
        return
    assert output is not None
    with TerminalProgress(enabled=False if quiet else None) as progress:
        small = gs.compress(model, steps, data=batches, progress=progress)
    small.notes["recipe"] = dump_recipe(steps)
    show_plan(console, small.notes["plan"], small.skipped)
    written = small.save(output, plan=keep_plan, effort=effort)
    gs.load(output, into=factory)
    console.print(
        f"{escape(str(output))}: {size(written)} bytes, {dense_bytes / written:.1f}x smaller than {size(dense_bytes)}; "
        "read back and checked"
    )
    document = {"recipe": small.notes["recipe"], "plan": small.notes["plan"], "skipped": small.skipped}
    document |= {"dense_bytes": dense_bytes}
    write_json(json_file, {**document, "file": str(output), "file_bytes": written, "ratio": dense_bytes / written})


def check_output(output: Path | None, *, dry_run: bool) -> None:
    """Refuse, before any work, that nothing is to be written although it should be.

    Raises:
        PlanError: so.
    """
    if output is None and not dry_run:
        raise PlanError("found neither --output nor --dry-run, expected one of them")


def show_plan(console: Console, plans: list[dict[str, Any]], skipped: dict[str, str]) -> None:
    """What each method decided, and what was left as it is."""
    rows = [[i["method"], _targets(i), _details(i)] for i in plans]
    console.print(table("Plan", ["method", "tensors", "details"], rows, text_columns=3))
    if skipped:
        rows = [[name, why] for name, why in skipped.items()]
        console.print(table("Left as they are", ["tensor", "why"], rows, text_columns=2))


def _targets(step: dict[str, Any]) -> str:
    names = [t for s in step.get("steps", []) for t in s["targets"]]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _details(step: dict[str, Any]) -> str:
    plain = [
        ", ".join(f"{k} {v}" for k, v in s.items() if k != "targets" and not isinstance(v, dict))
        for s in step.get("steps", [])
    ]
    text = "; ".join(p for p in plain[:4] if p) + (" …" if len(plain) > 4 else "")
    return text + (f", in {step['updates']} updates while training" if "updates" in step else "")


def inspect_file(*, file: Path, zstd: bool, json_file: Path | None, console: Console) -> None:
    """The ledger of a file."""
    ledger = ledger_of(file, zstd=zstd)
    ledger_tables(console, ledger, str(file))
    write_json(json_file, {"file": str(file), **ledger.to_json()})


def say_removed(small: gs.Compressed, console: Console) -> None:
    """Where whole blocks were removed, that dense weights cannot always say so."""
    gone = [name for name, tree in small.trees.items() if is_empty(tree)]
    if gone:
        shown = ", ".join(gone[:2]) + (f" and {len(gone) - 2} more" if len(gone) > 2 else "")
        console.print(
            f"{escape(shown)} belong to removed blocks and are zeros: the same network only where blocks add to their "
            "inputs and normalise before, not after. gossamer.load(FILE, into=…).dense() has no such blocks"
        )


def decompress_file(*, file: Path, output: Path, json_file: Path | None, console: Console) -> None:
    """Dense weights from a file."""
    if output.resolve() == file.resolve():
        raise DataError(f"{output}: found the input file, expected another name: inputs are never overwritten")
    small = gs.load(file)
    written = write_safetensors(output, small.state_dict())
    console.print(f"{escape(str(output))}: {size(written)} bytes of dense weights")
    say_removed(small, console)
    write_json(json_file, {"file": str(output), "bytes": written})
