"""Other runtimes as processes that wait to be asked: each in an environment of its own, or in the current one."""

from __future__ import annotations

import enum
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from gossamer.errors import DataError

__all__ = ["Peer", "PeerKind", "python_of", "running"]


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
    """One peer with the network loaded, waiting.

    Args:
        kind: which.
        peers: folder of environments, or None for the current one.
        file: ONNX, the inputs beside it (`gossamer.measure.onnx_file.exported`).
        threads: of the peer.

    `version`, `weight_bytes` (of the file that it runs) and `resident_bytes` are what it said itself: "network" is what
    its process grew by when it loaded the network and ran it, "runtime" when it loaded its library, "process" all.

    Raises:
        DataError: the peer does not start, with its reason.
    """

    def __init__(self, kind: PeerKind, peers: Path | None, file: Path, threads: int) -> None:
        python = python_of(kind, peers)
        worker = Path(__file__).parent / "peer_worker.py"
        self.log = file.with_suffix(f".{kind.value}.log")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(worker), kind.value, str(file), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.process_id = self._process.pid
        try:
            ready = self._answer()
            self.version = str(ready["version"])
            self.weight_bytes = int(ready["weight_bytes"])
            self.resident_bytes: dict[str, int] = ready["resident_bytes"]
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
                started[kind] = Peer(kind, peers, file, threads)
            except DataError as error:
                missing[kind] = str(error)
        yield started, missing
    finally:
        for peer in started.values():
            peer.close()
