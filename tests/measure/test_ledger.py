"""Every byte of the file is in exactly one category."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import gossamer as gs
from gossamer.measure import accuracy, interleaved, ledger_of
from gossamer.measure.latency import in_turns

RECIPES = {
    "lossless": [],
    "pruned and shared": [gs.prune.Magnitude(sparsity=0.8), gs.share.KMeans(bits=3)],
    "quantized in groups": [gs.quantize.RoundToNearest(bits=4, group=16, symmetric=False)],
    "low rank, pruned": [gs.factorize.SVD(rank=4), gs.prune.Magnitude(sparsity=0.5)],
    "channels, quantized": [gs.shrink.Channels(sparsity=0.5), gs.quantize.RoundToNearest(bits=8)],
    "one codebook": [gs.share.KMeans(bits=4, network_wide=True)],
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_categories_add_up_to_the_file(tmp_path: Path, recipe: list[object]) -> None:
    written = gs.compress(network(), recipe).save(tmp_path / "a.gsm")  # type: ignore[arg-type]
    ledger = ledger_of(tmp_path / "a.gsm")
    assert sum(ledger.categories.values()) == ledger.file_bytes == written == (tmp_path / "a.gsm").stat().st_size


def test_each_kind_of_byte_is_booked_where_it_belongs(tmp_path: Path) -> None:
    made = gs.compress(network(), [gs.factorize.SVD(rank=4, only="0.weight"), gs.prune.Magnitude(sparsity=0.5),
                                   gs.share.KMeans(bits=4, only="2.weight")])  # fmt: skip
    made.save(tmp_path / "a.gsm")
    spent = ledger_of(tmp_path / "a.gsm").categories
    for name in ("values", "codebooks", "masks and indices", "factors", "untouched tensors", "header"):
        assert spent[name] > 0, name
    assert spent["scales and zero points"] == 0
    assert spent["codebooks"] <= 16 * 4


def test_the_dense_baseline_is_the_file_that_safetensors_writes() -> None:
    model = network()
    ledger = gs.compress(model, []).ledger(zstd=True)
    assert ledger.dense_bytes == len(safetensors.torch.save(model.state_dict()))
    assert ledger.zstd19_bytes is not None
    assert 0 < ledger.zstd19_bytes < ledger.dense_bytes


def test_what_did_not_shrink_is_listed_with_the_reason() -> None:
    made = gs.compress(network(), [gs.prune.Magnitude(sparsity=0.9, skip="2.weight")])
    accounts = {t.name: t for t in made.ledger(zstd=False).tensors}
    assert "skipped by the recipe" in accounts["2.weight"].why
    assert "no method was applied" in accounts["0.bias"].why
    assert accounts["0.weight"].why == ""
    assert accounts["0.weight"].nonzero == pytest.approx(0.1, abs=1e-3)


def test_order_0_entropy_stands_beside_the_coded_size() -> None:
    torch.manual_seed(1)
    made = gs.compress(nn.Linear(400, 300), [gs.share.KMeans(bits=4)])
    account = next(t for t in made.ledger(zstd=False).tensors if t.name == "weight")
    assert account.entropy_bytes == pytest.approx(account.file_bytes, rel=0.01)


def test_accuracy_counts_right_answers_with_its_standard_error() -> None:
    scores = torch.eye(4).repeat(25, 1)
    labels = torch.tensor([0, 1, 2, 0]).repeat(25)
    found = accuracy(lambda x: x, scores, labels, batch=7)
    assert (found.correct, found.count) == (75, 100)
    assert found.standard_error == pytest.approx((0.75 * 0.25 / 100) ** 0.5)
    with pytest.raises(gs.DataError, match="samples, classes"):
        accuracy(lambda x: x[:, 0], scores, labels)


def test_timing_restores_threads_and_runs_all_in_turn() -> None:
    order: list[str] = []
    before = torch.get_num_threads()
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.01, threads=1)
    assert torch.get_num_threads() == before
    assert order[-4:] == ["a", "b", "a", "b"]
    assert found["a"].low_ms <= found["a"].median_ms <= found["a"].high_ms


def test_what_takes_twenty_times_as_long_does_not_take_part_in_every_turn() -> None:
    found = in_turns({"a": lambda n: [1.0] * n, "b": lambda n: [2.0] * n, "slow": lambda n: [99.0] * n}, seconds=0.0)
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "slow": [99.0]}
