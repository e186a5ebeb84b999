"""The instruction set is the processor's own unless a lower one is asked for."""

from __future__ import annotations

import pytest

from gossamer.errors import PlanError
from gossamer.jit import cpu
from gossamer.jit.cpu import host, levels, unavailable, wanted_level


def test_every_level_has_its_vector_length() -> None:
    lengths = {"avx512": 16, "avx2": 8, "generic": 4}
    for level in levels():
        assert host(level).lanes == lengths.get(level, max(host(other).lanes for other in levels()))


@pytest.mark.parametrize("level", levels())
def test_the_environment_chooses_the_level(level: str) -> None:
    assert wanted_level({"GOSSAMER_ISA": level}) == level


def test_without_the_variable_the_level_is_native() -> None:
    assert wanted_level({}) == "native"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(PlanError, match="found 'sse9', expected one of native"):
        wanted_level({"GOSSAMER_ISA": "sse9"})


def test_a_level_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "levels", lambda: ("native", "generic"))
    with pytest.raises(PlanError, match="'avx2', which this processor lacks"):
        wanted_level({"GOSSAMER_ISA": "avx2"})


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unavailable() == "llvmlite is not installed"


def test_another_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    assert "not on Plan9" in str(unavailable())
