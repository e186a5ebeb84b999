"""Entropy-constrained vectors against the textbook iteration, against scalars and k-means, and against the file."""

from __future__ import annotations

from math import log, log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from methods.harness import one, seen
from torch import Tensor, nn

import gossamer as gs
from gossamer.coding import encode_symbols, order0_bits
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Encoding, VectorCodebook
from gossamer.errors import PlanError
from gossamer.methods.quantize import RateDistortion, VectorRateDistortion
from gossamer.methods.quantize.rate_codes import Codes, Vectors, settled, thinned
from gossamer.methods.quantize.rate_size import coded_bytes
from gossamer.methods.quantize.vector_rate_distortion import codebook, place_bits
from gossamer.methods.vector_means import cluster

Array = np.ndarray[Any, Any]


def gauss(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def laplace(rows: int, columns: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=g).log() * torch.randn(rows, columns, generator=g).sign() * 0.05


def lost(made: Encoding, weight: Tensor) -> float:
    return float((made.to_dense() - weight).double().square().sum() / weight.double().square().sum())


def vectors_of(made: Encoding) -> VectorCodebook:
    assert isinstance(made, VectorCodebook)
    return made


def textbook(x: Array, w: Array, points: Array, lengths: Array, rate: float, table: float, rounds: int) -> float:
    """Chou, Lookabaugh, Gray 1989, section III, with a fee for each code; the least sum of all rounds."""
    totals = []
    for _ in range(rounds):
        cost = (w[:, None] * np.square(x[:, None] - points)).sum(2) + rate * lengths
        index = cost.argmin(1)
        used = np.unique(index)
        points = np.array([(w * x)[index == k].sum(0) / w[index == k].sum(0) for k in used])
        lengths = np.array([-np.log2((index == k).mean()) for k in used])
        index = np.searchsorted(used, index)
        totals.append((w * np.square(x - points[index])).sum() + rate * (lengths[index].sum() + table * len(used)))
    return min(totals)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_choices_means_and_counts_are_those_of_the_textbook(rate: float, alike: bool, dim: int) -> None:
    random = np.random.default_rng(dim)
    x = random.laplace(size=(80, dim))
    w = np.full((80, dim), 0.7) if alike else random.uniform(0.1, 2, size=(80, dim))
    points, lengths = x[:12].copy(), np.full(12, 3.5)
    vectors = Vectors(torch.from_numpy(x), torch.tensor([[0.7]], dtype=torch.float64) if alike else torch.from_numpy(w))
    codes = Codes(torch.from_numpy(points), torch.from_numpy(lengths))
    once = settled(vectors, codes, rate, 2.0, 1).total
    assert once == pytest.approx(textbook(x, w, points, lengths, rate, 2.0, 1), rel=1e-9)
    often = settled(vectors, codes, rate, 2.0, 30).total
    assert often == pytest.approx(textbook(x, w, points, lengths, rate, 2.0, 30), rel=5e-3)  # one settles, one goes on
    assert often <= once


def test_codes_go_that_save_less_than_their_place_in_the_table_takes() -> None:
    vectors = Vectors(laplace(500, 2).double() * 20, torch.ones(1, 1).double())
    start = settled(vectors, Codes(vectors.values[:64], torch.full((64,), 6.0).double()), 0.1, 0.0, 10)
    counts = []
    for table in (0.0, 10.0, 100.0, 1e6):
        before = start.total + 0.1 * table * len(start.codes.points)
        again = settled(vectors, start.codes, 0.1, table, 1)
        fewer = thinned(vectors, again, 0.1, table)
        counts.append(len(fewer.codes.points))
        assert fewer.total <= min(before, again.total) * (1 + 1e-9)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 1


@pytest.mark.parametrize("rate", [3e-7, 3e-6, 2e-5])
def test_error_and_bits_together_are_no_more_than_those_of_k_means(rate: float) -> None:
    weight = laplace(96, 128)
    made = vectors_of(one(VectorRateDistortion(rate=rate, dim=2, scale_dtype="float32"), weight))
    place = place_bits(2)

    def total(off: float, index: Array, codes: int) -> float:
        return off + rate * (order0_bits(index) + place * codes)

    mine = total(lost(made, weight), made.index.numpy(), made.entries())
    x = weight.reshape(-1, 2).double().numpy()
    for k in (2, 4, 16, 64, 256):
        centroids, index = cluster(x, k, 30, 1)
        off = float(np.square(x - centroids[index]).sum() / np.square(x).sum())
        assert mine <= total(off, index.astype(np.uint8), k)


def test_at_few_bits_runs_lose_less_than_scalars_in_as_many_bytes() -> None:
    """Independent normal weights, everything counted as the file codes it."""
    weight = gauss(384, 512)
    rate = 2e-6  # about a bit per weight
    scalar = one(RateDistortion(rate=rate, values="centroids", scale_dtype="float16"), weight)
    runs = one(VectorRateDistortion(rate=rate), weight)
    assert vectors_of(runs).table.dense_shape()[2] > 1
    off, size = lost(scalar, weight), coded_bytes(scalar)
    assert 0.5 < 8 * size / weight.numel() < 1.5
    at_that_size = lost(runs, weight) + rate * 8 * (coded_bytes(runs) - size)  # along the slope that both stand at
    assert 0.15 < 10 * log10(off / at_that_size) < 1.53


@pytest.mark.parametrize(
    ("draw", "bits", "least"), [(gauss, 0.7, 0.15), (gauss, 1.2, 0.25), (laplace, 0.3, 0.0), (laplace, 0.9, 0.1)]
)
def test_four_weights_lie_between_scalars_and_what_dimension_can_give(draw: Any, bits: float, least: float) -> None:
    """Without the table: gains of the vectors alone, small at low rates and smallest where weights are Laplace."""
    x = draw(128, 512).double().reshape(-1)
    each, n = x.square().sum().reciprocal().reshape(1), len(x)
    rate = 2 * log(2) * 2 ** (-2 * bits) / n
    scalar, runs = (codebook(x, each, dim, rate, 0.0, 256, 0) for dim in (1, 4))
    off = scalar.total - rate * scalar.bits
    at_that_rate = runs.total - rate * scalar.bits
    assert least < 10 * log10(off / at_that_rate) < 1.53
    if draw is gauss:  # no code is better than Shannon's bound; 256 codes learn a little from 65,536 weights
        assert -10 * log10(runs.total - rate * runs.bits) < 20 * log10(2) * runs.bits / n + 0.1


def test_neighbours_with_much_in_common_take_far_fewer_bits() -> None:
    weight = gauss(128, 128).repeat_interleave(4, 1) + 0.02 * gauss(128, 512, 1)
    rate = 3e-6
    scalar, runs = one(RateDistortion(rate=rate), weight), one(VectorRateDistortion(rate=rate), weight)
    assert vectors_of(runs).table.dense_shape()[2] == 4
    assert lost(runs, weight) < lost(scalar, weight)
    assert coded_bytes(runs) < 0.6 * coded_bytes(scalar)


def test_small_tensors_take_no_long_runs_as_their_table_would_not_pay() -> None:
    made = vectors_of(one(VectorRateDistortion(rate=3e-4), gauss(24, 24)))
    assert made.table.dense_shape()[2] == 1
    assert made.entries() < 12


def test_the_file_codes_the_index_at_its_order_0_entropy_or_below() -> None:
    made = vectors_of(one(VectorRateDistortion(rate=2e-6, dim=2), laplace(256, 256)))
    index = made.index.numpy()
    assert 8 * encode_symbols(index).nbytes < 1.005 * order0_bits(index) + 8 * (made.entries() + 40)


def test_the_few_vectors_that_a_sample_does_not_show_are_kept() -> None:
    weight = gauss(600, 512)
    weight[311, 100:102] = torch.tensor([4.0, -3.0])
    made = one(VectorRateDistortion(rate=1e-6, dim=2), weight).to_dense()
    torch.testing.assert_close(made[311, 100:102], weight[311, 100:102], rtol=0.05, atol=0)


def test_errors_measured_by_inputs_lose_less_of_the_outputs() -> None:
    weight = laplace(64, 96)
    inputs = torch.randn(300, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 96)

    def found(rate: float, kind: str) -> tuple[float, float]:
        made = vectors_of(one(VectorRateDistortion(rate=rate, dim=2, inputs=kind), weight, seen(inputs)))  # type: ignore[arg-type]
        off = inputs @ (made.to_dense() - weight).T
        return float(off.square().sum() / (inputs @ weight.T).square().sum()), order0_bits(made.index.numpy())

    by_inputs, bits = found(1e-5, "sq")
    plain = [found(r, "equal") for r in (1e-5, 3e-5, 1e-4, 3e-4)]
    assert any(b >= bits for _, b in plain)
    assert by_inputs < 0.7 * min(off for off, b in plain if b <= bits * 1.05)


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(120, 200), nn.ReLU(), nn.Linear(200, 90), nn.ReLU(), nn.Linear(90, 10))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(laplace(p.shape[0], p[0].numel(), i).view(p.shape))
    return made


