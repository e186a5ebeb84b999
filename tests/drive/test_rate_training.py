"""Training for few bits: the term of the loss against its definition, the price against the file."""

from __future__ import annotations

from math import log2
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.api import compress, load
from gossamer.drive import QuantizationAware, Tune
from gossamer.drive.progress import NoProgress
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.drive.tune import train
from gossamer.encoding import Dense, Kind, Masked, TensorSpec
from gossamer.errors import PlanError
from gossamer.methods.base import Site
from gossamer.methods.quantize import LearnedRate, RoundToNearest
from tests.drive.sparse_classes import accuracy_of, data, net


def site_of(weight: Tensor) -> Site:
    return Site(TensorSpec("w", tuple(weight.shape), torch.float32, Kind.LINEAR), "", tuple(weight.shape))


def lengths_of(weight: Tensor, step: float, levels: int) -> dict[int, float]:
    """−log2 of each symbol's share, straight from the definition."""
    symbols = (weight / step).round().clamp(-levels, levels).reshape(-1).tolist()
    counts = {k: symbols.count(k) + 0.5 for k in range(-levels, levels + 1)}
    return {k: -log2(c / sum(counts.values())) for k, c in counts.items()}


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.02, 2.0))
def test_bits_and_their_slopes_are_those_of_the_symbols(seed: int, levels: int, step: float) -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    method = LearnedRate(levels=levels, zeros="level", scale_dtype="float32")
    site = site_of(weight)
    grid = method.opened(method.encode(site, Dense(weight.detach() * 0 + step), {}, {}))  # root mean square: the step
    logarithm = grid.scale.array.requires_grad_()  # type: ignore[attr-defined]
    bits = method.symbol_bits(site, Dense(weight), grid)
    assert bits is not None
    bits.backward()  # type: ignore[no-untyped-call]
    step = float(logarithm.detach().exp())
    lengths = lengths_of(weight.detach(), step, levels)
    expected, slopes = 0.0, []
    for v in (weight.detach() / step).reshape(-1).tolist():
        expected += lengths[max(-levels, min(levels, int(torch.tensor(v).round())))]
        below = int(torch.tensor(v).floor())
        slopes.append(lengths[below + 1] - lengths[below] if -levels <= below < levels else 0.0)
    assert float(bits.detach()) == pytest.approx(expected, rel=1e-4)
    slope = torch.tensor(slopes).view(6, 9)
    torch.testing.assert_close(weight.grad, slope / step, rtol=1e-3, atol=1e-4)
    of_step = -(slope * weight.detach() / step).sum()  # by its logarithm
    torch.testing.assert_close(logarithm.grad.reshape(()), of_step, rtol=1e-3, atol=1e-2)  # type: ignore[union-attr]


def test_small_steps_of_a_weight_change_the_bits_as_the_slope_says_on_the_mean() -> None:
    """Entropy of many weights, moved together by a little: the counts' own change adds nothing."""
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    method = LearnedRate(levels=7, zeros="level", scale_dtype="float32")
    site = site_of(weight)
    grid = method.opened(method.encode(site, Dense(weight.detach()), {}, {}))
    bits = method.symbol_bits(site, Dense(weight), grid)
    assert bits is not None
    bits.backward()  # type: ignore[no-untyped-call]
    share = 0.02
    moved = method.symbol_bits(site, Dense(weight.detach() * (1 - share)), grid)
    predicted = -share * float((weight.grad * weight.detach()).sum())
    assert moved is not None
    assert float((moved - bits).detach()) == pytest.approx(predicted, rel=0.1)


def trained() -> nn.Sequential:
    made = net()
    train(made, data(), Tune(epochs=12, lr=3e-3), progress=NoProgress())
    return made


def stage(epochs: int = 30, **price: object) -> QuantizationAware:
    biases = LearnedRate(only="*.bias", levels=31, start=0.25, zeros="level")
    return QuantizationAware(methods=(LearnedRate(), biases), tune=Tune(epochs=epochs, lr=3e-3), **price)  # type: ignore[arg-type]


def test_a_target_leads_to_a_file_of_about_that_size_that_still_works(tmp_path: Path) -> None:
    network = trained()
    small = compress(network, [stage(target=2600)], data=data())
    size = small.save(tmp_path / "a.gsm")
    assert abs(size / 2600 - 1) < 0.08
    again = load(tmp_path / "a.gsm", into=trained)
    assert all(isinstance(again.trees[n], Masked) for n in ("0.weight", "2.weight", "4.weight"))
    assert accuracy_of(again.dense()) > accuracy_of(network) - 0.1


def test_a_dearer_bit_leaves_a_smaller_file_and_more_zeros(tmp_path: Path) -> None:
    network, sizes, zeros = trained(), [], []
    for rate in (0.003, 0.03, 0.3):
        small = compress(network, [stage(epochs=10, rate=rate)], data=data())
        sizes.append(small.save(tmp_path / "a.gsm"))
        zeros.append(int((small.dense()[2].weight == 0).sum()))  # type: ignore[index]
    assert sizes == sorted(sizes, reverse=True)
    assert zeros == sorted(zeros)


def test_a_price_needs_a_method_that_says_bits_and_one_meaning() -> None:
    with pytest.raises(PlanError, match="expected one like LearnedRate"):
        QuantizationAware(methods=(RoundToNearest(bits=4),), rate=0.1)
    for wrong in ({"rate": 0.1, "target": "8x"}, {"rate": 0.0}, {"target": "much"}, {"rate": 1.0, "ramp": 2.0}):
        with pytest.raises(PlanError):
            QuantizationAware(methods=(LearnedRate(),), **wrong)  # type: ignore[arg-type]
    for wrong in ({"levels": 0}, {"levels": 128}, {"start": 0.0}, {"zeros": "none"}):
        with pytest.raises(PlanError):
            LearnedRate(**wrong)  # type: ignore[arg-type]


def test_a_recipe_file_names_it() -> None:
    recipe = [stage(target="20x", ramp=0.5)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
