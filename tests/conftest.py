"""One thread, and examples that are the same on every run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Started in the background of a shell, tests would hand an ignored interrupt on to the processes that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("gossamer", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("gossamer")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of PyTorch and of the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