def test_the_file_is_within_a_hundredth_of_its_target(tmp_path: Path) -> None:
    model = network()
    dense = sum(4 * p.numel() for p in model.parameters())
    small = gs.compress(model, [VectorRateDistortion(target="14x")])
    size = small.save(tmp_path / "a.gsm")
    assert abs(size * 14 / dense - 1) < 0.01
    again = gs.load(tmp_path / "a.gsm", into=network)
    for name, tree in small.trees.items():
        assert torch.equal(again.trees[name].to_dense(), tree.to_dense())


def test_a_price_that_leaves_one_code_and_columns_that_no_run_divides_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"w: found a price of 1e\+03 per bit.*skip='w'"):
        one(VectorRateDistortion(rate=1e3), gauss(24, 24))
    mixed = nn.Sequential(nn.Linear(9, 24), nn.Linear(24, 24))
    small = gs.compress(mixed, [VectorRateDistortion(rate=1e-4, dim=2)])
    assert "found 9 columns, expected a multiple of dim 2 (dim may be [1, 3, 9])" in small.skipped["0.weight"]
    assert vectors_of(one(VectorRateDistortion(rate=1e-4), gauss(24, 9))).table.dense_shape()[2] == 1
    with pytest.raises(PlanError, match="which float16 cannot hold"):
        one(VectorRateDistortion(rate=1e-4), 1e7 * gauss(24, 24))
    assert not bool(one(VectorRateDistortion(rate=1e-4), torch.zeros(8, 8)).to_dense().any())


def test_a_recipe_file_names_it() -> None:
    recipe = [VectorRateDistortion(target="8x", dim=(2, 4)), VectorRateDistortion(rate=1e-6, dim=2)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
