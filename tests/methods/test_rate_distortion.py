"""Rate–distortion quantization against its definition, and against the file that it leaves."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from methods.harness import one, result_on, seen
from torch import Tensor, nn

import gossamer as gs
from gossamer.coding import order0_bits
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Affine, Codebook, Encoding, Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method
from gossamer.methods.prune import Random
from gossamer.methods.quantize import RateDistortion, RoundToNearest
from gossamer.methods.quantize.rate_levels import cheapest


def laplace(rows: int, columns: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=g).log() * torch.randn(rows, columns, generator=g).sign() * 0.05


def symbols_of(made: Encoding) -> Tensor:
    value = made.value if isinstance(made, Masked) else made
    assert isinstance(value, (Affine, Codebook))
    return value.q if isinstance(value, Affine) else value.index


def objective(made: Encoding, weight: Tensor, rate: float) -> float:
    lost = float((made.to_dense() - weight).double().square().sum() / weight.double().square().sum())
    return lost + rate * order0_bits(symbols_of(made).numpy())


@pytest.mark.parametrize("rate", [1e-7, 1e-6, 1e-5, 6e-5])
@pytest.mark.parametrize("values", ["grid", "centroids"])
def test_error_and_bits_together_are_less_than_those_of_any_rounding(rate: float, values: str) -> None:
    weight = laplace(60, 80)
    mine = objective(one(RateDistortion(rate=rate, values=values, entries=256), weight), weight, rate)  # type: ignore[arg-type]
    for bits, symmetric in itertools.product(range(2, 9), (True, False)):
        rounded = one(RoundToNearest(bits=bits, group="tensor", symmetric=symmetric), weight)
        assert mine < objective(rounded, weight, rate) * 1.001  # steps are searched in steps of 4%


def test_free_centroids_are_no_worse_than_the_grid() -> None:
    weight = laplace(100, 100)
    for rate in (1e-6, 1e-5):
        grid = objective(one(RateDistortion(rate=rate), weight), weight, rate)
        free = objective(one(RateDistortion(rate=rate, values="centroids"), weight), weight, rate)
        assert free <= grid * 1.002


@pytest.mark.parametrize("group", ["tensor", "channel", 16])
def test_a_dearer_bit_means_fewer_bits_more_zeros_and_more_error(group: str | int) -> None:
    weight = laplace(64, 48) * torch.linspace(0.5, 2, 64)[:, None]
    bits, zeros, lost = [], [], []
    for rate in (1e-7, 1e-6, 1e-5, 4e-5):
        made = one(RateDistortion(rate=rate, group=group), weight)  # type: ignore[arg-type]
        bits.append(order0_bits(symbols_of(made).numpy()))
        zeros.append(int((made.to_dense() == 0).sum()))
        lost.append(float((made.to_dense() - weight).square().sum()))
    assert bits == sorted(bits, reverse=True)
    assert zeros == sorted(zeros)
    assert lost == sorted(lost)


def test_rows_of_different_sizes_gain_from_steps_of_their_own() -> None:
    weight = laplace(64, 200) * torch.logspace(-1.5, 0.5, 64)[:, None]
    inputs = torch.randn(500, 200, generator=torch.Generator().manual_seed(1))
    whole, rows = (
        one(RateDistortion(rate=1e-6, group=g, inputs="gram"), weight, seen(inputs))  # type: ignore[arg-type]
        for g in ("tensor", "channel")
    )
    for made in (whole, rows):
        assert bool(made.to_dense().isfinite().all())
    assert isinstance(rows, Affine)
    assert rows.scale.dense_shape() == (64,)


def test_errors_that_later_columns_make_up_for_lose_less_of_the_outputs() -> None:
    weight = laplace(40, 60)
    g = torch.Generator().manual_seed(2)
    inputs = torch.randn(400, 8, generator=g) @ torch.randn(8, 60, generator=g) + 0.1 * torch.randn(
        400, 60, generator=g
    )

    def totals(kind: str, rate: float) -> tuple[float, float]:
        made = one(RateDistortion(rate=rate, inputs=kind), weight, seen(inputs))  # type: ignore[arg-type]
        off = inputs @ (made.to_dense() - weight).T
        lost = float(off.square().sum() / (inputs @ weight.T).square().sum())
        return lost, order0_bits(symbols_of(made).numpy())

    lost, bits = totals("gram", 1e-6)
    # at least as many bits without the inputs, and yet far more lost
    plain = min((totals("equal", r) for r in (1e-7, 3e-7, 1e-6, 3e-6, 1e-5)), key=lambda t: (t[1] < bits, t[1]))
    assert plain[1] >= bits
    assert lost < plain[0] / 3


def of_loss(inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """Statistics of a layer whose output i reacts with ``outputs[i]``, at every sample alike."""
    known = dict(seen(inputs))
    return known | {"grad_sq": outputs[:, None] * known["sq"]}


@pytest.mark.parametrize("kind", ["equal", "sq", "gram"])
def test_errors_weighted_by_the_loss_are_spent_where_it_reacts_least(kind: str) -> None:
    weight = laplace(40, 60)
    inputs = torch.randn(400, 60, generator=torch.Generator().manual_seed(3))
    outputs = torch.logspace(-2, 2, 40)

    def loss_and_bits(method: Method) -> tuple[float, float]:
        made = one(method, weight, of_loss(inputs, outputs))
        off = (inputs @ (made.to_dense() - weight).T).square().sum(0)
        return float(off @ outputs), order0_bits(symbols_of(made).numpy())

    lost, bits = loss_and_bits(RateDistortion(rate=0.1, inputs=kind, weighted="loss"))  # type: ignore[arg-type]
    plain = [loss_and_bits(RateDistortion(rate=r, inputs=kind)) for r in (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)]  # type: ignore[arg-type]
    assert min(b for _, b in plain) < bits < max(b for _, b in plain)
    assert lost < 0.7 * min(found for found, b in plain if b <= bits * 1.02)


def test_rows_that_the_loss_reacts_to_have_finer_steps() -> None:
    weight = laplace(40, 60)
    inputs = torch.randn(400, 60, generator=torch.Generator().manual_seed(3))
    outputs = torch.logspace(-1, 1, 40)
    made = one(RateDistortion(rate=0.01, weighted="loss", group="channel"), weight, of_loss(inputs, outputs))
    assert isinstance(made, Affine)
    steps = made.scale.to_dense()
    assert float(steps[-1]) < float(steps[0]) / 3


@pytest.mark.parametrize("bits", [0, 2])
def test_steps_of_few_bits_cut_no_value_off(bits: int) -> None:
    weight = laplace(64, 48) * torch.logspace(-1, 1, 64)[:, None]
    # bits next to free: steps are as fine as eight bits allow
    made = one(RateDistortion(rate=1e-12, group="channel", scale_dtype="bfloat16", step_bits=bits), weight)
    assert isinstance(made, Affine)
    steps = made.scale.to_dense().float()
    mantissas = torch.frexp(steps).mantissa * (2 << bits)
    assert torch.equal(mantissas, mantissas.round())
    assert bool(((made.to_dense() - weight).abs() <= steps[:, None] * 1.01).all())


def test_one_price_for_all_layers_gives_bits_to_those_the_loss_reacts_to() -> None:
    weight = laplace(40, 60)
    inputs = torch.randn(400, 60, generator=torch.Generator().manual_seed(4))
    evidence = {name: of_loss(inputs, torch.full((40,), cost)) for name, cost in (("a", 1.0), ("b", 100.0))}
    made = result_on(RateDistortion(rate=0.3, weighted="loss"), {"a": weight, "b": weight.clone()}, evidence)
    bits = {name: order0_bits(symbols_of(found).numpy()) / 2400 for name, found in made.items()}
    # a hundredfold cost is a tenth of the step: log2(10) bits where they are many
    assert 2 < bits["b"] - bits["a"] < 3.5


def test_the_loss_says_nothing_of_vectors() -> None:
    with pytest.raises(CompositionError, match="matches no layer"):
        gs.compress(
            nn.Linear(3, 4),
            [RateDistortion(rate=1.0, weighted="loss", only="bias")],
            data=[(torch.randn(4, 3), torch.zeros(4).long())],
        )


@pytest.mark.parametrize("price", [0.05, 1.0, 30.0])
def test_choices_at_a_price_each_are_the_cheapest_of_all(price: float) -> None:
    g = torch.Generator().manual_seed(5)
    points = torch.arange(-40, 41).double()
    points[60:] += 0.5
    lengths = 12 * torch.rand(81, generator=g).double()
    lengths[::7] = torch.inf
    values = 15 * torch.randn(6000, generator=g).double()
    prices = price * torch.rand(6000, generator=g).double() ** 3
    costs = (values[:, None] - points).square() + prices[:, None] * lengths
    found = cheapest(values, prices, points, lengths)
    assert torch.equal(costs.gather(1, found[:, None])[:, 0], costs.min(1).values)


@pytest.mark.parametrize("zeros", ["level", "mask"])
@pytest.mark.parametrize("values", ["grid", "centroids"])
def test_pruned_weights_stay_zero_and_a_mask_says_which_others_are(values: str, zeros: str) -> None:
    weight = laplace(50, 40)
    pruned = one(Random(sparsity=0.6, seed=0), weight)
    assert isinstance(pruned, Masked)
    made = one(RateDistortion(rate=3e-4, values=values, zeros=zeros), pruned)  # type: ignore[arg-type]
    assert isinstance(made, Masked)
    dense = made.to_dense()
    assert not bool(dense[~pruned.where.mask()].any())
    if zeros == "mask":
        assert bool((dense != 0).equal(made.where.mask()))
        assert int(made.where.mask().sum()) < int(pruned.where.mask().sum())
    same = one(RateDistortion(rate=3e-4, values=values), pruned)  # type: ignore[arg-type]
    assert torch.equal(same.to_dense(), dense)


def network(biases: int = 1) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(120, 200), nn.ReLU(), nn.Linear(200, 90), nn.ReLU(), nn.Linear(90, 10))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(laplace(p.shape[0], p[0].numel(), i).view(p.shape))
    return made


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, "6x"),
        ({}, 9_000),
        ({"zeros": "mask"}, "14x"),
        ({"values": "centroids", "scale_dtype": "float16", "entries": 128}, "8x"),
        ({"group": "channel"}, "12x"),
    ],
    ids=str,
)
def test_the_file_is_within_a_hundredth_of_its_target(settings: dict, target: str | int, tmp_path: Path) -> None:
    model = network()
    dense = sum(4 * p.numel() for p in model.parameters())
    wanted = dense / float(target[:-1]) if isinstance(target, str) else target
    size = gs.compress(model, [RateDistortion(target=target, **settings)]).save(tmp_path / "a.gsm")
    assert abs(size / wanted - 1) < 0.01


def test_the_budget_counts_what_is_not_touched(tmp_path: Path) -> None:
    model = network()
    some = RateDistortion(target="5x", only="0.weight")
    size = gs.compress(model, [RoundToNearest(bits=8, only="2.weight"), some]).save(tmp_path / "a.gsm")
    assert abs(size * 5 / sum(4 * p.numel() for p in model.parameters()) - 1) < 0.01
    with pytest.raises(PlanError, match="tensors that it does not touch"):
        gs.compress(model, [RateDistortion(target="20x", only="0.weight")])


def test_inputs_count_in_a_target_too(tmp_path: Path) -> None:
    data = [
        (torch.randn(200, 120, generator=torch.Generator().manual_seed(i)), torch.zeros(200).long()) for i in (0, 1)
    ]
    model = network()
    size = gs.compress(model, [RateDistortion(target="10x", inputs="gram")], data=data).save(tmp_path / "a.gsm")
    assert abs(size * 10 / sum(4 * p.numel() for p in model.parameters()) - 1) < 0.01


def test_a_price_at_which_a_layer_would_die_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"w: found a price .* all its weights are zero"):
        one(RateDistortion(rate=1.0), laplace(30, 30))


def test_a_target_beyond_reach_says_what_is_possible() -> None:
    with pytest.raises(PlanError, match="expected at least"):
        gs.compress(network(), [RateDistortion(target=100)])


def test_weights_of_zeros_and_of_one_number_are_exact() -> None:
    made = result_on(RateDistortion(rate=1e-6), {"zeros": torch.zeros(4, 5), "one": torch.full((6, 7), 0.25)})
    assert not bool(made["zeros"].to_dense().any())
    torch.testing.assert_close(made["one"].to_dense(), torch.full((6, 7), 0.25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected one of them"),
        ({"rate": 1e-6, "target": "8x"}, "expected one of them"),
        ({"rate": 0.0}, "above 0"),
        ({"target": "8"}, "a ratio above 1"),
        ({"target": "0.5x"}, "a ratio above 1"),
        ({"target": 0}, "positive number of bytes"),
        ({"rate": 1e-6, "values": "vectors"}, "values: found"),
        ({"rate": 1e-6, "values": "centroids", "group": "channel"}, "beside centroids"),
        ({"rate": 1e-6, "entries": 1}, "2 to 256"),
        ({"rate": 1e-6, "inputs": "all"}, "inputs: found"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        RateDistortion(**settings)


def test_a_recipe_file_names_it() -> None:
    recipe: list[Method] = [RateDistortion(target="12x", group="channel", inputs="gram", zeros="mask")]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
