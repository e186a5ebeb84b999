"""One thread, and examples that are the same on every run."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("gossamer", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("gossamer")
