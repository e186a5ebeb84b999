"""Packing whole folders, and going on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from store.dense import as_bf16, weights, write_dense

import gossamer as gs
from gossamer.drive.pack_folder import MANIFEST
from gossamer.errors import DataError, FormatError, PlanError
from gossamer.store.packed_file import PackedFile


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, one more in a folder within, texts, an empty folder, an executable."""
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "nothing").mkdir()
    for number in (1, 2):
        x = weights(number, 100, 200)
        name = f"model-0000{number}-of-00002.safetensors"
        write_dense(folder / name, {f"w{number}": ("BF16", [100, 200], as_bf16(x))}, metadata={"format": "pt"})
    write_dense(folder / "vae" / "v.safetensors", {"w": ("F32", [8], weights(3, 8).tobytes())})
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "run.sh").write_text("true\n")
    (folder / "run.sh").chmod(0o755)
    return folder


def test_a_folder_comes_back_whole(model: Path, tmp_path: Path) -> None:
    before = contents(model)
    done = gs.pack(model, tmp_path / "packed")
    assert contents(model) == before
    packed = contents(tmp_path / "packed")
    assert set(packed) == {n + ".packed" if n.endswith(".safetensors") else n for n in before} | {MANIFEST}
    assert done.dense_bytes == sum(len(b) for b in before.values() if b is not None)
    assert done.packed_bytes == sum(len(b) for b in packed.values() if b is not None)
    assert set(done.units) == {n for n in before if n.endswith(".safetensors")}
    told = gs.unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == before
    assert ((tmp_path / "again" / "run.sh").stat().st_mode & 0o777) == 0o755
    assert (told.dense_bytes, told.packed_bytes) == (done.dense_bytes, done.packed_bytes)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "packed", "again"}


def test_a_folder_as_reference_serves_other_shards_too(model: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    both = {f"w{n}": ("BF16", [100, 200], as_bf16(weights(n, 100, 200) * np.float32(1.004))) for n in (1, 2)}
    whole = write_dense(tuned / "model.safetensors", both)
    alone = gs.pack(tuned / "model.safetensors", tmp_path / "alone").packed_bytes
    gs.pack(tuned, tmp_path / "packed", reference=model)
    assert (tmp_path / "packed" / "model.safetensors.packed").stat().st_size < 0.6 * alone
    gs.unpack(tmp_path / "packed", tmp_path / "again", reference=model)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == whole
    records = PackedFile(tmp_path / "packed" / "model.safetensors.packed").references
    assert [r[0] for r in records] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    with pytest.raises(DataError, match="expected the reference"):
        gs.unpack(tmp_path / "packed", tmp_path / "c", reference=model / "vae")
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "c.part").exists()


def test_a_folder_in_which_something_changed_is_refused(model: Path, tmp_path: Path) -> None:
    gs.pack(model, tmp_path / "packed")
    packed = tmp_path / "packed"
    config, shard = packed / "config.json", packed / "model-00001-of-00002.safetensors.packed"
    text, data = config.read_bytes(), shard.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(FormatError, match=match):
            gs.unpack(packed, tmp_path / "again")
        assert {p.name for p in tmp_path.iterdir()} == {"model", "packed"}

    config.write_bytes(b'{"a": 2}')
    refused("checksum")
    config.write_bytes(text + b" ")
    refused("bytes")
    config.unlink()
    refused("nothing in its place")
    config.write_bytes(text)
    (packed / "new").write_bytes(b"")
    refused("not packed with the others")
    (packed / "new").unlink()
    for place in (5, 500, len(data) - 1):
        shard.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        refused("model-00001")
    shard.write_bytes(data)
    manifest = (packed / MANIFEST).read_text()
    for old, new in (('"version": 1', '"version": 2'), ("nothing", "../out"), ("{", "[")):
        (packed / MANIFEST).write_text(manifest.replace(old, new))
        refused(MANIFEST)
    (packed / MANIFEST).unlink()
    refused("expected a folder that gossamer pack wrote")


