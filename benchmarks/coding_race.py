"""Other coders beside our own in one run, on one core, in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, final

from gossamer.errors import DataError

__all__ = ["CodingPeer", "in_turns"]


@final
class CodingPeer:
    """A process in the peers' environment that does what it is asked.

    Args:
        peers: folder of environments.
        folder: where arrays are exchanged.
    """

    def __init__(self, peers: Path, folder: Path) -> None:
        python = peers / "coding" / "bin" / "python"
        if not python.exists():
            raise DataError(f"{python}: found nothing, expected what benchmarks/peers.sh installs")
        script = Path(__file__).parent / "coding_peer.py"
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "peer.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python.absolute()), str(script), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=quiet,
            )

    def ask(self, **what: Any) -> dict[str, Any]:
        """The answer.

        Raises:
            DataError: the peer cannot.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in found:
            raise DataError(f"{what.get('coder', what['do'])}: {found['error']}")
        return found

    def __enter__(self) -> CodingPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def in_turns(
    runners: dict[str, Callable[[], dict[str, Any]]], repeats: int, *, warm: bool = True
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each runner so many times, in turns, if `warm` after one run that does not count.

    Returns:
        (name → bytes, medians of "encode_s" and "decode_s", and their spread, (largest − least) / median; name → why
        it could not run).
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runners}
    failed: dict[str, str] = {}
    for turn in range(0 if warm else 1, repeats + 1):
        for name, run in runners.items():
            if name in failed:
                continue
            try:
                once = run()
            except DataError as error:
                failed[name] = str(error)
                continue
            if turn:
                found[name].append(once)
    rows = {}
    for name, runs in found.items():
        if not runs:
            continue
        rows[name] = {"bytes": runs[0]["bytes"]}
        for what in ("encode_s", "decode_s"):
            times = [run[what] for run in runs]
            middle = statistics.median(times)
            rows[name] |= {what: middle, f"{what[:-2]}_spread": round((max(times) - min(times)) / middle, 3)}
    return rows, failed
