"""What it was measured on."""

from __future__ import annotations

import os
import platform

import torch

from gossamer.jit.cpu import processor_name

__all__ = ["machine"]


def machine() -> str:
    """Processor, cores, threads of torch and versions, in one line."""
    threads = torch.get_num_threads()
    return (
        f"{processor_name()}, {os.cpu_count()} cores, {threads} thread{'s' if threads != 1 else ''}; "
        f"{platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    )