def test_bad_input_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    shard = model / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()

    def refused(kind: type[Exception], match: str, source: Path = model, out: Path = tmp_path / "packed") -> None:
        before = contents(tmp_path)
        with pytest.raises(kind, match=match):
            gs.pack(source, out)
        assert contents(tmp_path) == before

    for damaged in (data[:-1], data + b"\0", b"", data[:40], b"\xff" * 64):
        shard.write_bytes(damaged)
        refused(FormatError, "model-00002-of-00002")
        refused(FormatError, "model-00002-of-00002", shard)
    shard.write_bytes(data)
    refused(PlanError, "nothing is overwritten", model, model / "vae")
    refused(PlanError, "within", model, model / "out")
    refused(DataError, "found no folder", model, tmp_path / "a" / "b")
    refused(DataError, "expected a folder with weights", model / "nothing")
    refused(DataError, "cannot be read", tmp_path / "missing")
    refused(DataError, "no ordinary file", broken(model))
    (model / "link").unlink()
    (model / "link").symlink_to(model / "vae")
    refused(DataError, "link to a folder")
    (model / "link").unlink()
    gs.pack(model, tmp_path / "packed")
    refused(DataError, "expected a folder with weights", tmp_path / "packed", tmp_path / "twice")
    (model / MANIFEST).write_text("{}")
    refused(DataError, "was not packed before", model, tmp_path / "twice")
    refused(PlanError, "nothing is overwritten")


def broken(model: Path) -> Path:
    (model / "link").symlink_to(model / "nowhere")
    return model


def test_links_to_files_are_followed(model: Path, tmp_path: Path) -> None:
    shard = model / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    gs.pack(model, tmp_path / "packed")
    gs.unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(model)


# -- kill and resume -------------------------------------------------------------------------------------------------

CHILD = """
    import os, sys
    from gossamer.cli.main import run
    from gossamer.store.journal import Journal

    append, seen = Journal.append, []

    def blown(self, record):
        append(self, record)
        seen.extend([1] if self._file.name == sys.argv[1] else [])
        if len(seen) == 3:
            os.kill(os.getpid(), int(sys.argv[2]))

    Journal.append = blown
    run(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 MB in nine pieces of two tensors, cheap to code."""
    folder = tmp_path_factory.mktemp("large")
    x = (weights(0, 3 << 20) * 100).astype(np.int8)
    tensors = {f"t{n}": ("I8", [12 << 20], np.tile(x + n, 4).tobytes()) for n in range(6)}
    write_dense(folder / "a.safetensors", tensors)
    gs.pack(folder / "a.safetensors", folder / "whole.packed")
    return folder


