"""Weights that a generator draws: the same bits everywhere, normal, and nothing a file says is taken on trust."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.encoding import Dense, Drawn
from gossamer.encoding.drawn import Draws
from gossamer.encoding.gaussian import PER_UNIT, gaussians, quantiles
from gossamer.encoding.random import key_of, uniform_bits, words_at
from gossamer.encoding.serial import flatten, unflatten
from gossamer.errors import FormatError


def drawn(**changes: object) -> Drawn:
    index = torch.tensor([3, 7], dtype=torch.int32)
    settings = {
        "index": index,
        "scale": Dense(torch.ones(1)),
        "weight_shape": (3, 4),
        "seed": 1,
        "name": "w",
        "bits": 3,
    }
    return Drawn(**{**settings, **changes})  # type: ignore[arg-type]


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    found = quantiles().astype(np.float64)
    assert np.array_equal(found, -found[::-1])
    for j in (32768, 40000, 50000, 65000, 65535):
        low, high = ((found[j] + d) / PER_UNIT / math.sqrt(2) for d in (-0.5, 0.5))
        assert (1 + math.erf(low)) / 2 <= (j + 0.5) / 65536 <= (1 + math.erf(high)) / 2
    assert abs(float((found / PER_UNIT).std()) - 1) < 1e-4


def test_quantiles_and_draws_stay_what_they_are_in_files_that_exist() -> None:
    assert zlib.crc32(quantiles().astype("<i2").tobytes()) == 1416400049
    tree = drawn(index=torch.tensor([3, 7, 5], dtype=torch.int32), seed=(1 << 64) - 1)
    assert (tree.to_dense() * PER_UNIT).flatten().int().tolist() == [
        *(-4104, 9683, -2886, -4121, 316, -188, -9783, 4899, 1117, -3417, 358, 240)
    ]


def test_a_word_makes_four_numbers_lowest_bits_first() -> None:
    fields = [5, 40000, 65535, 1234]
    word = sum(field << 16 * i for i, field in enumerate(fields))
    assert gaussians(np.array([word], np.uint64)).tolist() == quantiles()[fields].tolist()


@given(seed=st.integers(0, (1 << 64) - 1), elements=st.integers(1, 60), data=st.data())
def test_a_decoder_draws_what_the_encoder_saw_and_what_the_definition_says(
    seed: int, elements: int, data: st.DataObject
) -> None:
    blocks = data.draw(st.integers(1, elements))
    index = data.draw(st.lists(st.integers(0, 99), min_size=blocks, max_size=blocks))
    draws = Draws(seed, "w", elements, blocks)
    found = draws.drawn(np.array(index))
    assert sorted(draws.order.tolist()) == list(range(elements))
    for block, number in enumerate(index):
        members = draws.members(block)
        assert elements // blocks <= len(members) <= -(-elements // blocks)
        seen = np.concatenate(list(draws.of(block, 100)))
        assert seen.shape == (100, len(members))
        assert np.array_equal(seen[number], found[members])
        assert np.array_equal(draws.one(block, number), found[members])
        key, words = uniform_bits(key_of(seed, "w", "draws"), blocks)[block], -(-len(members) // 4)
        for place, at in enumerate(members):
            word = int(words_at(key, np.array([number * words + place // 4], np.uint64))[0])
            assert found[at] == quantiles()[word >> 16 * (place % 4) & 0xFFFF]


def test_numbers_of_all_draws_together_are_standard_normal_and_do_not_depend_on_each_other() -> None:
    rows = np.concatenate(list(Draws(0, "w", 64, 8).of(3, 1 << 14))) / PER_UNIT
    correlations = np.corrcoef(rows.T)
    assert abs(rows.mean()) < 0.01
    assert abs(rows.std() - 1) < 0.01
    assert np.abs(correlations - np.eye(8)).max() < 0.05


def test_seeds_and_names_draw_other_numbers() -> None:
    made = [drawn().to_dense(), drawn(seed=2).to_dense(), drawn(name="v").to_dense()]
    assert not any(torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])


def test_a_weight_is_one_rounding_of_scale_times_a_multiple_of_a_power_of_two() -> None:
    scale = torch.tensor([0.0371], dtype=torch.float16)
    steps = drawn().to_dense().double()
    exact = steps * scale.double()
    assert torch.equal(drawn(scale=Dense(scale)).to_dense(), exact.float())


def test_a_scale_trains() -> None:
    scale = torch.tensor([0.5], requires_grad=True)
    drawn(scale=Dense(scale)).to_dense().sum().backward()
    torch.testing.assert_close(scale.grad, drawn().to_dense().sum().view(1))


def test_an_empty_weight_has_no_block() -> None:
    tree = drawn(index=torch.zeros(0, dtype=torch.int32), weight_shape=(0, 4))
    tree.validate()
    assert tree.to_dense().shape == (0, 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: drawn(index=torch.zeros(2)), "float32, expected int32"),
        (lambda: drawn(index=torch.zeros(2, dtype=torch.int64)), "int64, expected int32"),
        (lambda: drawn(index=torch.zeros(2, 1, dtype=torch.int32)), r"\(2, 1\)"),
        (lambda: drawn(index=torch.zeros(13, dtype=torch.int32)), r"\(13,\)"),
        (lambda: drawn(index=torch.zeros(0, dtype=torch.int32)), r"\(0,\)"),
        (lambda: drawn(scale=Dense(torch.ones(2))), r"\(2,\)"),
        (lambda: drawn(scale=Dense(torch.ones(()))), r"\(\)"),
        (lambda: drawn(weight_shape=(-3, -4)), "negative"),
        (lambda: drawn(weight_shape=(1 << 16, 1 << 16)), "fewer than"),
        (lambda: drawn(bits=0), "bits = 0"),
        (lambda: drawn(bits=25), "bits = 25"),
        (lambda: drawn(seed=-1), "seed = -1"),
        (lambda: drawn(seed=1 << 64), "seed"),
        (lambda: drawn(name="x" * 4097), "4097 characters"),
        (lambda: drawn(index=torch.tensor([3, 8], dtype=torch.int32)).validate(), "index 8, expected below 8"),
        (lambda: drawn(index=torch.tensor([3, -1], dtype=torch.int32)).validate(), "index -1, expected 0 or more"),
    ],
)
def test_malformed_nodes_are_refused_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_index_cannot_ask_for_more_than_the_tensors_hold() -> None:
    flat = flatten({"w": drawn(index=torch.zeros(1, dtype=torch.int32), weight_shape=(1000, 1000))})
    with pytest.raises(FormatError, match="larger than any tensor needs"):
        unflatten(flat.kinds, flat.nodes, flat.roots, [leaf.tensor for leaf in flat.leaves], most=10_000)
