"""Levels that a formula gives: powers of two, normal quantiles, casts; each against brute force over all levels."""

from __future__ import annotations

from math import log2
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one
from torch import nn

from gossamer.api import compress, load
from gossamer.drive import Tune
from gossamer.encoding import Dense, Masked, NormalLevels, PowerLevels
from gossamer.encoding.levels import normal_levels
from gossamer.errors import FormatError, PlanError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import Cast, NormalFloat, PowerOfTwo
from gossamer.network import attach, harvest, specs


def nearest_power(values: list[float], bits: int, *, log: bool) -> list[float]:
    """By comparing with every level."""
    largest = max(map(abs, values))
    if largest == 0:
        return [0.0] * len(values)
    distance = (lambda a, b: abs(log2(a) - log2(b))) if log else (lambda a, b: abs(a - b))
    top = min(range(-90, 40), key=lambda e: (distance(largest, 2.0**e), -e))
    levels = [2.0 ** (top - i) for i in range((1 << (bits - 1)) - 1)]
    found = []
    for v in values:
        small = abs(v) < levels[-1] / 2
        best = 0.0 if small else min(levels, key=lambda level: (distance(abs(v), level), -level))
        found.append(best if v > 0 else -best)
    return found


@pytest.mark.parametrize("log", [False, True])
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20), st.integers(2, 6))
def test_each_weight_goes_to_the_nearest_power(log: bool, values: list[float], bits: int) -> None:
    tiny = 2.0**-80
    values = [v if abs(v) > tiny else 0.0 for v in values]
    method = PowerOfTwo(bits=bits, group="tensor", nearest="log" if log else "linear")
    found = one(method, torch.tensor(values)).to_dense().tolist()
    for v, a, b in zip(values, found, nearest_power(values, bits, log=log), strict=True):
        # Half way in the logarithm is no float: next to it float64 may decide the other way.
        assert a == b or (log and abs(abs(log2(abs(v)) - log2(abs(a))) - 0.5) < 1e-6), v


def test_powers_of_two_are_exact_and_train_nothing() -> None:
    w = torch.tensor([[1.0, -0.5, 0.25, 0.0], [8.0, 4.0, -2.0, 0.0]])
    tree = one(PowerOfTwo(bits=3), w)
    assert torch.equal(tree.to_dense(), w)
    assert [f.tensor.dtype for f in tree.leaves()] == [torch.uint8, torch.int8]


def test_powers_hold_at_the_ends_of_the_range() -> None:
    for value in (3e38, -1e-20, 1e-38):
        found = one(PowerOfTwo(bits=6), torch.full((1, 4), value)).to_dense()
        assert bool(found.isfinite().all())
    with pytest.raises(FormatError, match="exponent -91"):
        PowerLevels(1, 1, torch.zeros(1, dtype=torch.uint8), torch.tensor([-91], dtype=torch.int8)).validate()


