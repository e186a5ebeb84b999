"""Whatever happens while a file is written, the old one stays whole: kills, full disks, errors of the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.errors import DataError
from gossamer.store.atomic import check_creatable, write_atomically

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from gossamer.store.atomic import write_atomically

    def chunks():
        yield b"n" * 100_000
        print("half", flush=True)
        sys.stdin.read()  # the other half never comes
        yield b"n"

    write_atomically(Path(sys.argv[1]), chunks())
"""

FULL = """
    import resource, signal, sys
    from pathlib import Path
    from gossamer.errors import DataError
    from gossamer.store.atomic import write_atomically

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        write_atomically(Path(sys.argv[1]), [b"n" * 30_000, b"n" * 30_000])
    except DataError as error:
        print(error)
"""


def start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "network.gsm"
    path.write_bytes(b"old")
    return path


def test_a_kill_in_the_middle_leaves_the_old_file(old: Path) -> None:
    with start(KILLED, old) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    left = [p for p in old.parent.iterdir() if p != old]
    assert all(p.name.startswith(".network.gsm.") and p.name.endswith(".part") for p in left)
    assert write_atomically(old, [b"new"]) == 3  # what is left over is in nobody's way
    assert old.read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(old: Path) -> None:
    with start(FULL, old) as process:
        said = process.communicate()[0]
        assert process.returncode == 0
    assert "network.gsm: writing failed, the old file if any is untouched" in said
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("coder")], ids=["interrupt", "bug"])
def test_an_error_of_the_caller_leaves_the_old_file_and_nothing_else(error: BaseException, old: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"new"
        raise error

    with pytest.raises(type(error)):
        write_atomically(old, chunks())
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(old: Path) -> None:
    old.chmod(0o640)
    write_atomically(old, [b"new"])
    assert old.stat().st_mode & 0o777 == 0o640
    plain, ours = old.parent / "plain", old.parent / "ours"
    plain.write_bytes(b"")
    write_atomically(ours, [b""])
    assert ours.stat().st_mode == plain.stat().st_mode


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing/a\.gsm: cannot write there"):
        write_atomically(tmp_path / "missing" / "a.gsm", [b""])
    with pytest.raises(DataError, match=str(tmp_path)):
        write_atomically(tmp_path, [b""])


def test_what_cannot_be_written_is_told_before_and_what_can_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing/a\.gsm: found no folder .*missing"):
        check_creatable(tmp_path / "missing" / "a.gsm")
    with pytest.raises(DataError, match="found a folder, expected the name of a file"):
        check_creatable(tmp_path)
    if Path("/proc").is_dir():
        with pytest.raises(DataError, match=r"/proc/a\.gsm: cannot write there"):
            check_creatable(Path("/proc/a.gsm"))
    check_creatable(tmp_path / "a.gsm")
    assert list(tmp_path.iterdir()) == []
