"""The report's page in headless Chromium: bytes, seconds until it is drawn, errors, charts, sorting, downloads.

``python -m benchmarks.understand_page FILE.html …`` measures pages that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.chromium import Chromium, Tab, found_chromium

__all__ = ["measured_page"]

_DRAWN = """(() => {
  const inputs = [...document.querySelectorAll(".choice input")];
  let drawn = 0, charts = 0, pictures = 0, broken = 0;
  const seen = new Set();
  const look = () => {
    for (const svg of document.querySelectorAll("svg.chart, svg.map, svg.strip")) {
      const box = svg.getBoundingClientRect();
      if (seen.has(svg) || svg.closest("[hidden]") || svg.closest("details:not([open])")) continue;
      seen.add(svg); charts += 1;
      if (box.width > 8 && box.height > 8 && svg.querySelector("path, rect, circle, line")) drawn += 1;
    }
    for (const image of document.querySelectorAll("img")) {
      if (seen.has(image) || image.closest("[hidden]")) continue;
      seen.add(image); pictures += 1;
    }
  };
  look();
  for (const input of inputs) { input.click(); look(); }
  return Promise.all([...document.images].map(i => i.decode().catch(() => { broken += 1; })))
    .then(() => ({ charts, drawn, pictures, broken }));
})()"""

_KEYS = """(() => {
  const table = [...document.querySelectorAll("figure > .scroll table, figure > details table")]
    .find(t => t.tBodies[0].rows.length > 1 && t.querySelector("button[data-kind=number]"));
  table.closest("details")?.setAttribute("open", "");
  const head = table.querySelector("button[data-kind=number]").closest("th");
  const column = head.cellIndex;
  window.sorted = () => ({
    sort: head.getAttribute("aria-sort"),
    keys: [...table.tBodies[0].rows].map(r => r.cells[column].dataset.k ?? r.cells[column].textContent),
  });
  head.querySelector("button").focus();
  return document.activeElement === head.querySelector("button");
})()"""


def measured_page(file: Path, *, times: int = 3) -> dict[str, Any]:
    """The same of a page that is there.

    Returns:
        "bytes"; "seconds" until loaded and drawn (middle, and all as "every_second"); "console_errors"; "requests" to
        anywhere; "charts" and how many were "drawn"; "pictures" and how many are "broken"; "sort_works" by keyboard;
        "downloads" that came to the disk; "sideways": pixels that a phone has to scroll. {"missing": why} without a
        browser.
    """
    program = found_chromium()
    if program is None:
        return {"missing": "no Chromium found"}
    found: dict[str, Any] = {"bytes": file.stat().st_size}
    seconds = []
    for i in range(times):
        with Chromium(program) as browser:
            tab = browser.tab()
            seconds.append(round(tab.open(file), 3))
            if i == 0:
                found |= _looked_at(browser, tab)
                phone = browser.tab(width=390, height=844, phone=True)
                phone.open(file)
                found["sideways"] = phone.ask("document.documentElement.scrollWidth - innerWidth")
                found["console_errors"] += phone.errors()
    return {**found, "seconds": statistics.median(seconds), "every_second": seconds}


def _looked_at(browser: Chromium, tab: Tab) -> dict[str, Any]:
    found: dict[str, Any] = dict(tab.ask(_DRAWN))
    found["sort_works"] = sort_works(tab)
    found["downloads"] = _downloads(browser, tab)
    found["console_errors"] = tab.errors()
    found["requests"] = [url for url in tab.requests() if not url.startswith("file:")]
    return found


def sort_works(tab: Tab) -> bool:
    """Whether Enter on a head sorts up, then down, then back, and says so."""
    if not tab.ask(_KEYS):
        return False
    before = tab.ask("sorted()")["keys"]
    numbers = sorted(float(key) for key in before if key)
    states = []
    for _ in range(3):
        tab.press("Enter", 13)
        states.append(tab.ask("sorted()"))
    up, down, back = ([float(key) for key in state["keys"] if key] for state in states)
    said = [state["sort"] for state in states] == ["ascending", "descending", None]
    return said and up == numbers and down == numbers[::-1] and states[2]["keys"] == before and bool(back)


def _downloads(browser: Chromium, tab: Tab) -> list[str]:
    """Names of files that the buttons of the first figure, and the one at the end, leave."""
    with tempfile.TemporaryDirectory() as folder:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        for button in ("button.save[data-form=csv]", "button.save[data-form=json]", "#all"):
            tab.ask(f"document.querySelector({json.dumps(button)}).click()")
            until = time.monotonic() + 5
            have = len(_whole(folder))
            while len(_whole(folder)) <= have and time.monotonic() < until:
                time.sleep(0.05)
        return sorted(path.name for path in _whole(folder))


def _whole(folder: str) -> list[Path]:
    return [p for p in Path(folder).iterdir() if p.suffix in (".csv", ".json") and p.stat().st_size > 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    for page in parser.parse_args().pages:
        print(json.dumps({"page": page.name, **measured_page(page)}))


if __name__ == "__main__":
    main()