def blown(blow: signal.Signals, journal: Path, *arguments: str | Path) -> None:
    """Run a command that ends itself once its journal has two notes."""
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(journal), str(int(blow)), *map(str, arguments), "-q"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    assert done.returncode == (130 if blow is signal.SIGINT else -signal.SIGKILL), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_packing_goes_on_to_the_same_bytes(blow: signal.Signals, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.packed"
    journal = tmp_path / "out.packed.journal"
    blown(blow, journal, "pack", large / "a.safetensors", out)
    assert not out.exists()
    before = contents(tmp_path)
    with pytest.raises(PlanError, match="unfinished run, expected none: add --resume"):
        gs.pack(large / "a.safetensors", out)
    assert contents(tmp_path) == before
    done = gs.pack(large / "a.safetensors", out, resume=True)
    assert done.resumed >= 2
    assert out.read_bytes() == (large / "whole.packed").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out.packed"]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_unpacking_goes_on_to_the_same_bytes(blow: signal.Signals, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    blown(blow, tmp_path / "out.safetensors.journal", "unpack", large / "whole.packed", out)
    assert not out.exists()
    part = tmp_path / "out.safetensors.part"
    with part.open("r+b") as file:  # what was not on disk when the power went
        file.seek(9 << 20)
        file.write(b"\xff" * 99)
    with pytest.raises(PlanError, match="add --resume"):
        gs.unpack(large / "whole.packed", out)
    gs.unpack(large / "whole.packed", out, resume=True)
    assert out.read_bytes() == (large / "a.safetensors").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


def test_a_killed_folder_goes_on_to_the_same_bytes(large: Path, model: Path, tmp_path: Path) -> None:
    (model / "b.safetensors").symlink_to(large / "a.safetensors")
    out = tmp_path / "out"
    blown(signal.SIGKILL, tmp_path / "out.part" / "b.safetensors.packed.journal", "pack", model, out)
    assert not out.exists()
    with pytest.raises(PlanError, match="add --resume"):
        gs.pack(model, out)
    assert gs.pack(model, out, resume=True).resumed >= 2
    gs.pack(model, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    blown(signal.SIGKILL, tmp_path / "again.part" / "b.safetensors.journal", "unpack", out, tmp_path / "again")
    gs.unpack(out, tmp_path / "again", resume=True)
    assert contents(tmp_path / "again") == contents(model)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out", "whole", "again"}


def test_another_input_or_a_damaged_part_is_not_gone_on_with(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.packed"
    part, journal = tmp_path / "out.packed.part", tmp_path / "out.packed.journal"
    blown(signal.SIGKILL, journal, "pack", large / "a.safetensors", out)
    write_dense(tmp_path / "other.safetensors", {"x": ("U8", [17 << 20], bytes(17 << 20))})
    with pytest.raises(PlanError, match="another checkpoint"):
        gs.pack(tmp_path / "other.safetensors", out, resume=True)
    with pytest.raises(PlanError, match="another reference"):
        gs.pack(large / "a.safetensors", out, resume=True, reference=tmp_path / "other.safetensors")
    with part.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 9)
    with pytest.raises(PlanError, match="piece 0: found checksum"):
        gs.pack(large / "a.safetensors", out, resume=True)
    part.unlink()
    assert gs.pack(large / "a.safetensors", out, resume=True).resumed == 0
    assert out.read_bytes() == (large / "whole.packed").read_bytes()


def test_a_full_disk_leaves_what_is_finished(large: Path, tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (15_000_000, 15_000_000))\n"
    out = tmp_path / "out.packed"
    code, command = limit + textwrap.dedent(CHILD), ("pack", large / "a.safetensors", out, "-q")
    done = subprocess.run(
        [sys.executable, "-c", code, "", "0", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "make room and add --resume" in done.stderr
    assert gs.pack(large / "a.safetensors", out, resume=True).resumed >= 2
    assert out.read_bytes() == (large / "whole.packed").read_bytes()


def test_memory_is_bounded_whatever_the_checkpoint_has(tmp_path: Path) -> None:
    code = """
        import resource, sys
        import numpy as np
        import gossamer as gs
        from gossamer.store.packed_file import PackedFile
        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
        folder = sys.argv[1]
        with open(f"{folder}/a.safetensors", "wb") as file:
            text = b'{"x":{"dtype":"F32","shape":[50331648],"data_offsets":[0,201326592]}}'
            file.write(len(text).to_bytes(8, "little") + text)
            for seed in range(24):
                file.write(np.random.default_rng(seed % 2).normal(0, 1, 1 << 21).astype(np.float32).tobytes())
        start = peak()
        gs.pack(f"{folder}/a.safetensors", f"{folder}/a.packed")
        packed = peak()
        gs.unpack(f"{folder}/a.packed", f"{folder}/b.safetensors")
        print(packed - start, peak() - start)
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert max(map(int, done.stdout.split())) < 256 << 20


def test_an_interrupt_of_a_small_run_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.pack(model, tmp_path / "packed")
    before = contents(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gossamer.drive.pack_file.encode_piece", interrupted)
        for source in (model, model / "vae" / "v.safetensors"):
            with pytest.raises(KeyboardInterrupt):
                gs.pack(source, tmp_path / "out")
            assert contents(tmp_path) == before
    monkeypatch.setattr(PackedFile, "decode", interrupted)
    for source in (tmp_path / "packed", tmp_path / "packed" / "vae" / "v.safetensors.packed"):
        with pytest.raises(KeyboardInterrupt):
            gs.unpack(source, tmp_path / "out")
        assert contents(tmp_path) == before


def test_a_file_that_changes_while_it_is_packed_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.drive import pack_file

    encode, shard = pack_file.encode_piece, model / "vae" / "v.safetensors"

    def touched(*arguments: object) -> object:
        write_dense(shard, {"w": ("F32", [8], weights(4, 8).tobytes())})
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_file, "encode_piece", touched)
    with pytest.raises(DataError, match="changed while"):
        gs.pack(shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Seen:
    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def update(self, text: str, done: int, total: int) -> None:
        self.told.append((text, done, total))


def test_progress_goes_up_to_all_of_it(model: Path, tmp_path: Path) -> None:
    for source, packed in ((model, tmp_path / "p"), (model / "vae" / "v.safetensors", tmp_path / "q")):
        seen = Seen()
        done = gs.pack(source, packed, progress=seen)
        assert seen.told[-1] == ("packing", done.dense_bytes, done.dense_bytes)
        gs.unpack(packed, tmp_path / f"{packed.name}.again", progress=seen)
        assert seen.told[-1] == ("unpacking", done.dense_bytes, done.dense_bytes)
        counts = [count for text, count, _ in seen.told if text == "unpacking"]
        assert counts == sorted(counts)
