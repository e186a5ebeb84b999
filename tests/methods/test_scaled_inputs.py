"""AWQ and SmoothQuant against loops, and that searching never loses to rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import source_of
from methods.test_gptq import error, problem, solved

from gossamer.encoding import Affine, Dense, Mask, Masked, Scaled
from gossamer.errors import CompositionError
from gossamer.methods.base import Site
from gossamer.methods.quantize import AWQ, RoundToNearest, SmoothQuant


def plain(bits: int, group: object) -> RoundToNearest:
    return RoundToNearest(bits=bits, group=group, symmetric=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_the_power_with_the_smallest_error_is_taken(seed: int) -> None:
    w, gram = problem(seed, 8, 12)
    made = solved(AWQ(bits=3, group="channel", steps=4, candidates=1), w, gram)
    x = gram.diagonal().sqrt() / gram.diagonal().max().sqrt()
    errors = []
    for i in range(5):
        a = x.clamp_min(1e-4) ** (i / 4)
        a = a / (a.max() * a.min()).sqrt()
        errors.append(float(error(w, solved(plain(3, "channel"), w * a, None).to_dense() / a, gram).sum()))
    assert float(error(w, made.to_dense(), gram).sum()) == pytest.approx(min(errors), rel=1e-3)


@given(seed=st.integers(0, 1000), bits=st.integers(2, 8), group=st.sampled_from(["tensor", "channel", 5]))
@settings(max_examples=25, deadline=None)
def test_a_searched_scale_is_never_worse_than_rounding(seed: int, bits: int, group: object) -> None:
    w, gram = problem(seed, 6, 14)
    mine = error(w, solved(AWQ(bits=bits, group=group), w, gram).to_dense(), gram).sum()  # type: ignore[arg-type]
    theirs = error(w, solved(plain(bits, group), w, None).to_dense(), gram).sum()
    assert float(mine) <= float(theirs) * (1 + 1e-4) + 1e-6 * float(error(w, 0 * w, gram).sum())


def test_an_outlying_input_is_where_the_search_pays() -> None:
    w, gram = problem(2, 32, 64)
    loud = torch.ones(64)
    loud[7] = 50.0
    gram = gram * loud[:, None] * loud
    mine = error(w, solved(AWQ(bits=3, group=32), w, gram).to_dense(), gram).sum()
    theirs = error(w, solved(plain(3, 32), w, None).to_dense(), gram).sum()
    assert float(mine) < 0.3 * float(theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_smoothing_shares_the_spread_between_inputs_and_weights(alpha: float) -> None:
    w, gram = problem(4, 8, 10)
    made = solved(SmoothQuant(bits=8, alpha=alpha), w, gram)
    assert isinstance(made, Scaled)
    assert made.input_scale is not None
    gain = 1 / made.input_scale.to_dense()
    x = gram.diagonal().sqrt()
    expected = x**alpha / w.abs().amax(0) ** (1 - alpha)
    torch.testing.assert_close(gain / gain[0], expected / expected[0], rtol=1e-4, atol=1e-5)
    step = (gain * w).abs().amax(1, keepdim=True) / 127
    assert bool(((made.to_dense() - w).abs() * gain <= step / 2 * 1.001).all())


@pytest.mark.parametrize("method", [AWQ(bits=4, group=5), SmoothQuant()])
def test_inputs_and_columns_that_are_zero_do_no_harm(method: AWQ | SmoothQuant) -> None:
    w, gram = problem(1, 6, 10)
    w[:, 3] = 0.0
    gram[4], gram[:, 4] = 0.0, 0.0
    for some in (gram, torch.zeros(10, 10)):
        made = solved(method, w, some).to_dense()
        assert bool(made.isfinite().all())
        assert not bool(made[:, 3].any())
        assert float((made - w).abs().max()) < 1.5
    assert not bool(solved(method, torch.zeros(6, 10), gram).to_dense().any())


def test_pruned_weights_stay_zero_and_a_later_assignment_stays_on_the_grid() -> None:
    w, gram = problem(1, 6, 10)
    where = Mask.of(torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) < 0.5)
    tree = Masked(where, Dense(w.reshape(-1)[where.positions().long()]))
    for weight in (Dense(w), tree):
        made = solved(AWQ(bits=4, group="channel"), weight, gram)
        assert isinstance(made, Scaled)
        inner = made.inner.value if isinstance(made.inner, Masked) else made.inner
        assert isinstance(inner, Affine)
        if weight is tree:
            assert not bool(made.to_dense()[~where.mask()].any())
        spec = source_of({"w": weight}).specs()[0]
        again = AWQ(bits=4, group="channel").assign(Site(spec, "", (6, 10)), weight, made)
        assert again is not None
        torch.testing.assert_close(again.to_dense(), made.to_dense())


def test_vectors_are_left_alone() -> None:
    with pytest.raises(CompositionError, match="two dimensions"):
        solved(AWQ(bits=4), torch.randn(10), None)


def test_a_column_that_is_nearly_zero_leaves_the_others_their_smoothing() -> None:
    w, gram = problem(3, 16, 24)
    loud = torch.ones(24)
    loud[5] = 30.0
    gram = gram * loud[:, None] * loud
    quiet = w.clone()
    quiet[:, 11] *= 1e-12
    spread = []
    for weight in (w, quiet):
        made = solved(SmoothQuant(bits=8), weight, gram)
        assert isinstance(made, Scaled) and made.input_scale is not None
        scale = made.input_scale.to_dense()
        spread.append(float(scale[[i for i in range(24) if i != 11]].max() / scale[5]))
    assert spread[1] == pytest.approx(spread[0], rel=1e-3)
