"""The two-part code counts the file to the byte, and says from how many samples on it pays."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import load_fashion
from gossamer.measure.description import pays_from

KEYS = {
    "model_bits",
    "file_bytes",
    "free",
    "temperature",
    "sets",
    "two_part_bits",
    "dense_two_part_bits",
    "pays_from",
}
SET_KEYS = {
    "labels",
    "label_bits",
    "label_bits_calibrated",
    "uniform_bits",
    "dense_label_bits",
    "dense_label_bits_calibrated",
}


def noisy(rows: int, seed: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_the_model_term_is_the_bytes_of_the_file_times_eight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = gs.compress(nn.Linear(40, 5), [gs.prune.Magnitude(sparsity=0.8), gs.share.KMeans(bits=3)])
    written = small.save(tmp_path / "a.gsm")
    network = gs.load(tmp_path / "a.gsm", into=nn.Linear(40, 5)).dense()
    data = torch.randn(300, 40), torch.randint(5, (300,))
    found = gs.measure.description_length(tmp_path / "a.gsm", network, {"train": data})
    assert found.model_bits == 8 * written == 8 * (tmp_path / "a.gsm").stat().st_size
    assert found.file_bytes == written
    with torch.no_grad():
        expected = F.cross_entropy(network(data[0]).double(), data[1], reduction="sum") / math.log(2)
    assert found.sets["train"].label_bits == pytest.approx(float(expected), rel=1e-12)
    assert found.two_part_bits["train"] == found.model_bits + found.sets["train"].label_bits
    content = (tmp_path / "a.gsm").read_bytes()
    for same in (content, written, str(tmp_path / "a.gsm")):
        assert gs.measure.description_length(same, network, {"train": data}) == found


def test_the_document_has_the_keys_that_others_read_and_is_json() -> None:
    sets = {"train": noisy(50, 0), "test": noisy(30, 1)}
    bare = gs.measure.description_length(10, lambda x: x, sets).to_json()
    assert set(bare) >= KEYS
    assert all(set(row) >= SET_KEYS for row in bare["sets"].values())
    assert bare["temperature"] is bare["dense_two_part_bits"] is bare["sets"]["test"]["label_bits_calibrated"] is None
    full = gs.measure.description_length(
        10, lambda x: x, sets, calibrate_on=noisy(200, 2), dense=lambda x: 2 * x, dense_bytes=999, free=("a", "b")
    ).to_json()
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    assert full["free"] == ["a", "b"]
    assert full["sets"]["train"]["uniform_bits"] == 50 * math.log2(5)
    assert full["dense_two_part_bits"]["test"] == 8 * 999 + full["sets"]["test"]["dense_label_bits"]
    assert full["dense_temperature"] == pytest.approx(2 * full["temperature"], rel=1e-6)


def test_a_temperature_costs_its_thirty_two_bits() -> None:
    found = gs.measure.description_length(7, lambda x: 5 * x, {"test": noisy(900, 0)}, calibrate_on=noisy(900, 1))
    assert found.temperature is not None
    assert found.temperature.value == pytest.approx(5, rel=0.1)
    calibrated = found.sets["test"].label_bits_calibrated
    assert calibrated is not None
    assert calibrated < found.sets["test"].label_bits
    assert found.two_part_bits_calibrated == {"test": 7 * 8 + 32 + calibrated}


def test_samples_on_which_the_temperature_was_fitted_are_counted() -> None:
    held, test = noisy(100, 0), noisy(60, 1)
    mixed = torch.cat([test[0], held[0][:25]]), torch.cat([test[1], held[1][:25]])
    found = gs.measure.description_length(
        7, lambda x: x, {"held": held, "test": test, "mixed": mixed}, calibrate_on=held
    )
    assert {name: row.calibrated_on for name, row in found.sets.items()} == {"held": 100, "test": 0, "mixed": 25}


@given(
    st.integers(0, 10**7),
    st.floats(0, 4, allow_nan=False),
    st.integers(1, 70_000),
    st.sampled_from([2, 3, 10, 50_257]),
)
def test_the_file_pays_from_the_smallest_number_that_holds(model: int, mean: float, labels: int, classes: int) -> None:
    bits = mean * labels
    found = pays_from(model, bits, labels, classes)
    each, uniform = Fraction(bits) / labels, Fraction(math.log2(classes))
    if each >= uniform:
        assert found is None
    else:
        assert found is not None
        assert model + found * each < found * uniform
        assert found == 1 or model + (found - 1) * each >= (found - 1) * uniform


def test_a_network_that_says_nothing_never_pays() -> None:
    data = torch.zeros(20, 4), torch.arange(4).repeat(5)
    found = gs.measure.description_length(1, lambda x: x, {"train": data})
    assert found.sets["train"].label_bits == found.sets["train"].uniform_bits == 40
    assert found.pays_from == {"train": None}


def test_positions_of_sequences_are_labels() -> None:
    logits, targets = noisy(120, 0)
    flat = gs.measure.description_length(9, lambda x: x, {"text": (logits, targets)})
    text = (logits.reshape(20, 6, 5), targets.reshape(20, 6))
    assert gs.measure.description_length(9, lambda x: x, {"text": text}, batch=3) == flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "sets: found none"),
        ({"file": "no/such.gsm"}, "no/such.gsm: found no file"),
        ({"file": -1}, "file: found -1"),
        ({"dense_bytes": "big"}, "big: found no file"),
        ({"free": "architecture"}, "free: found 'architecture'"),
        ({"classes": 4}, "test: found logits of 5 classes, expected 4"),
        ({"dense": lambda x: x[:, :3]}, "dense network, test: found logits of 3 classes, expected 5"),
        ({"calibrate_on": (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))}, "calibrate_on: found 0 inputs"),
        ({"model": lambda x: x / 0}, "test: found .* not finite"),
        ({"sets": {"test": ([1.0], torch.tensor([0]))}}, "test: found inputs and targets of list and Tensor"),
    ],
)
def test_what_cannot_be_coded_is_named(change: dict[str, object], message: str) -> None:
    data = torch.ones(6, 5), torch.arange(6) % 4
    asked = {"file": 10, "model": lambda x: x, "sets": {"test": data}} | change
    with pytest.raises(gs.DataError, match=message):
        gs.measure.description_length(**asked)  # type: ignore[arg-type]


def test_on_photos_a_small_file_pays_and_the_dense_one_does_not(tmp_path: Path) -> None:
    fashion = load_fashion()
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    train = fashion.train[:8000], fashion.train_labels[:8000]
    held = fashion.train[8000:], fashion.train_labels[8000:]
    test = fashion.test, fashion.test_labels
    loader = [(train[0][i : i + 100], train[1][i : i + 100]) for i in range(0, 8000, 100)]
    recipe = [gs.Tune(epochs=2, lr=1e-3), gs.prune.Magnitude(sparsity=0.9), gs.Tune(epochs=1, lr=1e-3),
              gs.share.KMeans(bits=3)]  # fmt: skip
    small = gs.compress(dense, recipe, data=loader)
    small.save(tmp_path / "small.gsm")
    network = gs.load(tmp_path / "small.gsm", into=dense).dense()
    trained = gs.compress(dense, recipe[:1], data=loader).dense()
    found = gs.measure.description_length(
        tmp_path / "small.gsm", network, {"train": train, "test": test},
        calibrate_on=held, dense=trained, dense_bytes=7850 * 4,
    )  # fmt: skip
    assert found.two_part_bits["train"] < found.sets["train"].uniform_bits
    pays, never = found.pays_from["train"], found.dense_two_part_bits
    assert pays is not None
    assert pays < 8000
    assert never is not None
    assert never["train"] > found.sets["train"].uniform_bits
    assert {row.calibrated_on for row in found.sets.values()} == {0}
