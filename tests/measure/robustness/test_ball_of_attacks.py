"""Points of a ball lie in it exactly, and the steepest one is the optimum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer.measure.robustness.ball import Ball, Norm
from gossamer.measure.robustness.chance import keys_of

NORMS: tuple[Norm, ...] = ("linf", "l2")
radii = st.one_of(st.floats(0, 2), st.sampled_from([1 / 255, 8 / 255, 1e-9, 0.1, 0.3]))


def _inside(points: Tensor, ball: Ball) -> None:
    away = points.double() - ball.centre.double()
    size = away.abs().amax(1) if ball.norm == "linf" else away.norm(dim=1)
    assert bool((size <= ball.epsilon * (1 + 1e-12)).all())
    # Also as a user computes it, in float32.
    narrow = torch.tensor(ball.epsilon, dtype=torch.float32)
    if ball.norm == "linf":
        assert bool(((points - ball.centre).abs().amax(1) <= narrow).all())
    assert float(points.min()) >= ball.bounds[0]
    assert float(points.max()) <= ball.bounds[1]


@given(st.integers(0, 10_000), radii, st.sampled_from(NORMS), st.sampled_from([(0.0, 1.0), (-0.7, 0.3), (0.1, 0.9)]))
def test_no_point_leaves_ball_or_bounds_by_a_single_ulp(
    seed: int, epsilon: float, norm: Norm, bounds: tuple[float, float]
) -> None:
    made = torch.Generator().manual_seed(seed)
    centre = torch.rand(5, 12, generator=made) * (bounds[1] - bounds[0]) + bounds[0]
    centre = centre.clamp(*bounds)
    centre = torch.where(centre.double() < bounds[0], torch.nextafter(centre, torch.tensor(9.0)), centre)
    centre = torch.where(centre.double() > bounds[1], torch.nextafter(centre, torch.tensor(-9.0)), centre)
    ball = Ball(centre, epsilon, norm, bounds)
    gradient = torch.randn(5, 12, generator=made)
    far = centre + 3 * torch.randn(5, 12, generator=made)
    for points in (
        ball.inside(far),
        ball.steepest(gradient),
        ball.step(centre, gradient, 2 * epsilon),
        ball.random(keys_of(seed, "test", torch.arange(5))),
    ):
        _inside(points, ball)


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_0_has_one_point(norm: Norm) -> None:
    centre = torch.rand(4, 9)
    ball = Ball(centre, 0.0, norm, (0.0, 1.0))
    assert torch.equal(ball.inside(centre + 1), centre)
    assert torch.equal(ball.steepest(torch.randn(4, 9)), centre)


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay_where_they_are(norm: Norm) -> None:
    centre = torch.full((3, 8), 0.5)
    points = centre + 0.05 * torch.rand(3, 8)
    ball = Ball(centre, 0.5, norm, (0.0, 1.0))
    assert torch.equal(ball.inside(points), points)


def test_the_l2_projection_is_the_nearest_point_of_ball_and_box() -> None:
    torch.manual_seed(0)
    centre = torch.tensor([[0.0, 0.1, 0.5, 0.95]])
    ball = Ball(centre, 0.4, "l2", (0.0, 1.0))
    wanted = torch.tensor([[-0.9, -0.6, 1.4, 1.4]])
    nearest = ball.inside(wanted)
    best = (nearest - wanted).norm()
    candidates = centre + torch.randn(200_000, 4) * 0.2
    feasible = ((candidates - centre).norm(dim=1) <= 0.4) & (candidates >= 0).all(1) & (candidates <= 1).all(1)
    assert float((candidates[feasible] - wanted).norm(dim=1).min()) >= float(best) - 1e-6
    assert abs(float((nearest - centre).norm()) - 0.4) < 1e-6  # clipping afterwards would give norm away


def test_the_steepest_l2_point_uses_the_norm_that_the_bounds_leave() -> None:
    centre = torch.tensor([[0.0, 0.5, 0.5]])
    ball = Ball(centre, 0.3, "l2", (0.0, 1.0))
    away = ball.steepest(torch.tensor([[-5.0, 1.0, -1.0]])) - centre
    torch.testing.assert_close(away, torch.tensor([[0.0, 0.3 / 2**0.5, -0.3 / 2**0.5]]))


def test_steepest_points_take_the_corner_where_the_ball_holds_the_box() -> None:
    ball = Ball(torch.tensor([[0.25, 0.5]]), 10.0, "l2", (0.0, 1.0))
    assert ball.steepest(torch.tensor([[1e-30, -1.0]])).tolist() == [[1.0, 0.0]]
    assert ball.steepest(torch.zeros(1, 2)).tolist() == [[0.25, 0.5]]
