"""How a price is found that leads to a size, where sizes are few or jump; and what is said where none is near."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.methods.quantize import RateDistortion, VectorRateDistortion
from gossamer.methods.quantize.rate_budget import Trial, best_trial, close_enough, next_trial


def searched(size: Callable[[float], float], first: float, wanted: float) -> list[Trial]:
    trials = [Trial(first, first, size(first))]
    while not close_enough(trials, wanted):
        rate, steps = next_trial(trials, wanted)
        trials.append(Trial(rate, steps, size(rate)))
    return trials


def smooth(rate: float) -> float:
    return 1000 * rate**-0.4


def plateaus(rate: float) -> float:
    return 1000 * 1.04 ** -round(8 * torch.tensor(rate).log2().item() / 4)


def jump(rate: float) -> float:
    return 1070 if rate < 1.7 else 700


def wavy(rate: float) -> float:
    return 1100 if rate < 1.2 else 1190 if rate < 1.5 else 900


@pytest.mark.parametrize("size", [smooth, plateaus, jump, wavy])
@pytest.mark.parametrize("first", [0.3, 1.0, 1.4, 2.0])
def test_no_price_is_tried_twice(size: Callable[[float], float], first: float) -> None:
    for wanted in (800, 1000, 1055):
        tried = [(t.rate, t.steps) for t in searched(size, first, wanted)]
        assert len(set(tried)) == len(tried)


def test_a_price_is_left_whose_neighbours_have_the_same_size() -> None:
    for first in (0.5, 0.8, 1.3, 2.0):
        found = best_trial(searched(plateaus, first, 1000), 1000)
        assert abs(found.size / 1000 - 1) < 0.005


def test_a_smooth_size_is_found_in_few_trials() -> None:
    trials = searched(smooth, 0.2, 1000)
    assert abs(trials[-1].size / 1000 - 1) <= 0.003
    assert len(trials) <= 4


def evenly(rows: int, columns: int) -> nn.Module:
    """Weights for which a grid of one step more or less is the best at any price."""
    made = nn.Linear(columns, rows, bias=False)
    made.weight.data = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) - 0.5
    return made


@pytest.mark.parametrize("kind", [RateDistortion, VectorRateDistortion])
def test_a_target_that_is_missed_is_said_and_is_in_the_plan(
    kind: type[RateDistortion] | type[VectorRateDistortion],
) -> None:
    model, missed = evenly(64, 64), 0
    for target in (1500, 1700, 1900, 2100, 60_000):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            small = gs.compress(model, [kind(target=target)])
        entry = small.notes["plan"][0]["steps"][0]
        told = [str(w.message) for w in said if "at the nearest price" in str(w.message)]
        assert bool(told) == ("file_bytes" in entry)
        if told:
            assert told[0].startswith(f"{kind.__name__}: target: found a file of {entry['file_bytes']:,} bytes")
            assert entry["wanted_bytes"] == target
            assert abs(entry["file_bytes"] / target - 1) > 0.02
            missed += 1
    assert missed  # the last one is more than 256 levels can take
