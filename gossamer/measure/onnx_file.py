"""A network as an ONNX file, written by a process of its own.

``python -m gossamer.measure.onnx_file SOURCE TARGET [SITE]`` is that process. PyTorch's exporter needs the package
onnx, which Gossamer does not; it may be borrowed from a peer's environment, where only that process sees it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["exported", "found_onnx"]

_OPSET = 14  # the newest that all peers read

Made = tuple[nn.Module, tuple[Any, ...]]


def found_onnx(peers: Path | None) -> Path | str | None:
    """Where the package onnx is.

    Args:
        peers: folder of environments, which is searched if onnx is not installed here.

    Returns:
        A folder of packages to borrow from, None if onnx is installed here, or text: it is nowhere.
    """
    if importlib.util.find_spec("onnx") is not None:
        return None
    sites = [] if peers is None else sorted((peers / "onnxruntime" / "lib").glob("python*/site-packages"))
    if sites and (sites[0] / "onnx").is_dir():
        return sites[0].absolute()
    return "no package onnx to export with, expected pip install 'gossamer[peers]' or an environment of ONNX Runtime"


def exported(make: Callable[[], Made], peers: Path | None, folder: Path) -> Path | str:
    """The network as ``network.onnx`` with its inputs in ``network.npz`` beside it, or why not.

    Args:
        make: returns the network in eval mode and its inputs; picklable, for it is called in another process. Sizes of
            the inputs are fixed in the file, which is what peers are fastest with.
        peers: folder of environments to borrow the package onnx from, or None.
        folder: where.
    """
    site = found_onnx(peers)
    if isinstance(site, str):
        return site
    source, target = folder / "network.pt", folder / "network.onnx"
    command = [sys.executable, "-W", "ignore", "-m", "gossamer.measure.onnx_file", str(source), str(target)]
    command += [] if site is None else [str(site)]
    try:
        torch.save(make, source)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except (AttributeError, TypeError, ValueError) as error:  # what pickle raises for local classes and functions
        return f"export failed: {' '.join(str(error).split())[:200]}"
    finally:
        source.unlink(missing_ok=True)
    if done.returncode:
        return "export failed: " + (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    return target


def write(network: nn.Module, inputs: tuple[Any, ...], target: Path) -> None:
    """Writes ``target`` and the inputs beside it."""
    feed = {f"x{i}": value.numpy() for i, value in enumerate(inputs) if isinstance(value, Tensor)}
    torch.onnx.export(
        network, inputs, str(target), dynamo=False, opset_version=_OPSET, input_names=list(feed), output_names=["y"]
    )
    np.savez(target.with_suffix(".npz"), **cast(dict[str, Any], feed))


def main(source: str, target: str, *sites: str) -> None:
    """Reads what to call, calls it, writes."""
    sys.path.extend(sites)  # behind this Python's own packages
    network, inputs = torch.load(source, weights_only=False)()  # written by `exported`, never by others
    write(network, inputs, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
