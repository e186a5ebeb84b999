"""The page in a browser: no errors, no requests, charts drawn, tables sorted by keyboard, one file at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import bare, document

from benchmarks.chromium import Chromium, Tab, found_chromium
from benchmarks.understand_page import measured_page
from gossamer.report.page import page_of

pytestmark = pytest.mark.skipif(found_chromium() is None, reason="no Chromium found")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium(found_chromium() or "") as found:
        yield found


SHOWN = "[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().width)"
# Of all letters in drawings: pixels on the screen, and how far they reach beyond their tile or drawing.
LETTERS = f"""{SHOWN}.map(t => {{
  const svg = t.ownerSVGElement, tile = svg.parentElement.closest("svg") ? svg.querySelector("rect") : svg;
  const [a, b] = [t, tile].map(e => e.getBoundingClientRect());
  const beyond = Math.max(b.left - a.left, a.right - b.right, b.top - a.top, a.bottom - b.bottom);
  return [t.textContent, parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a, beyond];
}})"""
# Pairs of texts of a drawing that cover each other by more than their rims.
COVERED = f"""(() => {{
  const texts = {SHOWN}.map(t => [t, t.closest("svg.chart"), t.getBoundingClientRect()]);
  const meet = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4;
  return texts.flatMap(([t, chart, box], i) => texts.slice(i + 1)
    .filter(([u, other, rest]) => chart && chart === other && meet(box, rest))
    .map(([u]) => t.textContent + " / " + u.textContent));
}})()"""
DENSE = """[...document.querySelectorAll(
  "tr.is-dense .dot, tr.is-dense .whisker, tr.is-dense .gap, .small.is-dense .dot, .small.is-dense .here, " +
  "g.is-dense .dot, g.is-dense .dot-hollow, .gap.is-dense, .dense-line, .dense-tick"
)].map(e => getComputedStyle(e)).map(style =>
  (style.fill !== "none" && style.stroke === "none" ? style.fill : style.stroke) + style.opacity * style.fillOpacity)"""


def opened(
    browser: Chromium, folder: Path, page: str, *, width: int = 1280, dark: bool = False, phone: bool = False
) -> Tab:
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.tab(width=390 if phone else width, dark=dark, phone=phone)
    tab.open(file)
    return tab


def test_hostile_names_raise_no_alarm_and_everything_works(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(document(hostile=True)), encoding="utf-8")
    found = measured_page(file, times=1)
    assert found["console_errors"] == []
    assert found["requests"] == []
    assert found["drawn"] == found["charts"] > 100
    assert found["broken"] == 0
    assert found["sort_works"]
    assert found["downloads"] == ["files.csv", "files.json", "report.json"]
    assert found["sideways"] <= 0


def test_one_file_is_shown_at_a_time_and_letters_lead_to_theirs(browser: Chromium, tmp_path: Path) -> None:
    tab = opened(browser, tmp_path, page_of(document()))
    shown = "[...document.querySelectorAll('.panel')].filter(p => !p.hidden).map(p => p.dataset.letter).join()"
    first = tab.ask("document.querySelector('.choice').dataset.first")
    assert tab.ask(shown) == first
    tab.ask("document.querySelector('.choice input:checked').focus()")
    tab.press("ArrowRight", 39)
    after = tab.ask(shown)
    assert after != first
    tab.ask("document.querySelector('#files a.badge').click()")
    assert tab.ask("new Promise(done => setTimeout(() => done(" + shown + "), 100))") == "A"
    assert tab.errors() == []


def test_without_the_script_all_files_are_shown(browser: Chromium, tmp_path: Path) -> None:
    page = page_of(document())
    broken = page.replace("document.documentElement.dataset.ready", "document.documentElement.dataset.changed")
    tab = opened(browser, tmp_path, broken)  # its sum is not the policy's: it must not run
    assert tab.ask("document.documentElement.dataset.changed ?? ''") == ""
    assert tab.ask("[...document.querySelectorAll('.panel')].every(p => !p.hidden)")
    assert any("Content Security Policy" in error for error in tab.errors())


def test_the_policy_stops_what_a_name_might_smuggle_in(browser: Chromium, tmp_path: Path) -> None:
    smuggled = "<script>document.title='run'</script><img src=http://127.0.0.1:9/x.png onerror=document.title='run'>"
    tab = opened(browser, tmp_path, page_of(bare()).replace("</main>", smuggled + "</main>"))
    assert tab.ask("new Promise(done => setTimeout(() => done(document.title), 200))") != "run"
    assert len(tab.errors()) >= 2


def test_a_phone_does_not_scroll_sideways(browser: Chromium, tmp_path: Path) -> None:
    tab = opened(browser, tmp_path, page_of(document()), phone=True)
    assert tab.ask("document.documentElement.scrollWidth") <= 390
    assert tab.errors() == []


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_letters_in_drawings_are_large_enough_and_stay_within(
    browser: Chromium, tmp_path: Path, width: int, hostile: bool
) -> None:
    made = document(hostile=hostile)
    for file in made["files"]:
        for row, name in zip(
            file["layers"], ("0.weight", "0.bias", "encoder.layer.3.attention.query.weight"), strict=False
        ):
            row["name"] = name
    tab = opened(browser, tmp_path, page_of(made), width=width, phone=width == 390)
    for i in range(7):
        tab.ask(f"document.querySelectorAll('.choice input')[{i}].click()")
        letters = tab.ask(LETTERS)
        assert len(letters) > 200
        assert [row for row in letters if row[1] < 11] == []
        assert [row for row in letters if row[2] > 1] == []
        covered = [pair for pair in tab.ask(COVERED) if len(pair) > len("A / B")]  # letters of files that are alike
        assert covered == []


def test_a_label_of_the_treemap_is_shown_once(browser: Chromium, tmp_path: Path) -> None:
    for width in (390, 800, 1280):
        tab = opened(browser, tmp_path, page_of(document(files=1)), width=width, phone=width == 390)
        of = "[...document.querySelectorAll('.map > svg')].map(s => [...s.querySelectorAll('text')]"
        counts = tab.ask(f"{of}.filter(t => t.getBoundingClientRect().width).length)")
        assert max(counts) == 2  # a name and a size
        assert counts[0] == 2


@pytest.mark.parametrize("dark", [False, True])
def test_the_dense_network_has_one_grey(browser: Chromium, tmp_path: Path, dark: bool) -> None:
    tab = opened(browser, tmp_path, page_of(document()), dark=dark)
    colours = tab.ask(DENSE)
    assert len(colours) > 100
    assert len(set(colours)) == 1
    grey = tab.ask("getComputedStyle(document.documentElement).getPropertyValue('--dense')").strip()
    assert colours[0] == f"rgb({', '.join(str(int(grey[i : i + 2], 16)) for i in (1, 3, 5))})1"  # opaque
