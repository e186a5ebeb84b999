"""Times that a test's clock invents must not reach the user's own memory of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gossamer.runtime.tuning import Memory


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "of_this_machine", classmethod(lambda cls: cls(None)))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
