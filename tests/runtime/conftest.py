"""Times that a test's clock invents must not reach the user's own memory of this machine."""

from __future__ import annotations

import pytest

from gossamer.runtime.tuning import Memory


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "of_this_machine", classmethod(lambda cls: cls(None)))
