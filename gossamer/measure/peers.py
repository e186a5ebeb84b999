"""Other runtimes as processes that wait to be asked: each in an environment of its own, or in the current one."""

from __future__ import annotations

import enum
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from gossamer.errors import DataError

__all__ = ["Peer", "PeerKind", "peer_of", "python_of", "running"]


class PeerKind(enum.Enum):
    """What can be measured beside PyTorch and Gossamer."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    DEEPSPARSE = "deepsparse"
    OPENVINO_BF16 = "openvino_bf16"
    ONNXRUNTIME_INT8 = "onnxruntime_int8"

    @property
    def package(self) -> str:
        """The Python package, which is also the name of its environment."""
        return self.value.partition("_")[0]


def python_of(kind: PeerKind, peers: Path | None) -> Path:
    """The interpreter that has a peer.

    Args:
        kind: which.
        peers: folder of environments as `benchmarks/peers.sh` makes it; None for the current environment.

    Raises:
        DataError: it is not installed there.
    """
    if peers is None:
        if importlib.util.find_spec(kind.package) is None:
            raise DataError("not installed here, expected pip install 'gossamer[peers]' or a folder of environments")
        return Path(sys.executable)
    python = peers / kind.package / "bin" / "python"
    if not python.exists():
        raise DataError("not installed")
    return python.absolute()  # not resolved: a link into an environment is what makes it that environment's


@final
class Peer:
    """A process with a network loaded, waiting; it says how it is in one line of JSON, then answers numbers of runs.

    `version`, `weight_bytes` and `resident_bytes` are what it said itself, as the rest in `said`: "network" is what it
    grew by when it loaded the network and ran it, "runtime" when it loaded its library, "process" all of it.

    Args:
        command: that starts it.
        log: where its errors go.

    Raises:
        DataError: it does not start, with its reason.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.process_id = self._process.pid
        try:
            self.said: dict[str, Any] = self._answer()
            self.version = str(self.said["version"])
            self.weight_bytes = int(self.said["weight_bytes"])
            self.resident_bytes: dict[str, int] = self.said["resident_bytes"]
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> list[float]:
        """Milliseconds of so many runs."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise DataError(self._reason()) from error
        return [float(ms) for ms in self._answer()]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # peers may print greetings
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise DataError(self._reason())

    def _reason(self) -> str:
        said = self.log.read_text(errors="replace").strip().splitlines() or ["it ended without a reason"]
        return said[-1][:200]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def peer_of(kind: PeerKind, peers: Path | None, file: Path, threads: int) -> Peer:
    """A peer that runs an ONNX file.

    Args:
        kind: which.
        peers: folder of environments, or None for the current one.
        file: ONNX, the inputs beside it (`gossamer.measure.onnx_file.exported`).
        threads: of the peer.

    Raises:
        DataError: the peer does not start, with its reason.
    """
    worker = Path(__file__).parent / "peer_worker.py"
    command = [str(python_of(kind, peers)), str(worker), kind.value, str(file), str(threads)]
    return Peer(command, file.with_suffix(f".{kind.value}.log"))


@contextmanager
def running(
    kinds: Iterable[PeerKind], peers: Path | None, file: Path | str, threads: int
) -> Iterator[tuple[dict[PeerKind, Peer], dict[PeerKind, str]]]:
    """All peers that start, and why the others do not.

    Args:
        kinds: which.
        peers: folder of environments, or None for the current one.
        file: ONNX, or why there is none.
        threads: of each peer.
    """
    started: dict[PeerKind, Peer] = {}
    missing: dict[PeerKind, str] = {}
    try:
        for kind in kinds:
            try:
                if isinstance(file, str):
                    raise DataError(file)
                started[kind] = peer_of(kind, peers, file, threads)
            except DataError as error:
                missing[kind] = str(error)
        yield started, missing
    finally:
        for peer in started.values():
            peer.close()
