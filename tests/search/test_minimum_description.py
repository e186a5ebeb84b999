"""Recipes are judged by files that were really written and read, failures are listed, validation takes no part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.api import Compressed
from gossamer.demo.data import load_fashion
from gossamer.search import Choice

Pair = tuple[Tensor, Tensor]


def task(rows: int, seed: int) -> Pair:
    """The class is the largest of the first four inputs; twenty others say nothing."""
    inputs = torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :4].argmax(1)


def network() -> nn.Module:
    """Solves it, with small weights that are noise."""
    model = nn.Linear(24, 4)
    generator = torch.Generator().manual_seed(0)
    model.weight.data = 0.05 * torch.randn(4, 24, generator=generator)
    model.weight.data[:, :4] += 8 * torch.eye(4)
    nn.init.zeros_(model.bias)
    return model


RECIPES = {
    "whole": [],
    "a few": [gs.prune.Magnitude(sparsity=0.95)],
    "fewer than it takes": [gs.prune.Magnitude(sparsity=0.98)],
    "impossible": [gs.factorize.SVD(rank=99)],
}


def chosen(**settings: object) -> Choice:
    asked = {"data": task(600, 1), "validation": task(300, 2)} | settings
    return gs.search.by_description_length(network(), RECIPES, **asked)  # type: ignore[arg-type]


def test_the_shortest_code_wins_and_every_candidate_is_listed() -> None:
    found = chosen()
    assert [row.name for row in found.rows] == list(RECIPES)
    bits = {row.name: row.bits for row in found.rows if row.bits is not None}
    assert set(bits) == {"whole", "a few", "fewer than it takes"}
    assert found.best.name == "a few" == min(bits, key=bits.__getitem__)
    for row in found.rows:
        if row.description is not None:
            labels = row.description.sets["train"].label_bits
            assert row.bits == 8 * row.description.file_bytes + labels
            assert row.validation is not None
            assert row.validation.count == 300


def test_a_recipe_that_fails_is_listed_with_its_error() -> None:
    failed = chosen().rows[-1]
    assert failed.error is not None
    assert failed.error.startswith("CompositionError: recipe entry 1 (SVD)")
    assert failed.bits is failed.description is failed.validation is None


def test_the_winner_is_the_network_of_its_file(tmp_path: Path) -> None:
    found = chosen()
    description = found.best.description
    assert description is not None
    assert found.compressed.save(tmp_path / "best.gsm") == description.file_bytes
    assert found.compressed.ledger().file_bytes == description.file_bytes
    again = gs.load(tmp_path / "best.gsm", into=network()).dense()
    found_again = gs.measure.description_length(tmp_path / "best.gsm", again, {"train": task(600, 1)})
    assert found_again.two_part_bits["train"] == found.best.bits


def test_files_are_judged_and_not_what_was_in_memory() -> None:
    class Broken(Compressed):  # type: ignore[misc]  # final for users
        def save(self, path: str | Path, *, plan: bool = False) -> int:
            written = super().save(path, plan=plan)
            content = bytearray(Path(path).read_bytes())
            content[-1] ^= 1
            Path(path).write_bytes(content)
            return written

    def compress(model: nn.Module, recipe: list[object]) -> Compressed:
        small = gs.compress(model, recipe)  # type: ignore[arg-type]
        return Broken(small.specs, small.trees, model) if recipe else small

    found = chosen(compress=compress)
    assert found.best.name == "whole"
    assert all(row.error is not None and "FormatError" in row.error for row in found.rows[1:3])


def test_validation_takes_no_part_in_the_choice() -> None:
    inputs, targets = task(300, 2)
    found, shuffled = chosen(), chosen(validation=(inputs, (targets + 1) % 4))
    assert [row.bits for row in found.rows] == [row.bits for row in shuffled.rows]
    assert found.best.name == shuffled.best.name
    assert shuffled.best.validation is not None
    assert shuffled.best.validation.value < 0.25


def test_the_networks_generators_and_model_are_left_as_they_were() -> None:
    model = network().train()
    before = model.weight.detach().clone()  # type: ignore[union-attr, operator]
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    tuned = {"tuned": [gs.prune.Magnitude(sparsity=0.9), gs.Tune(epochs=1)]}
    first, second = (
        gs.search.by_description_length(model, tuned, data=task(200, 1), validation=task(100, 2)) for _ in range(2)
    )
    assert first.best.bits == second.best.bits
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(model.weight, before)  # type: ignore[arg-type]
    assert model.training


def test_calibrated_labels_pay_for_their_temperature() -> None:
    found = chosen(calibrate=True)
    for row in found.rows:
        if row.description is not None:
            described = row.description.sets["train"]
            assert described.label_bits_calibrated is not None
            assert row.bits == row.description.model_bits + 32 + described.label_bits_calibrated
            assert described.calibrated_on == described.labels  # fitted on what it codes, and so it says


def test_baselines_and_document() -> None:
    found = chosen()
    assert found.uniform_bits == 600 * 2
    assert found.pays == (found.best.bits is not None and found.best.bits < 1200)
    assert found.dense.description is not None
    assert found.dense.description.file_bytes > 100 * 4
    document = found.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["best"] == "a few"
    table = str(found)
    assert all(name in table for name in (*RECIPES, "dense", "uniform labels"))
    assert "impossible          failed: CompositionError" in table


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(gs.PlanError, match="recipes: found none"):
        gs.search.by_description_length(network(), {}, data=task(9, 1), validation=task(9, 2))
    for recipes in (list(RECIPES.values()), gs.prune.Magnitude(sparsity=0.5)):
        with pytest.raises(gs.PlanError, match=r"recipes: found (list|Magnitude), expected a mapping from names"):
            gs.search.by_description_length(network(), recipes, data=task(9, 1), validation=task(9, 2))  # type: ignore[arg-type]
    with pytest.raises(gs.DataError, match="train: found list of 3, expected two tensors"):
        chosen(data=[task(9, 1)] * 3)
    with pytest.raises(gs.PlanError, match="recipes: all failed: no: CompositionError"):
        gs.search.by_description_length(
            network(), {"no": [gs.factorize.SVD(rank=99)]}, data=task(9, 1), validation=task(9, 2)
        )
    with pytest.raises(gs.DataError, match="validation: found 0 inputs"):
        chosen(validation=(torch.zeros(0, 24), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(gs.PlanError, match="train_batch: found 0"):
        chosen(train_batch=0)


def test_on_photos_it_finds_the_hill_between_too_many_weights_and_too_few() -> None:
    fashion = load_fashion()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    train = fashion.train[:8000], fashion.train_labels[:8000]
    loader = [(train[0][i : i + 100], train[1][i : i + 100]) for i in range(0, 8000, 100)]
    model = gs.compress(model, [gs.Tune(epochs=2, lr=1e-3)], data=loader).dense()
    recipes = {
        f"{sparsity:.1%}": [gs.prune.Magnitude(sparsity=sparsity), gs.Tune(epochs=1, lr=1e-3), gs.share.KMeans(bits=3)]
        for sparsity in (0.5, 0.9, 0.995)
    }
    found = gs.search.by_description_length(
        model, recipes, data=train, validation=(fashion.train[8000:], fashion.train_labels[8000:])
    )
    sizes = [row.description.file_bytes for row in found.rows if row.description is not None]
    assert sizes == sorted(sizes, reverse=True)
    assert found.best.name == "90.0%"
    assert found.pays