def test_normal_levels_are_the_quantiles_and_four_bits_are_nf4() -> None:
    def quantiles(p: torch.Tensor) -> torch.Tensor:
        return torch.special.ndtri(p.double())

    for bits in range(2, 9):
        n = 1 << bits
        outermost = 1 - (1 / n + 1 / (n - 1)) / 4
        above = quantiles(torch.linspace(outermost, 0.5, n // 2 + 1, dtype=torch.float64)[:-1])
        below = -quantiles(torch.linspace(outermost, 0.5, n // 2, dtype=torch.float64)[:-1])
        expected = torch.cat([above, torch.zeros(1), below]).sort().values / above.max()
        torch.testing.assert_close(torch.tensor(normal_levels(bits)), expected.float(), rtol=0, atol=1e-6)
        assert len(normal_levels(bits)) == n
    # the table of QLoRA, appendix E
    nf4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    nf4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    torch.testing.assert_close(torch.tensor(normal_levels(4)), torch.tensor(nf4), rtol=0, atol=2e-6)


def test_no_normal_level_is_so_near_a_rounding_edge_that_another_library_could_round_it_otherwise() -> None:
    for bits in range(2, 9):
        n = 1 << bits
        outermost = 1 - (1 / n + 1 / (n - 1)) / 4
        top = NormalDist().inv_cdf(outermost)
        for count in (n // 2, n // 2 - 1):
            for i in range(count):
                scaled = NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / count) / top * 2**20
                assert abs(scaled % 1 - 0.5) > 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("pruned", [False, True])
def test_each_weight_goes_to_the_nearest_normal_level(bits: int, pruned: bool) -> None:
    torch.manual_seed(bits)
    w = torch.randn(5, 14)
    tree = one(Magnitude(sparsity=0.5), w) if pruned else Dense(w)
    mask = tree.where.mask() if isinstance(tree, Masked) else torch.ones(5, 14, dtype=torch.bool)
    found = one(NormalFloat(bits=bits, group=6), tree).to_dense()
    levels = torch.tensor(normal_levels(bits))
    for r in range(5):
        for start in (0, 6, 12):
            part = slice(start, start + 6)
            live = w[r, part][mask[r, part]]
            if len(live):
                reachable = levels * live.abs().max()
                best = (live[:, None] - reachable).abs().min(1).values
                torch.testing.assert_close((found[r, part][mask[r, part]] - live).abs(), best, rtol=1e-4, atol=1e-6)
    assert not bool(found[~mask].any())


def test_the_levels_of_a_group_cost_its_scale_and_nothing_else() -> None:
    tree = one(NormalFloat(bits=4, group=64), torch.randn(3, 128))
    assert isinstance(tree, NormalLevels)
    assert tree.size_bits() == 3 * 128 * 4 + 6 * 32
    with pytest.raises(FormatError, match="index 16"):
        NormalLevels(1, 1, torch.tensor([16], dtype=torch.uint8), Dense(torch.ones(1))).validate()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_cast_is_torchs_and_survives_attaching_training_and_the_file(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    recipe = [Magnitude(sparsity=0.5, only="2.weight"), Cast(dtype=name), Tune()]  # type: ignore[arg-type]
    small = compress(model, recipe, data=data)
    small.save(tmp_path / "w.gsm")
    again = load(tmp_path / "w.gsm", into=model)
    expected = model[0].weight.detach().to(dtype)
    for tree in (small.trees["0.weight"], again.trees["0.weight"]):
        assert isinstance(tree, Dense)
        assert torch.equal(tree.array.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(again.dense()[0].weight, expected.float())
    masked = again.trees["2.weight"].at("/value")
    assert isinstance(masked, Dense)
    assert masked.array.dtype == dtype
    assert again.dense()[0].weight.dtype == torch.float32
    # the biases trained, the cast weights did not
    assert not torch.equal(again.dense()[0].bias, model[0].bias)
    account = {t.name: t for t in again.ledger().tensors}
    assert not account["0.weight"].untouched
    assert account["0.bias"].untouched
    network = attach(model, specs(model), again.trees)
    assert network(data[0][0]).shape == (4, 3)
    back = harvest(network, small.specs, again.trees)["0.weight"]
    assert isinstance(back, Dense)
    assert back.array.dtype == dtype


def test_a_network_of_eight_bit_floats_is_read_and_bad_numbers_in_it_are_found() -> None:
    model = nn.Linear(4, 3).to(torch.float8_e5m2)
    small = compress(model, [])
    assert torch.equal(small.state_dict()["weight"].float(), model.weight.float())
    assert small.ledger().ratio > 0


def test_numbers_that_the_format_cannot_hold_are_refused() -> None:
    with pytest.raises(PlanError, match=r"w: found a weight of magnitude 500, .*at most 448"):
        one(Cast(dtype="float8_e4m3fn"), torch.tensor([[1.0, -500.0]]))
