"""Peers of `benchmarks.runtime` as processes that wait to be asked, and the ONNX file that all of them run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["KINDS", "Peer", "exported", "running"]

KINDS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "deepsparse": "deepsparse",
    "openvino_bf16": "openvino",
    "onnxruntime_int8": "onnxruntime",
}
"""What is measured → the environment that it runs in."""

_EXPORT = """
import sys, torch
sys.path.append({site!r})  # behind this Python's own packages
sys.path.insert(0, {root!r})
program, x = torch.load({source!r}, weights_only=False)
torch.onnx.export(program, (x,), {target!r}, dynamo=False, opset_version=14, input_names=["x"], output_names=["y"])
"""


def exported(network: nn.Module, x: Tensor, peers: Path, folder: Path) -> Path | str:
    """The network as an ONNX file with its input beside it, or why not.

    torch's exporter needs the package onnx, which is borrowed from the environment of ONNX Runtime.
    """
    sites = sorted((peers / "onnxruntime" / "lib").glob("python*/site-packages"))
    if not sites or not (sites[0] / "onnx").is_dir():
        return "no environment of ONNX Runtime to export with"
    source, target = folder / "network.pt", folder / "network.onnx"
    torch.save((network, x), source)
    root = str(Path(__file__).parent.parent)
    script = _EXPORT.format(site=str(sites[0]), root=root, source=str(source), target=str(target))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False, capture_output=True, text=True)
    source.unlink()
    if done.returncode:
        return "export failed: " + (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    np.save(target.with_suffix(".npy"), x.numpy())
    return target


class Peer:
    """One peer with the network loaded, waiting.

    Args:
        kind: one of `KINDS`.
        peers: folder of environments.
        file: ONNX.
        threads: of the peer.

    Raises:
        RuntimeError: the peer does not start, with its reason.
    """

    def __init__(self, kind: str, peers: Path, file: Path, threads: int) -> None:
        python = peers / KINDS[kind] / "bin" / "python"
        if not python.exists():
            raise RuntimeError("not installed")
        worker = Path(__file__).parent / "runtime_worker.py"
        self.log = file.with_suffix(f".{kind}.log")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python.absolute()), str(worker), kind, str(file), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.process_id = self._process.pid
        try:
            self.version = str(self._answer()["version"])
        except RuntimeError:
            self.close()
            raise

    def run(self, count: int) -> list[float]:
        """Milliseconds of so many runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return [float(ms) for ms in self._answer()]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # peers may print greetings
            if line.startswith(("{", "[")):
                return json.loads(line)
        reason = self.log.read_text(errors="replace").strip().splitlines() or ["it ended without a reason"]
        raise RuntimeError(reason[-1][:200])

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
def running(peers: Path | None, file: Path | str, threads: int) -> Iterator[tuple[dict[str, Peer], dict[str, str]]]:
    """All peers that start, and why the others do not."""
    started: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    try:
        for kind in KINDS:
            if peers is None or isinstance(file, str):
                missing[kind] = "no folder of peers given" if peers is None else str(file)
                continue
            try:
                started[kind] = Peer(kind, peers, file, threads)
            except RuntimeError as error:
                missing[kind] = str(error)
        yield started, missing
    finally:
        for peer in started.values():
            peer.close()
