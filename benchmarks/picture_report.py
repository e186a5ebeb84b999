"""``docs/report.png``: parts of a report's page, as the README shows it.

``python -m benchmarks.picture_report PAGE.html [PICTURE.png]``. The page is such as ``gossamer demo`` ends with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.chromium import Chromium, Tab, found_chromium

ROOT = Path(__file__).parent.parent
_WIDTH, _GAP = 1180, 16
_SHOWN = ("#files", "#front-size|#front-time", ".panel:not([hidden]) [id^=masks]", ".panel:not([hidden]) [id^=changed]")
_MOST = 200_000


def pictured(page: Path, picture: Path, width: int = 960) -> int:
    """Photograph the head of a page and some of its figures, one below the other.

    Args:
        page: HTML.
        picture: PNG to write.
        width: of it.

    Returns:
        Bytes written.
    """
    program = found_chromium()
    if program is None:
        raise SystemExit("found no Chromium, expected one to photograph the page with")
    with Chromium(program) as browser, tempfile.TemporaryDirectory() as folder:
        tab = browser.tab(width=_WIDTH, height=900)
        tab.open(page)
        boxes = [_box(tab, ("header",)), *(box for names in _SHOWN if (box := _box(tab, names.split("|"))) is not None)]
        shots = []
        for i, box in enumerate(box for box in boxes if box is not None):
            file = Path(folder) / f"{i}.png"
            tab.photograph(file, clip=box)
            shots.append(Image.open(file).convert("RGB").copy())
    shots = [_on_white(shot) for shot in shots]
    whole = Image.new("RGB", (_WIDTH, sum(s.height + _GAP for s in shots) + _GAP), "white")
    at = 0
    for shot in shots:
        whole.paste(shot, (0, at))
        at += shot.height + _GAP
    small = whole.resize((width, round(whole.height * width / _WIDTH)), Image.Resampling.LANCZOS)
    for colours in (256, 160, 96, 48):  # the few colours of the page must be among them, not their means
        small.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(picture, optimize=True)
        if picture.stat().st_size <= _MOST:
            break
    return picture.stat().st_size


def _on_white(shot: Image.Image) -> Image.Image:
    """The page's ground, a warm white that few colours would not hold, as white."""
    pixels = np.asarray(shot).copy()
    pixels[(pixels == pixels[0, 0]).all(-1)] = 255
    return Image.fromarray(pixels)


def _box(tab: Tab, names: tuple[str, ...] | list[str]) -> tuple[float, float, float, float] | None:
    """Across the page, as high as elements are together."""
    ask = "(() => {{ const e = document.querySelector({!r}); if (!e) return null;" + (
        " const b = e.getBoundingClientRect(); return [b.top + scrollY, b.bottom + scrollY]; }})()"
    )
    found = [tab.ask(ask.format(name)) for name in names]
    edges = [edge for edge in found if edge is not None]
    if not edges:
        return None
    top, bottom = min(e[0] for e in edges), max(e[1] for e in edges)
    return 0.0, float(top) - 2, float(_WIDTH), float(bottom - top) + 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path, nargs="?", default=ROOT / "docs" / "report.png")
    asked = parser.parse_args()
    print(f"{asked.picture.name}: {pictured(asked.page, asked.picture):,} bytes")


if __name__ == "__main__":
    main()
