"""What was measured once is not measured again, and only whole and fitting memories count."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from gossamer.runtime.tuning import Memory, layer_key

NAMES = ("dense", "sliced")


class Clock:
    def __init__(self, times: dict[str, float]) -> None:
        self.times = times
        self.calls = 0

    def __call__(self) -> dict[str, float]:
        self.calls += 1
        return self.times


def test_times_are_measured_once_and_read_by_the_next_process(tmp_path: Path) -> None:
    clock = Clock({"dense": 2.0, "sliced": 0.5})
    memory = Memory(tmp_path / "kernels")
    for _ in range(2):
        assert memory.times("a", NAMES, clock) == clock.times
    assert Memory(tmp_path / "kernels").times("a", NAMES, clock) == clock.times
    assert clock.calls == 1
    assert stat.S_IMODE((tmp_path / "kernels").stat().st_mode) == 0o700


def test_another_layer_other_candidates_and_other_threads_are_measured_anew(tmp_path: Path) -> None:
    clock = Clock({"dense": 2.0, "sliced": 0.5})
    memory = Memory(tmp_path / "kernels")
    memory.times("a", NAMES, clock)
    memory.times("b", NAMES, clock)
    memory.times("a", (*NAMES, "patterns"), clock)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        memory.times("a", NAMES, clock)
    finally:
        torch.set_num_threads(before)
    assert clock.calls == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"dense": 1.0}', b'{"dense": "x", "sliced": 1.0}', b"\xff", b"[1]"])
def test_a_memory_that_does_not_fit_is_replaced(tmp_path: Path, damage: bytes) -> None:
    from gossamer.jit.kernel_cache import write_private

    clock = Clock({"dense": 2.0, "sliced": 0.5})
    Memory(tmp_path / "kernels").times("a", NAMES, clock)
    (file,) = (tmp_path / "kernels").iterdir()
    write_private(tmp_path / "kernels", file.name, damage)
    assert Memory(tmp_path / "kernels").times("a", NAMES, clock) == clock.times
    assert clock.calls == 2


def test_without_a_directory_the_process_remembers(tmp_path: Path) -> None:
    clock = Clock({"dense": 2.0, "sliced": 0.5})
    (tmp_path / "file").write_text("not a directory")
    for directory in (None, tmp_path / "file" / "kernels"):
        memory = Memory(directory)
        memory.times("a", NAMES, clock)
        memory.times("a", NAMES, clock)
    assert clock.calls == 2


def test_layers_of_nearly_the_same_density_share_a_key() -> None:
    one = layer_key((768, 768), 0.1000, 128, torch.float32)
    assert one == layer_key((768, 768), 0.1001, 128, torch.float32)
    assert one != layer_key((768, 768), 0.2, 128, torch.float32)
    assert one != layer_key((768, 768), 0.1, 64, torch.float32)
    assert layer_key((768, 768), 0.0, 1, torch.float32)
