"""What commands print: tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gossamer.measure.ledger import Ledger

__all__ = ["ledger_tables", "size", "table"]


def size(count: float) -> str:
    """Bytes with thousands separators."""
    return f"{count:,.0f}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> Table:
    """A table whose first columns are text and the rest numbers."""
    made = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for i, column in enumerate(columns):
        text = i < text_columns
        made.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def ledger_tables(console: Console, ledger: Ledger, name: str) -> None:
    """Print a ledger: totals, categories, tensors, what did not shrink, what was free."""
    console.print(
        f"[bold]{escape(name)}[/bold]  {size(ledger.file_bytes)} bytes, "
        f"{ledger.ratio:.1f}x smaller than the dense file ({size(ledger.dense_bytes)} bytes)"
    )
    if ledger.zstd19_bytes is not None:
        ratio = ledger.dense_bytes / ledger.zstd19_bytes
        console.print(f"zstd -19 on the same weights, stored dense: {size(ledger.zstd19_bytes)} bytes ({ratio:.1f}x)")
    console.print(
        f"{ledger.bits_per_parameter:.3f} bits per parameter over the whole network, "
        f"{ledger.bits_per_compressed_weight:.3f} over the compressed weights"
    )
    rows = [[k, size(v), f"{v / ledger.file_bytes:.1%}"] for k, v in ledger.categories.items()]
    rows.append(["sum = file", size(sum(ledger.categories.values())), "100.0%"])
    console.print(table("Where every byte is", ["what", "bytes", "share"], rows))
    rows = [
        [
            t.name,
            t.encoding,
            size(t.dense_bytes),
            size(t.file_bytes),
            f"{t.bits_per_weight:.2f}",
            size(t.entropy_bytes),
            f"{1 - t.nonzero:.1%}",
        ]
        for t in ledger.tensors
    ]
    columns = ["tensor", "stored as", "dense,\nbytes", "bytes", "bits/\nweight", "order-0\nentropy", "zeros"]
    console.print(table("Tensor by tensor", columns, rows, text_columns=2))
    rows = [[t.name, t.why, size(t.file_bytes)] for t in ledger.tensors if t.why]
    if rows:
        console.print(table("What did not shrink, and why", ["tensor", "why", "bytes"], rows, text_columns=2))
    console.print("Not counted: " + "; ".join(ledger.free))
