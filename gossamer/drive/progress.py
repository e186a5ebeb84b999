"""Progress with an estimated time of arrival, shown once something has taken two seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, final

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NoProgress", "Progress", "TerminalProgress"]


class Progress(Protocol):
    """Where drivers say how far they are."""

    def update(self, text: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of the stage ``text`` are finished."""


@final
class NoProgress:
    """Says nothing."""

    def update(self, text: str, done: int, total: int) -> None:
        """Nothing."""


@final
class TerminalProgress:
    """A rich progress bar on standard error, after two seconds, only on a terminal."""

    def __init__(self, *, enabled: bool | None = None, after_seconds: float = 2.0) -> None:
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._after = after_seconds
        self._start = time.monotonic()
        self._bar: object | None = None
        self._task: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def update(self, text: str, done: int, total: int) -> None:
        """Show or move the bar."""
        if not self._enabled or time.monotonic() - self._start < self._after:
            return
        from rich import progress

        if not isinstance(self._bar, progress.Progress):
            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=_error_console(), transient=True)
            self._bar.start()
        if self._task is None or self._task[0] != text:
            if self._task is not None:
                self._bar.remove_task(progress.TaskID(self._task[1]))
            self._task = (text, self._bar.add_task(text, total=total))
        self._bar.update(progress.TaskID(self._task[1]), completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from rich import progress

        if isinstance(self._bar, progress.Progress):
            self._bar.stop()


def _error_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
