"""The page is well formed, holds everything, and lets nothing out of its place, whatever names are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from documents import CLASSES, HOSTILE, bare, document

from gossamer.report.headline import headline
from gossamer.report.looks import looks_of
from gossamer.report.overview import _interval
from gossamer.report.page import embedded, page_of
from gossamer.report.png import data_uri, png
from gossamer.report.svg import clean
from gossamer.report.tables import numeric

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Elements, with every one closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag]


@pytest.fixture(scope="module", params=["plain", "hostile", "bare", "one file"])
def made(request: pytest.FixtureRequest) -> tuple[dict[str, Any], str]:
    """A document and its page."""
    kinds: Mapping[str, dict[str, Any]] = {
        "plain": document(),
        "hostile": document(hostile=True),
        "bare": bare(),
        "one file": document(files=1, layers=1),
    }
    chosen = kinds[request.param]
    return chosen, page_of(chosen)


def test_elements_nest_and_drawings_are_xml(made: tuple[dict[str, Any], str]) -> None:
    _, page = made
    reader = Reader(page)
    assert reader.of("html") == [{"lang": "en"}]
    drawings = re.findall(r"<svg.*?</svg>(?!</svg>)", page, re.S)
    assert drawings
    for drawing in re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', page, re.S):
        ElementTree.fromstring(drawing)


def test_ids_are_unique_and_links_within_lead_somewhere(made: tuple[dict[str, Any], str]) -> None:
    reader = Reader(made[1])
    ids = [found["id"] for _, found in reader.elements if "id" in found]
    assert len(set(ids)) == len(ids)
    for link in reader.of("a"):
        assert (link["href"] or "").startswith("#")
        assert (link["href"] or "")[1:] in ids
    for _, found in reader.elements:
        if "aria-labelledby" in found:
            assert found["aria-labelledby"] in ids


def test_the_policy_allows_this_script_and_this_style_alone(made: tuple[dict[str, Any], str]) -> None:
    _, page = made
    reader = Reader(page)
    policy = next(m["content"] or "" for m in reader.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "unsafe" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_nothing_is_asked_for_and_nothing_runs_but_the_script(made: tuple[dict[str, Any], str]) -> None:
    reader = Reader(made[1])
    assert {tag for tag, _ in reader.elements} & {"link", "iframe", "object", "embed", "base", "form", "use"} == set()
    for tag, found in reader.elements:
        assert not [name for name in found if name.startswith("on")], tag
        assert "style" not in found  # the policy would ignore it
        assert "xlink:href" not in found
        if "src" in found:
            assert tag == "img"
            assert (found["src"] or "").startswith("data:image/png;base64,")
    scripts = [found.get("type") for found in reader.of("script")]
    assert scripts == ["application/json", None]
    assert "@import" not in made[1]
    assert "url(" not in made[1]


def test_names_are_text_whatever_they_are() -> None:
    page = page_of(document(hostile=True))
    reader = Reader(page)
    assert "alert(1)" in page
    assert not [found for found in reader.of("img") if found.get("src") == "x"]
    assert clean(HOSTILE) in " ".join(reader.texts["th"] + reader.texts["span"] + reader.texts["dd"])
    page.encode("utf-8")
    assert "49" not in " ".join(reader.texts["h1"])  # {{7*7}} is no template


def test_embedded_numbers_are_the_documents(made: tuple[dict[str, Any], str]) -> None:
    found, page = made
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert not re.search(r"[<>&]", content)
    again = json.loads(content)
    assert [f["file_bytes"] for f in again["files"]] == [f["file_bytes"] for f in found["files"]]
    assert again["title"] == found["title"]
    assert "data:image" not in content  # pictures are in the page already


def test_what_is_not_finite_becomes_null() -> None:
    assert json.loads(embedded({"a": float("nan"), "b": [float("inf"), 1.5]})) == {"a": None, "b": [None, 1.5]}


def test_every_figure_has_a_sortable_table_and_downloads(made: tuple[dict[str, Any], str]) -> None:
    _, page = made
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert figures
    for figure in figures:
        assert "<figcaption>" in figure
        assert len(re.findall(r"<table>", figure)) == 1
        assert "<caption>" in figure
        assert 'data-form="csv"' in figure
        assert 'data-form="json"' in figure
        heads = re.findall(r'<th scope="col".*?</th>', figure, re.S)
        assert heads and all('<button type="button" class="sort"' in head for head in heads)
        for row in re.findall(r"<tr[ >].*?</tr>", figure.split("<tbody>")[1].split("</tbody>")[0], re.S):
            assert row.count("<td") + row.count("<th") == len(heads)


def test_all_parts_are_there() -> None:
    page = page_of(document())
    for anchor in ("files", "front-size", "front-time", "robustness", "corruptions", "lengths-0", "gap", "reliability"):
        assert f'<figure id="{anchor}"' in page
    for anchor in ("bytes", "layers", "masks", "kernels", "changed", "classes", "corruptions"):
        for letter in "abcdefg":
            assert f'<figure id="{anchor}-{letter}"' in page
    assert CLASSES[3] in page
    for tag in ("<header>", "<nav ", "<main ", "<footer>", "<h1>"):
        assert page.count(tag) == 1


def test_pages_without_a_dense_network_do_not_speak_of_one() -> None:
    said = ("The dashed line is the dense network", "The dense network is beside every file")
    whole = document(2, 3)
    assert all(text in page_of(whole) for text in said)
    alone = whole | {"files": [f for f in whole["files"] if not f["dense"]]}
    assert not any(text in page_of(alone) for text in said)


def test_a_ledger_alone_makes_a_page_without_empty_figures() -> None:
    page = page_of(bare())
    for anchor in ("front-size", "robustness", "gap", "lengths-0", "changed-a", "kernels-a"):
        assert f'<figure id="{anchor}"' not in page
    assert '<figure id="bytes-a"' in page


def test_ten_files_of_a_large_network_stay_small() -> None:
    large = document(files=10, layers=160)
    for file in large["files"]:
        for row in file["layers"][6:]:  # as many pictures as are made of ten files
            row["mask"] = None
    page = page_of(large)
    assert len(page.encode()) <= 1_500_000
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(script.encode()) <= 30_000


def test_large_pictures_and_many_classes_do_not_make_a_large_page() -> None:
    photos = document(files=10)
    noise = np.random.default_rng(0).integers(256, size=(48, 48, 3), dtype=np.uint8)
    uri = data_uri(png(noise))  # as large as a picture can be
    for file in photos["files"][1:]:
        row, shown = file["changed"]["rows"][0], {"image": {"height": 48, "width": 48, "uri": uri}}
        file["changed"]["rows"] = [{**row, "index": i} for i in range(12)]
        file["seen"] = {str(i): shown for i in range(12)}
        one = file["generalisation"]["per_class"][0]
        file["generalisation"]["per_class"] = [{**one, "class": i} for i in range(1000)]
    page = page_of(photos)
    assert len(page.encode()) <= 1_500_000
    assert page.count(uri) in (20, 60)  # as many of each file as there is room for
    assert all(file["seen"] for file in photos["files"][1:])  # the document itself is as it was


def test_whole_numbers_are_exact_however_large() -> None:
    assert numeric(123_456_789_012, "").key_text == "123456789012"
    assert numeric(-3, "").key_text == "-3"
    assert numeric(0.123456789, "").key_text == "0.1234568"
    assert numeric(1e300, "").key_text == "1e+300"


def test_no_name_turns_the_words_around_it() -> None:
    assert clean("evil\u202egnp.gsm\u2066") == "evil\ufffdgnp.gsm\ufffd"
    assert clean("\u05e9\u05dc\u05d5\u05dd") == "\u05e9\u05dc\u05d5\u05dd"  # what is written from right to left stays


def test_intervals_of_right_answers_stay_between_none_and_all() -> None:
    found = document(files=1)
    for file in found["files"]:
        file["accuracy"] |= {"value": 1.0, "correct": 20, "count": 20, "standard_error": 0.0}
    look = looks_of(found)[0][0]
    low, high = _interval(look) or (0.0, 0.0)
    assert (round(low, 4), high) == (0.8389, 1.0)


def test_the_same_document_gives_the_same_bytes() -> None:
    assert page_of(document()) == page_of(document())


def test_sentences_say_that_a_name_is_a_layers() -> None:
    found = document(files=1)
    kernels = found["files"][1]["kernels"]
    kernels[-1]["layer"] = "0"
    assert "of the time goes to layer “0”" in page_of(found)
    kernels[0]["milliseconds"] = None
    assert f"of the time of {len(kernels) - 1} timed layers goes to layer “0”" in page_of(found)
    for row in kernels[:-1]:
        row["milliseconds"] = None
    assert "of the time" not in page_of(found)  # of one time there is no share
    assert "of the bytes are in “features.0.weight”" in page_of(found)


def test_nothing_is_faster_or_slower_by_a_factor_of_one() -> None:
    found = document(files=1)
    for own, said in (
        (0.4, "as fast"),
        (0.385, "as fast"),
        (0.418, "as fast"),
        (0.2, "2.0× faster"),
        (0.8, "2.0× slower"),
    ):
        found["files"][1]["latency"] |= {"milliseconds": own, "dense_milliseconds": 0.4}
        looks, dense = looks_of(found)
        assert headline(looks[0], dense).endswith(said)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_and_in_dark() -> None:
    style = re.findall(r"<style>(.*?)</style>", page_of(bare()), re.S)[0]
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 3  # light, dark, print
    for block in blocks:
        named = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for ground in ("page", "surface"):
            for ink in ("ink", "muted", "accent", "two"):
                assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)
        assert contrast(named["on-accent"], named["accent"]) >= 4.5
        assert contrast(named["strong"], named["surface"]) >= 3
        red, green, blue = (named["dense"][i : i + 2] for i in (1, 3, 5))
        assert red == green == blue  # captions call the dense network grey
        assert min(contrast(named["dense"], named[ground]) for ground in ("page", "surface")) >= 3
    inks = {"dark": "#0e2238", "light": "#ffffff"}
    for shade, colour in re.findall(r"\.t([0-7x]) \{ fill: (#[0-9a-f]{6}); \}", style):
        ink = inks["light"] if shade in "4567" else inks["dark"]
        assert contrast(ink, colour) >= 4.5, (shade, colour)
