"""Headless Chromium over its debugging pipe: open a page, ask it things, press keys, photograph it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

__all__ = ["Chromium", "Tab", "found_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--remote-debugging-pipe",
)

# The browser reads descriptor 3 and writes descriptor 4.
_LAUNCHER = """
import os, sys
for _ in range(4):
    os.dup(0)  # 3 and 4 are taken from now on, so that no copy lands there
there, back = (os.dup(int(number)) for number in sys.argv[1:3])
os.dup2(there, 3); os.dup2(back, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def found_chromium() -> str | None:
    """Where it is, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@final
class Chromium:
    """A browser process with a profile of its own, both gone at the end.

    Args:
        path: of the program.
        patience: seconds for any answer.
    """

    def __init__(self, path: str, patience: float = 60.0) -> None:
        self._path, self._patience = path, patience
        self._number = 0
        self._held = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="gossamer-chromium-", ignore_cleanup_errors=True)
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        command = [self._path, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(there), str(back), *command],
            pass_fds=(there, back),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": self._profile.name},
        )
        os.close(there)
        os.close(back)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: only what it started
        self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that arrive meanwhile are kept.

        Raises:
            RuntimeError: the browser refuses, or does not answer.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._out, content) :]
        for found in self._messages():
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error'].get('message')}")
                result: dict[str, Any] = found["result"]
                return result
        raise RuntimeError(f"{method}: no answer")

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The first event of a kind, kept or to come."""
        for event in self.events:
            if event["method"] == method and event.get("sessionId") == session:
                return event
        for found in self._messages():
            if found.get("method") == method and found.get("sessionId") == session:
                return found
        raise RuntimeError(f"{method}: did not happen")

    def _messages(self) -> Iterator[dict[str, Any]]:
        until = time.monotonic() + self._patience
        while True:
            while b"\0" in self._held:
                one, _, self._held = self._held.partition(b"\0")
                found: dict[str, Any] = json.loads(one)
                if "method" in found:
                    self.events.append(found)
                yield found
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                return
            more = os.read(self._in, 1 << 20)
            if not more:
                return
            self._held += more

    def tab(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> Tab:
        """A new tab that reports errors and requests."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        return tab


@final
class Tab:
    """One page.

    Args:
        browser: that it lies in.
        session: its number there.
    """

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, file: Path) -> float:
        """Open a local file; seconds until it is loaded and was drawn."""
        start = time.perf_counter()
        self.call("Page.navigate", url=file.resolve().as_uri())
        self._browser.wait("Page.loadEventFired", self._session)
        drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        self.ask(drawn)
        return time.perf_counter() - start

    def ask(self, expression: str) -> Any:
        """What an expression comes to; promises are awaited.

        Raises:
            RuntimeError: it throws.
        """
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:400])
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, as from a keyboard."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        named = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def errors(self) -> list[str]:
        """Exceptions, console errors and entries of the browser's own log, policy violations among them."""
        found = []
        for event in self._mine():
            about = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"].get("text")))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(str(about["entry"]["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, except what lies in the page itself."""
        asked = [e["params"]["request"]["url"] for e in self._mine() if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "about:", "blob:"))]

    def photograph(self, path: Path, *, clip: tuple[float, float, float, float] | None = None) -> None:
        """Write a PNG of the whole page, or of (x, y, width, height)."""
        more: dict[str, Any] = {}
        if clip is not None:
            more["clip"] = dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1}
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def _mine(self) -> list[dict[str, Any]]:
        return [event for event in self._browser.events if event.get("sessionId") == self._session]
