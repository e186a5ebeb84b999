"""The example does what it says."""

import importlib.util
from pathlib import Path

import pytest


def test_a_training_loop_of_ones_own_recovers_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "examples" / "own_training_loop.py"
    spec = importlib.util.spec_from_file_location("own_training_loop", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(epochs=2) > 0.05
    assert "13,720 parameters trained of 266,610" in capsys.readouterr().out
