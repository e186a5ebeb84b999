"""Compiled kernels are kept on disk, privately, and trusted only when whole."""

from __future__ import annotations

import re
import stat
from functools import cache
from pathlib import Path

import pytest
import torch

from gossamer.jit import kernel_cache
from gossamer.jit.cpu import Processor, host
from gossamer.jit.kernel_cache import Code, assembly, cache_directory, object_code_of
from gossamer.runtime.kernels import ROWS, TILES, RowKernels
from gossamer.runtime.spmm import SparseProduct
from gossamer.runtime.threads import openmp

_CHEAP = host("generic")


_OBJECTS: dict[Processor, bytes] = {}


@cache
def _text_of_tiles(processor: Processor) -> str:
    return assembly(processor, TILES)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Processor]:
    """Processors that were compiled for; the code itself is compiled once for all tests of this file."""
    seen: list[Processor] = []
    compile_now = kernel_cache._compiled

    def compiled(processor: Processor, code: Code) -> bytes:
        seen.append(processor)
        if processor not in _OBJECTS:
            _OBJECTS[processor] = compile_now(processor, code)
        return _OBJECTS[processor]

    monkeypatch.setattr(kernel_cache, "_compiled", compiled)
    return seen


def fresh(directory: Path) -> RowKernels:
    """As a new process would load them."""
    kernels = RowKernels(object_code_of(ROWS, _CHEAP, directory), _CHEAP)
    weight = torch.arange(12.0).view(3, 4)
    product = SparseProduct(
        (3, 4), torch.arange(12).numpy(), weight.flatten().numpy(), None, relu=False, kernels=kernels, openmp=openmp()
    )
    assert torch.equal(product(torch.eye(4)), weight.T)
    return kernels


def test_the_second_process_loads_what_the_first_compiled(tmp_path: Path, compilations: list[Processor]) -> None:
    directory = tmp_path / "made" / "kernels"
    fresh(directory)
    fresh(directory)
    assert compilations == [_CHEAP]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "digest only"])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, compilations: list[Processor], damage: str) -> None:
    directory = tmp_path / "kernels"
    fresh(directory)
    (file,) = directory.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    file.write_bytes(
        {"truncated": whole[:-9], "flipped": bytes(flipped), "empty": b"", "digest only": whole[:32]}[damage]
    )
    fresh(directory)
    assert len(compilations) == 2 and file.read_bytes() == whole


def test_a_directory_that_others_may_enter_is_not_used(tmp_path: Path, compilations: list[Processor]) -> None:
    directory = tmp_path / "kernels"
    directory.mkdir()
    directory.chmod(0o755)
    fresh(directory)
    fresh(directory)
    assert len(compilations) == 2 and not list(directory.iterdir())


def test_a_directory_of_someone_else_is_not_used(
    tmp_path: Path, compilations: list[Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "kernels"
    fresh(directory)
    mine = directory.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: mine + 1)
    fresh(directory)
    assert len(compilations) == 2


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path, compilations: list[Processor]) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "kernels").symlink_to(tmp_path / "real")
    fresh(tmp_path / "kernels")
    assert len(compilations) == 1 and not list((tmp_path / "real").iterdir())


def test_where_nothing_can_be_written_kernels_stay_in_memory(tmp_path: Path, compilations: list[Processor]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    fresh(blocked / "kernels")
    assert len(compilations) == 1 and blocked.read_text() == "not a directory"


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, compilations: list[Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    directory = tmp_path / "kernels"
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", full)
        fresh(directory)
    assert len(compilations) == 1 and not list(directory.iterdir())


def test_another_processor_has_another_file() -> None:
    other = Processor(_CHEAP.triple, _CHEAP.name, "+sse2", _CHEAP.lanes)
    assert kernel_cache.source_key(other, ROWS) != kernel_cache.source_key(_CHEAP, ROWS)
    assert kernel_cache.source_key(_CHEAP, TILES) != kernel_cache.source_key(_CHEAP, ROWS)


def test_the_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory({"GOSSAMER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a/kernels")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/gossamer/kernels")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory({}) == tmp_path / ".cache/gossamer/kernels"


def test_neon_code_multiplies_and_adds_whole_vectors() -> None:
    text = assembly(Processor.neon(), ROWS)
    assert "fmla\tv" in text and ".4s" in text
    assert text.count("product_") and "bl\tfmaf" not in text


@pytest.mark.parametrize("kernel", ["sliced_8_4", "sliced_16_4", "pairs_8_4", "pairings_8_4"])
def test_avx2_code_loads_four_weights_at_once_and_spills_no_sum_in_its_loops(kernel: str) -> None:
    processor = Processor("x86_64-unknown-linux-gnu", "x86-64-v3", "", 8)
    found = re.search(rf"^{kernel}:$.*?^\.Lfunc_end", _text_of_tiles(processor), re.MULTILINE | re.DOTALL)
    assert found is not None
    blocks = re.split(r"^\.LBB\d+_\d+:", found.group(), flags=re.MULTILINE)
    loops = [block for block in blocks if "vbroadcastf128" in block and "vfmadd" in block]
    assert len(loops) == {"sliced": 1, "pairs": 2, "pairings": 4}[kernel.split("_")[0]]
    assert not any(re.search(r"vmov[au]ps.*\(%rsp\)", block) for block in loops)
    assert not any("vbroadcastss" in block for block in loops)


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        ("sliced_8_4", "fmla"),
        ("sliced_16_1", "fmla"),
        ("pairs_8_4", "fmla"),
        ("pairings_8_4", "fmla"),
        ("patterns_8_4", "fmla"),
        ("patterns_16_2", "fmla"),
        ("finish", "fdiv"),
        ("normalise_tile_4", "fsqrt"),
        ("pack_tile", "trn1|zip1|uzp1"),
        ("unpack_tile", "trn1|zip1|uzp1"),
        ("pack_tile_brain", "trn1|zip1|uzp1|shll"),
        ("unpack_tile_brain", "trn1|zip1|uzp1|add"),
        ("expand", "scvtf"),
    ],
)
def test_neon_code_for_tiles_is_vector_code_in_every_kernel(kernel: str, wanted: str) -> None:
    found = re.search(rf"^{kernel}:$.*?^\.Lfunc_end", _text_of_tiles(Processor.neon()), re.MULTILINE | re.DOTALL)
    assert found is not None
    assert re.search(rf"\b({wanted})\tv\d+\.\d+[sd]", found.group())
    assert not re.search(r"\bbl\t(fmaf|expf|erff|sqrtf)", found.group())
