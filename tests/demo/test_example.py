"""The examples do what they say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_training_loop_of_ones_own_recovers_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_training_loop").main(epochs=2) > 0.05
    assert "13,720 parameters trained of 266,610" in capsys.readouterr().out


def test_sparse_training_learns_with_a_fraction_of_the_state(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("sparse_training").main(epochs=2, width=128)
    said = capsys.readouterr().out
    assert found > 0.7 and "90.0% zeros" in said
    assert f"reloaded and lowered: {found:.1%}" in said
    sparse, dense = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]{6,})(?: bytes, of|$)", said, re.MULTILINE)[:2]
    )
    assert sparse < 0.2 * dense
