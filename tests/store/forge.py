"""Take a container apart, change what is in it, and seal it again with correct checksums."""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossamer.drive import run
from gossamer.encoding import Codebook, Dense, Encoding, Mask, Masked, TensorSpec
from gossamer.encoding.serial import KINDS
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels
from gossamer.network import specs
from gossamer.store.safetensors_file import header_bytes


@dataclass
class Parts:
    """What a container consists of; ``arrays`` are (name, dtype, shape, bytes) without the index.

    Nodes are [kind, {field: value}] here and refer to others by number; they are lists of values that say how far back
    again when they are sealed.
    """

    index: dict[str, Any]
    arrays: list[tuple[str, str, tuple[int, ...], bytes]]


def take_apart(data: bytes) -> Parts:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    body = data[8 + length :]
    arrays = []
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        arrays.append((name, entry["dtype"], tuple(entry["shape"]), body[start:stop]))
    packed = arrays.pop()
    assert packed[0] == "gsm.index"
    index = json.loads(zlib.decompress(packed[3], -15))
    names = [[f.name for f in dataclasses.fields(KINDS[kind])] for kind, _ in index["kinds"]]
    index["nodes"] = [
        [k, dict(zip(names[k], (turned(v, i) for v in values), strict=False))]
        for i, (k, *values) in enumerate(index["nodes"])
    ]
    return Parts(index, arrays)


def seal_text(parts: Parts, index_text: bytes, version: str = "1") -> bytes:
    """A container with this index, whatever it says, and sums that are right."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return seal_packed(parts, packer.compress(index_text) + packer.flush(), version)


def seal_packed(parts: Parts, packed: bytes, version: str = "1") -> bytes:
    arrays = {n: (d, s, len(b)) for n, d, s, b in parts.arrays}
    arrays["gsm.index"] = ("U8", (len(packed),), len(packed))
    text = f"{version} {zlib.crc32(packed):08x} "
    header = header_bytes(arrays, {"gossamer": text + "00000000"})
    total = f"{zlib.crc32(header):08x}"
    sealed = header.replace((text + "00000000").encode(), (text + total).encode())
    return sealed + b"".join(b for _, _, _, b in parts.arrays) + packed


def text_of(parts: Parts) -> bytes:
    index = dict(parts.index)
    if isinstance(index.get("nodes"), list):
        index["nodes"] = [_values(node, i) for i, node in enumerate(index["nodes"])]
    return json.dumps(index, separators=(",", ":")).encode()


def _values(node: Any, here: int) -> Any:
    named = isinstance(node, list) and len(node) == 2 and isinstance(node[1], dict)
    return [node[0], *(turned(v, here) for v in node[1].values())] if named else node


def turned(value: Any, here: int) -> Any:
    """Numbers of nodes as distances back, or the reverse."""
    if isinstance(value, dict) and type(value.get("n")) is int:
        return {**value, "n": here - value["n"]}
    return [turned(v, here) for v in value] if isinstance(value, list) else value


def seal(parts: Parts) -> bytes:
    return seal_text(parts, text_of(parts))


def reseal_arrays(parts: Parts) -> None:
    """Make the sums in the index those of the arrays."""
    sums = {n: zlib.crc32(b) for n, _, _, b in parts.arrays}
    for entry in parts.index["arrays"]:
        entry[1] = sums[entry[0]]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def convnet() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU()),
        nn.Linear(10, 4),
    ).eval()


def pruned_and_shared() -> tuple[tuple[TensorSpec, ...], dict[str, Encoding]]:
    recipe = [Magnitude(sparsity=0.8), KMeans(bits=3), RoundToNearest(bits=8, group="tensor", only="*.bias")]
    state = run(mlp(), recipe)
    return state.specs, state.trees


def sparse_and_shared() -> tuple[tuple[TensorSpec, ...], dict[str, Encoding]]:
    """One centroid much more frequent than the other: the mask is told by its symbols."""
    random = torch.Generator().manual_seed(0)
    where = Mask.of(torch.rand(40, 25, generator=random) < 0.2)
    live = where.positions().numel()
    index = (torch.rand(live, generator=random) < 0.1).to(torch.uint8)
    value = Codebook(1000, 1000, index, Dense(torch.tensor([[0.5, -1.0]])))
    return specs(nn.Linear(25, 40, bias=False)), {"weight": Masked(where, value)}


def shrunk_and_factorized() -> tuple[tuple[TensorSpec, ...], dict[str, Encoding]]:
    recipe = [Channels(sparsity=0.3), SVD(rank=2, only="4.weight"), Magnitude(sparsity=0.5, only="4.weight")]
    state = run(convnet(), recipe)
    return state.specs, state.trees


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
