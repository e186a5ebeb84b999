"""Tables of documents from the JSON of `benchmarks.coding`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

__all__ = ["coding_tables"]

Row = dict[str, Any]
Table = Callable[..., str]


def coding_tables(document: dict[str, Any], table: Table) -> dict[str, str]:
    """All of them, by name; `table(head, rows, words=n)` lays one out."""
    parts = [_lossless(document["lossless"], table), _symbols(document["symbols"], table)]
    parts += [_rates(document["rate_distortion"], table), _loads(document["load"])]
    return {"coding": "\n".join(part for part in parts if part)}


def _of(rows: list[Row], source: str, coder: str) -> Row | None:
    return next((row for row in rows if row["source"] == source and row["coder"] == coder), None)


def _lossless(rows: list[Row], table: Table) -> str:
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        cells = [source]
        for coder in ("gossamer", "zipnn", "zipnn-whole", "zstd-19", "blosc2"):
            row = _of(rows, source, coder)
            speeds = f", {row['encode_gb_s']:.2g} / {row['decode_gb_s']:.2g}" if row else ""
            cells.append(f"{100 * row['ratio']:.1f}%{speeds}" if row else "")
        lines.append(tuple(cells))
    head = ("floats, no bit lost", "Gossamer", "ZipNN by tensor", "ZipNN at once", "shuffle + zstd-19", "blosc2 (zstd)")
    return table(head, lines, words=1) + "\nSize, then GB/s of dense bytes coded and decoded on one thread.\n"


def _worst(rows: list[Row], coder: str) -> float:
    """Of all leaves."""
    return max((row["worst_leaf"] for row in rows if row["coder"] == coder), default=1.0)


def _symbols(rows: list[Row], table: Table) -> str:
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        found = [_of(rows, source, coder) for coder in ("gossamer", "gossamer-context", "constriction")]
        plain = found[0]
        if plain is None:
            continue
        cells = [source, f"{plain['order0']:.3f}"]
        for row in found:
            speeds = f"{row['encode_msym_s']:.0f} / {row['decode_msym_s']:.0f}" if row else ""
            cells.append(f"{row['of_order0']:.4f}, {speeds}" if row else "")
        lines.append(tuple(cells))
    contexts = [row["of_order0"] for row in rows if row["coder"] == "gossamer-context"]
    if not lines:
        return ""
    head = ("symbols", "order 0, bits", 'effort="fast"', 'effort="best"', "constriction")
    average, worst = mean(contexts), _worst(rows, "gossamer-context")
    said = (
        "\nShare of the order-0 entropy, Msym/s coded and decoded on one thread (fast into memory that is there). "
        f"Best: {average:.3f} in the mean, no tensor of more than 10,000 weights over {worst:.4f}; fast: no leaf over "
        f"{_worst(rows, 'gossamer'):.4f}.\n"
    )
    return table(head, lines, words=1) + said


def _rates(rows: list[Row], table: Table) -> str:
    lines = []
    for row in rows:
        if "seeds" in row:
            smaller, lost = f"{row['ratio']:.1f}x", f"{row['dense_value']:.2%} → {row['value']:.2%}"
            lines.append((row["network"], f"trained for few bits, {row['seeds']} seeds", lost, smaller, ""))
        elif "of_nncodec" in row:
            lines.append(
                (
                    row["network"],
                    f"{row['method']} at {row['metric']} {row['value']:.3g}",
                    f"{row['file_bytes']:,.0f} bytes",
                    f"{row['of_nncodec']:.3f} of nncodec",
                    f"{row['decode_speed']:.1f}x" if row.get("decode_speed") else "",
                )
            )
    return table(("network", "how", "result", "size", "decoded"), lines, words=3) if lines else ""


def _loads(rows: list[Row]) -> str:
    said = [
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}: {1e3 * row['gsm_s']:.0f} ms from {row['source']} "
        f"({row['file_bytes']:,} bytes) to a network that runs, {1e3 * row['safetensors_s']:.0f} ms for "
        f"`safetensors.torch.load_file` of the dense file ({row['dense_bytes']:,} bytes)"
        for row in rows
    ]
    return "Both files read cold. " + "; ".join(said) + ".\n" if said else ""
