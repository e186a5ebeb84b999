"""SVD against singular values: the tail is the error, and the three ways of choosing a rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.harness import one, planned_on, result_on
from torch import nn

from gossamer.drive import run
from gossamer.encoding import LowRank
from gossamer.methods.factorize import SVD
from gossamer.methods.factorize.language import measure_unseen


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=random)
    return w * torch.linspace(2, 0.1, shape[-1])


@given(st.integers(1, 5), st.integers(0, 50))
def test_the_error_is_the_tail_of_the_singular_values(rank: int, seed: int) -> None:
    w = matrix(16, 20, seed=seed)
    tree = one(SVD(rank=rank), w)
    assert isinstance(tree, LowRank)
    tail = torch.linalg.svdvals(w.double())[rank:].square().sum().sqrt()
    error = torch.linalg.norm((tree.to_dense() - w).double())
    assert float(error) == pytest.approx(float(tail), rel=1e-4)


def test_factors_share_the_singular_values_and_signs_are_fixed() -> None:
    w = matrix(12, 9)
    tree = one(SVD(rank=3), w)
    assert isinstance(tree, LowRank)
    u, v = tree.u.to_dense(), tree.v.to_dense()
    s = torch.linalg.svdvals(w)[:3]
    torch.testing.assert_close(u.T @ u, torch.diag(s), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v @ v.T, torch.diag(s), atol=1e-4, rtol=1e-4)
    assert bool((u[u.abs().argmax(0), torch.arange(3)] > 0).all())


@pytest.mark.parametrize("energy", [0.0, 0.3, 0.5, 0.8, 0.95])
def test_energy_takes_the_smallest_rank_that_holds_it(energy: float) -> None:
    w = matrix(40, 30)
    squares = torch.linalg.svdvals(w.double()).square()
    expected = 1
    while float(squares[:expected].sum()) < energy * float(squares.sum()) * (1 - 1e-12):
        expected += 1
    planned = planned_on(SVD(energy=energy), {"w": w, "small": matrix(40, 30, seed=1)[:, :29]})
    ranks = {s.targets[0]: s.entry["rank"] for s in planned.plan.steps}
    if expected * 70 < 1200:
        assert ranks["w"] == expected
    else:
        assert f"rank {expected} would take" in planned.skipped["w"]


def test_the_byte_budget_is_kept_and_spent_where_a_byte_buys_most() -> None:
    weights = {"a": matrix(30, 20), "b": matrix(20, 40, seed=1), "c": matrix(10, 10, seed=2)}
    for budget in (200, 400, 1000, 2500, 9000):
        planned = planned_on(SVD(budget_bytes=budget), weights)
        ranks = {s.targets[0]: s.entry["rank"] for s in planned.plan.steps}
        assert sum(r * sum(weights[n].shape) * 4 for n, r in ranks.items()) <= budget
        # greedy by energy share per byte, by hand; a layer closes when its next rank does not fit
        offers = []
        for order, (name, w) in enumerate(weights.items()):
            share = torch.linalg.svdvals(w.double()).square()
            share = share / share.sum()
            offers += [(-float(e) / (sum(w.shape) * 4), i, order, name) for i, e in enumerate(share)]
        left, expected, closed = budget, dict.fromkeys(weights, 0), set()
        for _, _, _, name in sorted(offers):
            cost = sum(weights[name].shape) * 4
            if name in closed or cost > left or (expected[name] + 1) * cost >= weights[name].numel() * 4:
                closed.add(name)
                continue
            expected[name] += 1
            left -= cost
        for name, w in weights.items():
            if expected[name]:
                assert ranks[name] == expected[name]
                assert expected[name] * sum(w.shape) < w.numel()
            else:
                assert "budget" in planned.skipped[name]


def test_layers_that_would_grow_stay_and_the_plan_says_so() -> None:
    planned = planned_on(SVD(rank=5), {"square": matrix(20, 20), "small": matrix(8, 8)})
    assert [s.targets for s in planned.plan.steps] == [("square",)]
    assert planned.skipped["small"] == "rank 5 would take 80 numbers, the weight itself has 64"


def test_a_rank_deficient_weight_is_reproduced_and_zeros_stay_zeros() -> None:
    w = torch.outer(torch.arange(1.0, 11), torch.arange(2.0, 14)) + torch.outer(torch.ones(10), torch.arange(12.0))
    torch.testing.assert_close(one(SVD(energy=1.0), w).to_dense(), w, rtol=1e-4, atol=1e-3)
    assert not bool(one(SVD(energy=0.9), torch.zeros(6, 9)).to_dense().any())


def test_a_convolution_becomes_two_smaller_ones() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3)
    tree = run(conv, [SVD(rank=4)]).trees["weight"]
    assert isinstance(tree, LowRank)
    assert tree.v.dense_shape() == (4, 3, 3, 3)
    x = torch.randn(2, 3, 8, 8)
    thin = nn.functional.conv2d(nn.functional.conv2d(x, tree.v.to_dense()), tree.u.to_dense()[:, :, None, None])
    torch.testing.assert_close(thin, nn.functional.conv2d(x, tree.to_dense()), rtol=1e-4, atol=1e-4)


def test_grouped_convolutions_are_left_alone_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 3))
    state = run(net, [SVD(rank=2)])
    assert "2 groups" in state.skipped["0.weight"]
    assert isinstance(state.trees["1.weight"], LowRank)


def test_a_site_twice_gives_the_same_bits() -> None:
    weights = {"a": matrix(30, 20), "b": matrix(30, 20)}
    result = result_on(SVD(rank=3), weights)
    assert torch.equal(result["a"].to_dense(), result["b"].to_dense())


class Language(nn.Module):
    """Scores of the next of 50 words, from states that lie near a plane."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 24)
        self.head = nn.Linear(24, 50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.words(x) * torch.logspace(0, -2, 16))))


def test_on_a_language_model_it_warns_with_what_it_loses_on_the_first_batch() -> None:
    torch.manual_seed(0)
    model, data = Language(), [torch.randint(50, (8, 20))]
    with pytest.warns(
        UserWarning, match=r"loses \d+% of the outputs' norm where WhitenedSVD loses \d+% \(medians of 2"
    ):
        state = run(model, [SVD(rank=6, skip="words*")], data=data)
    assert isinstance(state.trees["inner.weight"], LowRank)
    with pytest.warns(UserWarning, match="give data to have it measured"):
        run(model, [SVD(energy=0.5)])
    found = measure_unseen(model, data[0], lambda name: name == "inner.weight", lambda _: 6)
    assert found is not None
    seen = model.words(data[0]).flatten(0, 1) * torch.logspace(0, -2, 16)
    made = one(SVD(rank=6), model.inner.weight.detach()).to_dense()
    outputs = seen @ model.inner.weight.T
    assert found.plain == pytest.approx(float(((seen @ made.T - outputs).norm() / outputs.norm()).detach()), rel=1e-2)
    assert found.whitened < found.plain


def test_other_networks_are_factorized_without_a_word() -> None:
    model = nn.Sequential(nn.Embedding(10, 16), nn.Flatten(), nn.Linear(64, 40))
    run(model, [SVD(rank=4)], data=[torch.randint(10, (3, 4))])
