"""Bits of labels are right, and the same whatever the batch, the order or the number of threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.measure.elementary import log2_of, power_of_two
from gossamer.measure.label_code import label_bits, total, verdicts


def logits_of(rows: int, classes: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    return scale * torch.randn(rows, classes, generator=generator), targets


def in_decimal(logits: Tensor, target: int, temperature: float) -> float:
    with localcontext() as context:
        context.prec = 50
        scaled = [Decimal(z) / Decimal(temperature) for z in logits.double().tolist()]
        partition = sum((z.exp() for z in scaled), Decimal(0)).ln()
        return float((partition - scaled[target]) / Decimal(2).ln())


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 0.37, 5.5])
def test_bits_agree_with_fifty_digits(scale: float, temperature: float) -> None:
    logits, targets = logits_of(40, 7, scale)
    found = label_bits(logits, targets, temperature)
    for row, target, bits in zip(logits, targets.tolist(), found.tolist(), strict=True):
        assert bits == pytest.approx(in_decimal(row, target, temperature), rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bits_agree_with_the_log_softmax_of_pytorch(dtype: torch.dtype) -> None:
    logits, targets = logits_of(5000, 10, 4.0)
    logits = logits.to(dtype)
    expected = -F.log_softmax(logits.double(), 1).gather(1, targets[:, None])[:, 0] / math.log(2)
    assert (label_bits(logits, targets) - expected).abs().max() < 1e-12


def test_the_sum_is_the_same_to_the_last_bit_for_any_batch_order_and_threads(threads: int) -> None:
    logits, targets = logits_of(3001, 10, 4.0)
    whole = total(label_bits(logits, targets))
    parts = [label_bits(logits[i : i + 7], targets[i : i + 7]) for i in range(0, 3001, 7)]
    order = torch.randperm(3001, generator=torch.Generator().manual_seed(1))
    assert total(torch.cat(parts)) == whole
    assert total(label_bits(logits[order], targets[order])) == whole
    strided = torch.stack([logits, logits], 2)[:, :, 0]
    assert total(label_bits(strided, targets)) == whole


WRITTEN_DOWN = "0x1.43deee28a9222p+9"
PROGRAM = """
import torch
from gossamer.measure.label_code import label_bits, total
logits = ((torch.arange(600) * 7919) % 1009).reshape(60, 10).double() / 64
print(torch.backends.cpu.get_cpu_capability(), total(label_bits(logits, torch.arange(60) % 10)).hex())
"""


@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_bits_are_those_once_written_down_whatever_the_processor_can(instructions: str) -> None:
    # A change here changes every description length that was ever written down.
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"ATEN_CPU_CAPABILITY": instructions}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    capability, bits = ran.stdout.split()
    assert instructions == "avx2" or capability in ("DEFAULT", "NO AVX")
    assert bits == WRITTEN_DOWN


def test_what_is_far_away_is_neither_lost_nor_infinite() -> None:
    logits = torch.tensor([[3e38, -3e38], [0.0, -2000.0], [0.0, 2000.0]])
    bits = label_bits(logits, torch.tensor([1, 0, 0]))
    assert bits[0] == pytest.approx(6e38 / math.log(2), rel=1e-6)
    assert bits[1] == 0
    assert bits[2] == pytest.approx(2000 / math.log(2), rel=1e-14)


def test_many_classes_are_worked_on_in_parts() -> None:
    logits, targets = logits_of(50, 100_001, 2.0)
    expected = F.cross_entropy(logits.double(), targets, reduction="sum") / math.log(2)
    assert total(label_bits(logits, targets)) == pytest.approx(float(expected), rel=1e-13)


def test_powers_and_logarithms_err_by_two_units_in_the_last_place() -> None:
    exponents = torch.linspace(-40, 0, 4001, dtype=torch.float64)
    assert (
        max(abs(a / 2**b - 1) for a, b in zip(power_of_two(exponents).tolist(), exponents.tolist(), strict=True))
        < 5e-16
    )
    values = torch.linspace(1, 3000, 5000, dtype=torch.float64)
    errors = [abs(a - math.log2(b)) for a, b in zip(log2_of(values).tolist(), values.tolist(), strict=True)]
    assert max(errors) < 2e-15


def test_answers_are_first_of_equals_and_confidences_are_probabilities() -> None:
    logits, _ = logits_of(300, 5, 3.0)
    found = verdicts(logits)
    assert torch.equal(found.answers, logits.argmax(1))
    assert (found.confidences - logits.double().softmax(1).max(1).values).abs().max() < 1e-14
