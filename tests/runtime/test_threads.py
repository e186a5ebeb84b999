"""Kernels use PyTorch's threads, and none in a forked process."""

from __future__ import annotations

import subprocess
import sys

import torch

from gossamer.runtime.threads import OpenMP, openmp

_FORK = """
import os, signal, sys, warnings, torch
from gossamer.runtime.group_code import Way
from gossamer.runtime.linear import SparseLinear
from gossamer.runtime.tiled import GroupedLinear

torch.set_num_threads(2)
x = torch.randn(64, 1000)
layer = SparseLinear((1000, 1000), torch.arange(0, 1000000, 10), torch.randn(100000), None)
grouped = GroupedLinear(torch.randn(1000, 1000) * (torch.rand(1000, 1000) < 0.1), None, Way.SLICED)
expected, expected_too = layer(x), grouped(x)
assert layer.product.threads(64) == grouped.product.threads(4) == 2
warnings.simplefilter("ignore")  # Python warns that forking a process with threads is risky; that is the point
child = os.fork()
signal.alarm(240)  # a child that hangs must not stay behind
if child == 0:
    # compared without PyTorch, whose own parallel regions hang after a fork
    fine = layer.product.threads(64) == 1 and layer(x).numpy().tobytes() == expected.numpy().tobytes()
    fine = fine and grouped(x).numpy().tobytes() == expected_too.numpy().tobytes()
    os._exit(0 if fine else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_number_of_threads_is_that_of_pytorch() -> None:
    before = torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            assert openmp().threads() == (count if openmp().addresses else 1)
    finally:
        torch.set_num_threads(before)


def test_without_openmp_there_is_one_thread() -> None:
    assert OpenMP(None).threads() == 1


def test_the_runtime_of_this_process_is_found_when_pytorch_uses_openmp() -> None:
    uses = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
    assert (openmp().addresses is not None) == uses


def test_a_forked_process_computes_the_same_on_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=300, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
