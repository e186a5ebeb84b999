"""A document of measurements as one HTML file that needs nothing else and can do nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from gossamer.report.attacked import corruption_curves, corruption_map, robustness_curves
from gossamer.report.byte_map import byte_map
from gossamer.report.exemplars import changed_examples
from gossamer.report.front import fronts
from gossamer.report.headline import chosen, claim, why_chosen
from gossamer.report.layer_strips import gallery, kernel_strips, largest, layer_strips
from gossamer.report.learned import Names, class_strips, most_changed, reliability
from gossamer.report.lengths import description_lengths
from gossamer.report.looks import Look, looks_of
from gossamer.report.needs import Environment, Markup, StrictUndefined, Template
from gossamer.report.overview import overview
from gossamer.report.pairs import attack_chart, gap_chart
from gossamer.report.scales import bytes_text, percent, times
from gossamer.report.svg import clean
from gossamer.report.tables import Figure, Panel, Section
from gossamer.store.json_file import finite

__all__ = ["embedded", "page_of"]

# Rows of layers over all files, and pictured examples of each file: the first with which the page stays small enough.
_ALL_CARDS = 1 << 30
_STEPS = (*((rows, _ALL_CARDS) for rows in (720, 360, 180, 90)), (90, 6), (90, 2), (90, 0))
_FEWEST = 6
_LARGEST = 1_400_000
_CLASSES = 40


def page_of(document: Mapping[str, Any]) -> str:
    """The page.

    Args:
        document: as of `gossamer.report.Report.to_json`.

    Returns:
        HTML. All names of files, layers and classes are text in it, whatever they are; a policy in its head allows
        one script and one style sheet by their SHA-256, pictures within the page, and nothing else.

    Exact: the same document gives the same bytes.
    """
    for rows, cards in _STEPS:
        page = _drawn(_pictured(document, cards), rows, whole=rows > _STEPS[-1][0])
        if len(page.encode()) <= _LARGEST:
            break
    return page


def _drawn(document: Mapping[str, Any], rows: int, *, whole: bool) -> str:
    """The page with so many rows of layers, and with all or only the largest of them in its data."""
    looks, dense = looks_of(document)
    each = max(_FEWEST, rows // max(1, len(looks)))
    kept = document if whole else _largest_layers(document, each)
    style, script = _part("style.css"), _part("script.js")
    best = chosen(looks, dense)
    return _template().render(
        title=str(document["title"]),
        subject="" if best is None else str(best.file["path_name"]),
        claim=str(document["title"]) if best is None else claim(best, dense),
        why="" if best is None else why_chosen(best, looks, dense),
        first="" if best is None else best.letter,
        sections=_sections(document, looks, dense, each),
        facts=_facts(document, looks),
        missing=[(str(what), str(why)) for what, why in document.get("missing", {}).items()],
        policy=_policy(style, script),
        style=Markup(style),  # files of ours
        script=Markup(script),
        data=Markup(embedded(_without_pictures(kept))),
    )


def embedded(document: Any) -> str:
    """JSON that may stand inside a script element: no ``<``, ``>`` or ``&`` is left in it.

    Example:
        >>> embedded({"</script>": float("nan")})
        '{"\\\\u003c/script\\\\u003e":null}'
    """
    text = json.dumps(finite(document, digits=9), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _without_pictures(value: Any) -> Any:
    """The document without what the page already shows as pictures."""
    if isinstance(value, Mapping):
        return {k: _without_pictures(v) for k, v in value.items() if k not in ("uri", "seen")}
    return [_without_pictures(v) for v in value] if isinstance(value, (list, tuple)) else value


def _pictured(document: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The document with what no more than so many changed examples of each file look like."""
    if all(len(file["seen"] or ()) <= most for file in document["files"]):
        return document
    files = [{**file, "seen": dict(list((file["seen"] or {}).items())[:most])} for file in document["files"]]
    return {**document, "files": files}


def _largest_layers(document: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The document with no more than so many layers and kernels of each file, and the classes that changed most."""
    files = []
    for file in document["files"]:
        layers, kernels = file["layers"], file["kernels"]
        cut = {"layers": largest(layers, most), "kernels": kernels and kernels[:most]}
        seen = file["generalisation"]
        if seen is not None:
            cut["generalisation"] = {**seen, "per_class": most_changed(seen["per_class"])[:_CLASSES]}
        files.append({**file, **cut, "layers_left_out": max(0, len(layers) - most)})
    return {**document, "files": files}


@cache
def _part(name: str) -> str:
    return files("gossamer.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _template() -> Template:
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_cleaned
    )
    return made.from_string(_part("template.html"))


def _cleaned(value: Any) -> Any:
    """Every text that the template puts in, before it is escaped."""
    return clean(value) if type(value) is str else value


def _policy(style: str, script: str) -> str:
    rules = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _sections(document: Mapping[str, Any], looks: Sequence[Look], dense: Look | None, rows: int) -> list[Section]:
    compared = [overview(looks, dense), *fronts(looks, dense)]
    behaved = [
        robustness_curves(looks, dense),
        corruption_curves(looks, dense),
        attack_chart(looks, dense),
        gap_chart(looks, dense),
        reliability(looks, dense),
        *description_lengths(looks, dense),
    ]
    names = _names(document["data"]["classes"])
    panels = tuple(_panel(look, dense, names, rows) for look in looks)
    kept = tuple(figure for figure in behaved if figure is not None)
    beside = "" if dense is None else "The dense network is beside every file."
    return [
        Section("compared", "Compared", "", tuple(compared)),
        *([Section("behaviour", "What accuracy hides", beside, kept)] if kept else []),
        *([Section("detail", "Inside a file", "", (), panels)] if panels else []),
    ]


def _names(classes: Any) -> Names:
    """A list of all classes, or of those words of a vocabulary that occur."""
    if isinstance(classes, Mapping):
        return {int(number): str(name) for number, name in classes.items()}
    return [str(name) for name in classes]


def _panel(look: Look, dense: Look | None, names: Names, rows: int) -> Panel:
    figures: list[Figure | None] = [
        byte_map(look),
        layer_strips(look, rows),
        gallery(look),
        kernel_strips(look, rows),
        changed_examples(look, names),
        class_strips(look, names, _CLASSES),
        corruption_map(look, dense),
    ]
    size, ratio = look.number("file_bytes") or 0.0, look.number("ratio")
    lead = f"{size:,.0f} bytes, {times(ratio)} smaller than {bytes_text(look.number('dense_bytes'))}"
    if look.accuracy is not None:
        lead += f"; {percent(look.accuracy, 2)} right"
    return Panel(look.letter, look.name, str(look.file["name"]), f"{lead}.", tuple(f for f in figures if f is not None))


def _facts(document: Mapping[str, Any], looks: Sequence[Look]) -> list[tuple[str, str]]:
    """How it was measured."""
    data = document["data"]
    facts = [("Machine", str(document["machine"])), ("Measured", str(document["measured"]))]
    if data["examples"]:
        facts.append(
            ("Examples", f"{data['examples']:,}" + (f" of shape {data['shape']}" if data.get("shape") else ""))
        )
    facts += [(str(k), str(v)) for k, v in document.get("settings", {}).items()]
    free = {str(f): None for look in looks for f in look.file.get("free", ())}
    free |= {str(f): None for look in looks for f in (look.part("description_length") or {}).get("free", ())}
    if free:
        facts.append(("Not counted", "; ".join(free)))
    return facts
