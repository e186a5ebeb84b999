"""Weights from disk: safetensors and weights-only files, never code; what does not fit the network is named."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contract.test_every_encoding import same_bits
from torch import nn

from gossamer.errors import DataError, FormatError
from gossamer.network import tensors
from gossamer.store.safetensors_file import write_safetensors
from gossamer.store.weights import load_weights_into, read_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def saved(tmp_path: Path, kind: str, state: dict[str, torch.Tensor] | None = None) -> Path:
    torch.manual_seed(0)
    path = tmp_path / f"w.{kind}"
    state = tensors(network()) if state is None else state
    if kind == "safetensors":
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "bin"])
def test_weights_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = tensors(network())
    path = saved(tmp_path, kind)
    found = read_weights(path)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[n], t) for n, t in expected.items())
    loaded = load_weights_into(network(), path)
    assert all(same_bits(t, expected[n]) for n, t in tensors(loaded).items())


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(as_zip: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "ran"
    if as_zip:
        torch.save({"w": Malicious(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": Malicious(marker)}))
    with pytest.raises(FormatError, match=r"evil\.pt"):
        read_weights(path)
    assert not marker.exists()


def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    for i, content in enumerate(({"epoch": 3}, [torch.zeros(2)], torch.zeros(2), {"a": {"b": torch.zeros(1)}})):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        with pytest.raises(FormatError, match="state_dict"):
            read_weights(path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, kind)
    size = path.stat().st_size
    for length in reversed(range(0, size, 1 if kind == "safetensors" else 5)):
        os.truncate(path, length)
        with pytest.raises(FormatError, match=path.name):
            read_weights(path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_flipped_bits_are_refused_or_read_but_nothing_else(kind: str, tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path, kind).read_bytes())
    path = tmp_path / f"flipped.{kind}"
    random.seed(0)
    refused = 0
    for place in random.sample(range(len(data) * 8), 400):
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert all(isinstance(t, torch.Tensor) for t in read_weights(path).values())
        except FormatError as error:
            assert "\n" not in str(error)
            refused += 1
        data[place // 8] ^= 1 << place % 8
    assert refused


def test_forged_headers_are_refused_without_allocating(tmp_path: Path) -> None:
    headers = [
        '{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[0,99999999999999,99999999999999],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"code":"x"}}',
        '{"w":[]}',
        "[]",
        '{"__metadata__":{"a":1},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":7}',
    ]
    for header in headers:
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
        with pytest.raises(FormatError, match=r"a\.safetensors"):
            read_weights(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="header of"):
        read_weights(path)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = tensors(network())
    without = {n: t for n, t in state.items() if n != "0.bias"}
    for change, message in (
        (without, r"found no tensor '0\.bias', expected shape \(3,\)"),
        ({**state, "2.weight": torch.zeros(1)}, r"found tensor '2\.weight'"),
        ({**state, "0.weight": torch.zeros(4, 3)}, r"'0\.weight': found shape \(4, 3\), expected \(3, 4\)"),
    ):
        path = saved(tmp_path, "safetensors", change)
        with pytest.raises(DataError, match=rf"w\.safetensors.*{message}"):
            load_weights_into(network(), path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pt: found no such file"):
        read_weights(tmp_path / "none.pt")


def test_a_tied_tensor_may_be_there_once_under_either_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    net[1].weight = net[0].weight
    for name in ("0.weight", "1.weight"):
        write_safetensors(tmp_path / "w.safetensors", {name: torch.full((5, 3), 2.0)})
        load_weights_into(net, tmp_path / "w.safetensors")
        assert net[0].weight is net[1].weight
        assert bool((net[0].weight == 2).all())


def test_the_dtype_of_the_file_becomes_that_of_the_network(tmp_path: Path) -> None:
    state = {n: t.half() if t.is_floating_point() else t for n, t in tensors(network()).items()}
    net = load_weights_into(network(), saved(tmp_path, "safetensors", state))
    assert {n: t.dtype for n, t in tensors(net).items()} == {n: t.dtype for n, t in state.items()}


def test_a_stream_of_noise_is_refused(tmp_path: Path) -> None:
    random.seed(3)
    for kind in ("pt", "safetensors"):
        path = tmp_path / f"noise.{kind}"
        path.write_bytes(io.BytesIO(random.randbytes(5000)).getvalue())
        with pytest.raises(FormatError):
            read_weights(path)
