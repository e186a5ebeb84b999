"""Scores decide what training sees."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import gossamer as gs
from gossamer.errors import DataError
from gossamer.measure import Curriculum, sampling_weights
from gossamer.measure.exemplars import easiest_first

SCORES = torch.randn(200, generator=torch.Generator().manual_seed(0))


def test_weights_rise_with_the_score_from_end_to_end_by_4_to_the_strength() -> None:
    weights = sampling_weights(SCORES, strength=1.5)[SCORES.argsort()]
    assert bool((weights.diff() > 0).all())
    assert abs(float(weights.mean()) - 1) < 1e-12
    assert abs(float(weights[-1] / weights[0]) - 4 ** (1.5 * 199 / 200)) < 1e-9
    assert torch.equal(sampling_weights(SCORES, strength=0), torch.ones(200, dtype=torch.float64))
    easy = sampling_weights(SCORES, prefer="easy")
    assert torch.allclose(easy, sampling_weights(-SCORES))


def test_an_outlier_gets_no_more_than_the_hardest_of_any_scores() -> None:
    far = SCORES.clone()
    far[far.argmax()] = 1e9
    assert torch.equal(sampling_weights(far), sampling_weights(SCORES))


def test_a_curriculum_grows_from_the_easy_examples_to_all() -> None:
    sizes = [len(easiest_first(SCORES, p, start=0.3)) for p in (0.0, 0.5, 1.0)]
    assert sizes == [60, 130, 200]
    easy, rest = easiest_first(SCORES, 0.0), set(range(200)) - set(easiest_first(SCORES, 0.0).tolist())
    assert float(SCORES[easy].max()) <= min(float(SCORES[i]) for i in rest)


def test_epochs_of_a_curriculum_are_of_one_length_and_use_every_allowed_example_alike() -> None:
    sampler = Curriculum(SCORES, epochs=3, start=0.25, seed=1)
    epochs = [list(sampler) for _ in range(4)]
    assert {len(epoch) for epoch in epochs} == {200}
    for epoch, size in zip(epochs, (50, 125, 200, 200), strict=True):
        allowed = easiest_first(SCORES, 0.0, start=size / 200).tolist()
        counts = [epoch.count(i) for i in allowed]
        assert sum(counts) == 200
        assert max(counts) - min(counts) <= 1
    assert epochs[2] != epochs[3]


def test_a_curriculum_that_is_resumed_goes_on_as_it_would_have() -> None:
    first, second = (Curriculum(SCORES, epochs=3) for _ in range(2))
    orders = [list(first) for _ in range(3)]
    list(second)
    third = Curriculum(SCORES, epochs=3)
    third.load_state_dict(second.state_dict())
    assert [list(third), list(third)] == orders[1:]


@pytest.mark.parametrize("kind", ["weights", "curriculum"])
def test_sparse_training_runs_on_steered_batches(kind: str) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(200, 64), torch.randint(4, (200,)))
    sampler: Any = Curriculum(SCORES, epochs=3)
    if kind == "weights":
        sampler = WeightedRandomSampler(sampling_weights(SCORES).tolist(), 200)
    loader = DataLoader(data, batch_size=50, sampler=sampler)
    method = gs.train.RigL(sparsity=0.8, steps=3 * len(loader), every=4)
    model = gs.train.sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = gs.train.Sparsifier(model, optimizer, method)
    for x, y in itertools.chain.from_iterable(loader for _ in range(3)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        sparsifier.step()
    assert 0.79 < sparsifier.sparsity < 0.9
    small = gs.compress(nn.Linear(64, 4), [gs.Tune(epochs=2)], data=loader)  # recipes take the same loader
    assert small.dense() is not None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sampling_weights(torch.tensor([1.0, torch.nan])), "scores: found"),
        (lambda: sampling_weights(SCORES, strength=-1), "strength -1"),
        (lambda: sampling_weights(SCORES, prefer="odd"), "prefer 'odd'"),  # type: ignore[arg-type]
        (lambda: easiest_first(SCORES, 1.5), "progress 1.5"),
        (lambda: Curriculum(SCORES, epochs=0), "epochs: found 0"),
        (lambda: Curriculum(SCORES, epochs=2, start=0), "start 0"),
        (lambda: Curriculum(SCORES, epochs=2).load_state_dict({}), "epoch: found None"),
    ],
)
def test_settings_out_of_range_are_refused(call: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        call()
