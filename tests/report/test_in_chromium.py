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


def opened(browser: Chromium, folder: Path, page: str, *, phone: bool = False) -> Tab:
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.tab(width=390 if phone else 1280, phone=phone)
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
