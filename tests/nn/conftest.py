"""Sparse layers on compiled kernels and in plain PyTorch."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("gossamer.nn.conv._DENSE_LEAD", 0.0)
    if not request.param:
        monkeypatch.setattr("gossamer.nn.layer.compiled", lambda: False)
    return bool(request.param)
