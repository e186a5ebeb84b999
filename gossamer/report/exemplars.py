"""The examples whose answers changed most: images or text, what the dense network said, what this one says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.report.learned import Names, class_name
from gossamer.report.looks import Look
from gossamer.report.scales import finite, percent
from gossamer.report.svg import Markup, tag
from gossamer.report.tables import Column, Figure, Table, numeric, text

__all__ = ["changed_examples", "key_of"]


def key_of(row: Mapping[str, Any]) -> str:
    """Under which pictures and texts of a row are found.

    Example:
        >>> key_of({"index": 3}), key_of({"index": 3, "position": 9})
        ('3', '3:9')
    """
    return str(row["index"]) if row.get("position") is None else f"{row['index']}:{row['position']}"


def changed_examples(look: Look, names: Names) -> Figure | None:
    """Cards of the examples that changed, with a table of all that were listed; None if not measured."""
    part = look.part("changed")
    if part is None:
        return None
    rows: Sequence[Mapping[str, Any]] = part["rows"]
    seen: Mapping[str, Any] = look.file.get("seen") or {}
    cards = [_card(r, seen[key_of(r)], names) for r in rows if key_of(r) in seen]
    agreement = finite(part["agreement"])
    title = f"Same answer as the dense network for {percent(agreement)}"
    pictured = any(s.get("image") for s in seen.values())
    traced = any(s.get("compressed") for s in seen.values())
    note = (
        "The examples whose right answer lost most of its probability."
        + (
            " Beside each image: which pixels sway the dense network, then this one (input gradients)."
            if traced
            else ""
        )
        + ("" if pictured or not cards else " The word in question is marked.")
    )
    chart = (
        tag("div", {"class": "exemplars" if pictured else "exemplars wordy", "role": "list"}, *cards)
        if cards
        else Markup("")
    )
    positions = any(r.get("position") is not None for r in rows)
    columns = [
        Column("example"),
        *([Column("position")] if positions else []),
        Column("is", False),
        Column("dense said", False),
    ]
    columns += [Column("this one says", False), Column("dense, p of the truth"), Column("here, p of the truth")]
    table = Table(
        f"Examples that changed in {look.name}", tuple(columns), tuple(_cells(r, names, positions) for r in rows)
    )
    return Figure(f"changed-{look.letter.lower()}", title, note, chart, table)


def _card(r: Mapping[str, Any], seen: Mapping[str, Any], names: Names) -> Markup:
    true, before, after = (class_name(r[key], names) for key in ("true", "dense", "compressed"))
    chances = f"{percent(finite(r['dense_p']), 0)} → {percent(finite(r['compressed_p']), 0)}"
    verdict = [tag("span", {"class": _verdict(said, true)}, said) for said in (before, after)]
    words = tag(
        "p",
        {},
        tag("b", {}, true),
        tag("br"),
        verdict[0],
        " → ",
        verdict[1],
        tag("br"),
        tag("small", {}, f"p of the truth {chances}"),
    )
    if seen.get("image"):
        pictures = [_image(seen["image"], f"example {key_of(r)}: {true}")]
        pictures += [_image(seen[key], f"{key} saliency") for key in ("dense", "compressed") if seen.get(key)]
        return tag("div", {"class": "card", "role": "listitem"}, tag("div", {"class": "pictures"}, *pictures), words)
    context = tag(
        "p", {"class": "context"}, seen.get("before", ""), tag("mark", {}, seen.get("word", "")), seen.get("after", "")
    )
    return tag("div", {"class": "card", "role": "listitem"}, context, words)


def _verdict(said: str, true: str) -> str:
    return "said good" if said == true else "said bad"


def _image(picture: Mapping[str, Any], alt: str) -> Markup:
    tall, wide = int(picture["height"]), int(picture["width"])
    scale = 72 / max(tall, wide)
    size = {"width": max(8, round(wide * scale)), "height": max(8, round(tall * scale))}
    return tag("img", {"src": picture["uri"], "alt": alt, "class": "pixels", **size})


def _cells(r: Mapping[str, Any], names: Names, positions: bool) -> tuple[Any, ...]:
    where = [numeric(r["index"], f"{r['index']}")]
    if positions:
        where.append(numeric(r.get("position"), f"{r.get('position')}"))
    said = [text(class_name(r[key], names)) for key in ("true", "dense", "compressed")]
    chances = [numeric(r[key], percent(finite(r[key]), 2)) for key in ("dense_p", "compressed_p")]
    return (*where, *said, *chances)
