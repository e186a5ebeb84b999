"""The temperature is the best there is, and what the data cannot tell is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.measure.label_code import label_bits, total


def noisy(rows: int = 2000, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels drawn from their own softmax: the right temperature is about 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.05, 1.0, 7.0, 100.0])
def test_no_temperature_nearby_takes_fewer_bits(scale: float) -> None:
    logits, targets = noisy()
    found = gs.measure.calibrated(lambda x: x, scale * logits, targets)
    assert found.value == pytest.approx(scale, rel=0.1)
    assert found.label_bits_calibrated == total(label_bits(scale * logits, targets, found.value))
    assert found.label_bits == total(label_bits(scale * logits, targets))
    for factor in (0.999, 1.001):
        assert total(label_bits(scale * logits, targets, found.value * factor)) > found.label_bits_calibrated


def test_it_is_the_same_for_any_batch_and_a_float32() -> None:
    logits, targets = noisy()
    found = {gs.measure.calibrated(lambda x: x, logits, targets, batch=b).value for b in (1999, 500, 30)}
    assert len(found) == 1
    assert float(torch.tensor(found.pop(), dtype=torch.float32)) in {
        gs.measure.calibrated(lambda x: x, logits, targets).value
    }


def test_where_every_label_is_the_first_choice_the_temperature_stays_one() -> None:
    found = gs.measure.calibrated(lambda x: x, 3 * torch.eye(4), torch.arange(4))
    assert found.value == 1.0
    assert "first choice" in found.note
    assert found.label_bits == found.label_bits_calibrated


def test_worse_than_chance_becomes_uniform() -> None:
    found = gs.measure.calibrated(lambda x: x, -5 * torch.eye(4).repeat(9, 1), torch.arange(4).repeat(9))
    assert found.value == 1024.0
    assert "chance" in found.note
    assert found.label_bits_calibrated == pytest.approx(72, rel=0.01)


def test_tiny_logits_end_at_the_lowest_temperature() -> None:
    logits, targets = noisy()
    found = gs.measure.calibrated(lambda x: x, 1e-5 * logits, targets)
    assert found.value == 1 / 1024
    assert "below" in found.note


def test_a_single_wrong_label_among_sure_ones_is_enough() -> None:
    logits = 50 * torch.eye(3).repeat(100, 1)
    targets = torch.arange(3).repeat(100)
    targets[0] = 1
    found = gs.measure.calibrated(lambda x: x, logits, targets)
    right = 1 / (1 + 2 * torch.tensor(-50 / found.value, dtype=torch.float64).exp())
    assert float(right) == pytest.approx(299 / 300, rel=1e-3)
    assert not found.note


def test_sequences_are_as_many_labels_as_positions() -> None:
    logits, targets = noisy(600)
    flat = gs.measure.calibrated(lambda x: x, logits, targets)
    assert gs.measure.calibrated(lambda x: x, logits.reshape(100, 6, 6), targets.reshape(100, 6), batch=7) == flat


def test_the_network_is_put_back_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[1].eval()
    data = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    first = gs.measure.calibrated(model, data, torch.arange(50) % 3)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert gs.measure.calibrated(model, data, torch.arange(50) % 3) == first


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), "inputs: found 6 of 6 values that are not finite"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "found target 3, expected 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "found target -1"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "found 0 inputs and 0 targets"),
        (torch.zeros(2, 3), torch.tensor([0]), "found 2 inputs and 1 targets"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "targets of torch.float32"),
        (torch.zeros(2), torch.tensor([0, 1]), r"outputs of shape \[2\], expected \[2, classes\]"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "logits of 1 classes"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "outputs of torch.int64"),
    ],
)
def test_what_is_no_labelled_set_is_named(logits: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(gs.DataError, match=f"calibration set: .*{message}"):
        gs.measure.calibrated(lambda x: x, logits, targets)
