"""Exact differences to a reference checkpoint: every bit comes back, and only where it pays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import gossamer as gs
from gossamer.encoding import Delta, External
from gossamer.encoding.delta import difference
from gossamer.errors import CompositionError, DataError, FormatError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 4, 3)
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, 300)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.rnn(self.up(x).transpose(1, 2))[0][:, -1]))
        return out


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base, tuned = Net().eval(), Net().eval()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(1 + 1e-5 * torch.randn_like(p))
    return base, tuned


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.reshape(-1).tolist() == b.reshape(-1).tolist()


@given(st.sampled_from(DTYPES + INTEGERS), st.binary(min_size=0, max_size=64), st.binary(min_size=64, max_size=64))
def test_any_bit_pattern_comes_back(dtype: torch.dtype, a: bytes, b: bytes) -> None:
    count = len(a) // dtype.itemsize
    clean = (lambda raw: bytes(x & 1 for x in raw)) if dtype == torch.bool else bytes
    x, y = (
        torch.tensor(list(clean(raw[: count * dtype.itemsize])), dtype=torch.uint8).view(dtype)
        if count
        else torch.zeros(0, dtype=dtype)
        for raw in (a, b)
    )
    back = difference(x, External.of("w", y)).to_dense()
    assert back.dtype == dtype
    if count:
        assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


def test_neighbouring_floats_differ_by_one_step_also_across_zero() -> None:
    tiny = torch.tensor([0.0, -0.0, 1.0, -1.0])
    up = torch.tensor([1e-45, 0.0, 1.0000001, -0.99999994])
    assert difference(up, External.of("w", tiny)).residual.tolist() == [2, 2, 2, 2]


def test_a_fine_tune_is_stored_beside_its_base_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base, tuned = pair()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    lossless = gs.compress(tuned, [])
    small = gs.compress(tuned, [gs.code.Delta(reference=str(tmp_path / "base.safetensors"))])
    assert small.save(tmp_path / "d.gsm") < 0.6 * lossless.save(tmp_path / "l.gsm")
    again = gs.load(tmp_path / "d.gsm", into=Net, reference=tmp_path / "base.safetensors")
    for name, tensor in again.state_dict().items():
        assert same(tensor, tuned.state_dict()[name]), name
    x = torch.randn(2, 2, 6)
    assert torch.equal(again.dense()(x), tuned(x))


def test_equal_tensors_cost_nearly_nothing() -> None:
    base, _ = pair()
    ledger = gs.compress(base, [gs.code.Delta(reference=base.state_dict())]).ledger()
    assert sum(t.file_bytes for t in ledger.tensors) < 300
    assert any("reference" in free for free in ledger.free)


def test_tensors_without_a_near_relative_stay_as_they_are() -> None:
    base, tuned = pair()
    reference: dict[str, Any] = dict(base.state_dict())
    reference["fc.weight"] = torch.randn(300, 5)
    reference["fc.bias"] = reference["fc.bias"].half()
    del reference["norm.weight"]
    small = gs.compress(tuned, [gs.code.Delta(reference=reference)])
    assert "bytes" in small.skipped["fc.weight"]
    assert "torch.float16" in small.skipped["fc.bias"]
    assert "no tensor" in small.skipped["norm.weight"]
    assert torch.equal(small.state_dict()["fc.weight"], tuned.state_dict()["fc.weight"])


def test_without_its_reference_a_file_says_what_it_needs_and_still_has_a_ledger(tmp_path: Path) -> None:
    base, tuned = pair()
    gs.compress(tuned, [gs.code.Delta(reference=base.state_dict())]).save(tmp_path / "d.gsm")
    alone = gs.load(tmp_path / "d.gsm", into=Net)
    with pytest.raises(CompositionError, match="reference"):
        alone.dense()
    assert alone.ledger(zstd=True).file_bytes == (tmp_path / "d.gsm").stat().st_size
    with pytest.raises(DataError, match="checksum"):
        gs.load(tmp_path / "d.gsm", into=Net, reference=tuned.state_dict())
    with pytest.raises(DataError, match="found no tensor"):
        gs.load(tmp_path / "d.gsm", into=Net, reference={})


def test_a_missing_reference_file_is_one_line() -> None:
    with pytest.raises(DataError, match=r"nowhere\.safetensors: reference cannot be read"):
        gs.compress(nn.Linear(2, 2), [gs.code.Delta(reference="nowhere.safetensors")])


def test_malformed_differences_are_refused() -> None:
    external = External("w", (2, 3), "float32", 0)
    for residual, part, order in (
        (torch.zeros(2, 2, dtype=torch.int64), (), ()),
        (torch.zeros(2, 3), (), ()),
        (torch.zeros(3, 2, dtype=torch.int64), (), (0, 1)),
        (torch.zeros(2, 3, dtype=torch.int64), (), (0, 2)),
        (torch.zeros(3, dtype=torch.int64), (4, 7), ()),
        (torch.zeros(3, dtype=torch.int64), (0, 3), (0, 1)),
    ):
        with pytest.raises(FormatError, match="Delta"):
            Delta(residual, external, part, order)
    with pytest.raises(FormatError, match="complex"):
        External("w", (2, 3), "complex64", 0)
