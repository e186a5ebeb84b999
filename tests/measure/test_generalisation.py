"""Intervals and tests are those of the literature; calibration and classes agree with direct loops."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.measure.proportions import difference, holm, mcnemar, wilson

KEYS = {
    "train_accuracy",
    "test_accuracy",
    "gap",
    "calibration_error",
    "calibration_error_dense",
    "reliability",
    "per_class",
}
CLASS_KEYS = {"class", "n", "accuracy", "low", "high", "dense_accuracy", "p", "p_adjusted", "changed"}


def noisy(rows: int, seed: int, classes: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000), st.data())
def test_wilsons_ends_are_where_the_score_test_turns(count: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, count))
    for end in wilson(correct, count):
        assert 0 <= end <= 1
        reach = 1.959963984540054 * math.sqrt(end * (1 - end) / count)
        assert abs(correct / count - end) == pytest.approx(reach, abs=1e-9)


def test_differences_are_those_of_newcombes_table() -> None:
    assert difference((9, 10), (3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference((10, 10), (0, 20)) == pytest.approx((0.6791, 1.0), abs=5e-5)
    assert difference((5, 56), (0, 29)) == pytest.approx((-0.0381, 0.1926), abs=5e-5)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_adds_up_every_outcome_as_far_out(lost: int, gained: int) -> None:
    tries, few = lost + gained, min(lost, gained)
    far = sum(math.comb(tries, k) for k in range(tries + 1) if min(k, tries - k) <= few)
    assert mcnemar(lost, gained) == float(Fraction(far, 2**tries))


def test_mcnemar_of_thousands_neither_overflows_nor_takes_long() -> None:
    assert mcnemar(5000, 5000) == 1.0
    assert 0 < mcnemar(2000, 2300) < 1e-5
    assert mcnemar(0, 10_000) == 0.0 or mcnemar(0, 10_000) < 1e-300


def test_holm_steps_down() -> None:
    assert holm([0.005, 0.011, 0.02, 0.04, 0.13]) == pytest.approx([0.025, 0.044, 0.06, 0.08, 0.13])
    assert holm([0.13, 0.005, 0.04]) == pytest.approx([0.13, 0.015, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2)])
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(gs.DataError, match="expected 0 ≤ correct ≤ count"):
        wilson(*counts)
    with pytest.raises(gs.DataError):
        mcnemar(-1, 0)


def test_calibration_error_agrees_with_a_direct_loop() -> None:
    data = noisy(3000, 0)
    found = gs.measure.generalisation(lambda x: 3 * x, data, data)
    probabilities = (3 * data[0]).double().softmax(1)
    confidences, answers = probabilities.max(1)
    expected = 0.0
    for b in range(15):
        inside = (confidences > b / 15) & (confidences <= (b + 1) / 15)
        if inside.any():
            right = (answers == data[1])[inside].double().mean()
            expected += float(inside.double().mean() * (right - confidences[inside].mean()).abs())
    assert found.calibration_error == pytest.approx(expected, abs=1e-12)
    assert sum(b.n for b in found.reliability) == 3000
    assert found.reliability[-1].high == 1.0
    assert all(b.low <= b.confidence <= b.high for b in found.reliability)


def test_labels_drawn_from_the_network_are_calibrated_and_overstated_ones_are_not() -> None:
    data = noisy(20_000, 0)
    assert gs.measure.generalisation(lambda x: x, data, data).calibration_error < 0.02
    assert gs.measure.generalisation(lambda x: 5 * x, data, data).calibration_error > 0.15


def test_a_class_that_was_given_up_is_flagged_and_the_others_are_not() -> None:
    inputs, targets = torch.eye(10).repeat(200, 1), torch.arange(10).repeat(200)
    broken = torch.ones(10)
    broken[3] = 0
    noise = torch.rand(2000, 10, generator=torch.Generator().manual_seed(0)) * 1.05
    train, test = (inputs, targets), (inputs + noise, targets)
    found = gs.measure.generalisation(lambda x: x * broken, train, test, dense=lambda x: x)
    assert [row.number for row in found.per_class if row.changed] == [3]
    row = found.per_class[3]
    assert row.p is not None
    assert row.p_adjusted is not None
    assert row.p < row.p_adjusted < 1e-20
    assert row.accuracy < 0.5
    assert row.dense_accuracy is not None
    assert row.dense_accuracy > 0.9
    assert (row.low, row.high) == wilson(round(row.accuracy * 200), 200)


def test_identical_networks_are_told_apart_nowhere() -> None:
    data = noisy(500, 0)
    found = gs.measure.generalisation(lambda x: x, data, noisy(400, 1), dense=lambda x: 2 * x)  # the same answers
    assert {(row.p, row.p_adjusted, row.changed) for row in found.per_class} == {(1.0, 1.0, False)}
    assert found.p == 1.0
    assert found.gap == found.dense_gap
    low, high = found.gap_interval
    assert low < found.gap < high


def test_the_document_has_the_keys_that_others_read_and_is_json() -> None:
    bare = gs.measure.generalisation(lambda x: x, noisy(50, 0), noisy(40, 1)).to_json()
    full = gs.measure.generalisation(lambda x: x, noisy(50, 0), noisy(40, 1), dense=lambda x: -x).to_json()
    for document in (bare, full):
        assert set(document) >= KEYS
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert all(set(row) == CLASS_KEYS for row in document["per_class"])
        assert all(set(row) == {"low", "high", "n", "confidence", "accuracy"} for row in document["reliability"])
    assert (
        bare["calibration_error_dense"] is bare["per_class"][0]["p"] is bare["per_class"][0]["dense_accuracy"] is None
    )


def test_only_classes_that_occur_are_listed() -> None:
    inputs, targets = noisy(60, 0, classes=7)
    found = gs.measure.generalisation(lambda x: x, (inputs, targets), (inputs[targets > 3], targets[targets > 3]))
    assert [row.number for row in found.per_class] == [4, 5, 6]


def test_positions_of_sequences_are_answers() -> None:
    inputs, targets = noisy(120, 0)
    flat = gs.measure.generalisation(lambda x: x, (inputs, targets), (inputs, targets))
    text = inputs.reshape(20, 6, 5), targets.reshape(20, 6)
    assert gs.measure.generalisation(lambda x: x, text, text, batch=7) == flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))}, "test: found 0 inputs"),
        ({"classes": 3}, "train: found target 4, expected 0 to 2"),
        ({"classes": 9}, "train: found logits of 5 classes, expected 9"),
        ({"dense": lambda x: x[:, :4]}, "dense network, train: found logits of 4 classes, expected 5"),
        ({"model": lambda x: x.log()}, "train: found .* logits that are not finite"),
        ({"bins": 0}, "bins: found 0"),
        ({"batch": 0}, "train: found batches of 0"),
    ],
)
def test_what_cannot_be_judged_is_named(change: dict[str, object], message: str) -> None:
    asked = {"model": lambda x: x, "train": noisy(20, 0), "test": noisy(20, 1)} | change
    with pytest.raises(gs.DataError, match=message):
        gs.measure.generalisation(**asked)  # type: ignore[arg-type]
