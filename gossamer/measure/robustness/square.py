"""The Square attack: random search by squares, which needs logits but no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.measure.robustness.attack import Attack, Found, Hunt, Scene
from gossamer.measure.robustness.ball import Ball
from gossamer.measure.robustness.chance import Keys, keys_of, uniform
from gossamer.measure.robustness.losses import margin
from gossamer.measure.robustness.squares import Image, bump, placed, windows

__all__ = ["Square"]

# Share of the queries → how often the share of pixels in a square has halved.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
_TILES = 5  # per side of the first L2 perturbation


@final
@dataclass(frozen=True)
class Square(Attack):
    """Put a square of ±ε at a random place and keep it if the right class loses ground (L∞); see below for L2.

    L∞ begins with vertical stripes of ±ε per channel; a square has one sign per channel. L2 begins with a grid of
    peaks; a move takes the norm of one square, and what is unused, to another one, on which a pair of peaks of
    opposite signs is added. A square has p of the pixels; p halves when 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80% of the
    queries are made. Inputs that are no images are rows of numbers, and squares are stretches of them.

    Args:
        queries: evaluations per example, ≥ 1.
        share: p at the beginning, above 0, at most 1.

    Cost: ``queries`` evaluations per example that is not fooled yet.

    Source: Andriushchenko, Croce, Flammarion, Hein 2020, arXiv 1912.00049, algorithms 1 to 3; share and the schedule's
    scaling to the number of queries as in AutoAttack, arXiv 2003.01690.
    """

    needs_gradients: ClassVar[bool] = False
    queries: int = 1000
    share: float = 0.8

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise PlanError(
                f"Square: found queries {self.queries}, share {self.share}, expected 1 or more, and above 0, at most 1"
            )

    @property
    def name(self) -> str:
        """Square."""
        return "Square"

    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """Random search."""
        hunt, ball = Hunt(scene, scene.inputs), scene.ball()
        rows, targets = hunt.left, scene.targets
        keys = keys_of(scene.seed, self.name, scene.numbers)
        image = Image.of(scene.inputs)
        points = _stripes(ball, image, keys) if scene.norm == "linf" else _peaks(ball, image, keys)
        best = torch.full((len(rows),), -torch.inf, dtype=points.dtype)
        current = points
        used = image.channels * (image.width + _TILES**2) + 1  # random numbers that the beginning took
        for query in range(self.queries):
            if query:
                a, b = image.window(self.share / 2 ** sum(query > h * self.queries for h in _HALVINGS))
                draws = uniform(keys, 5 + image.channels, used + (5 + image.channels) * query)
                move = _square if scene.norm == "linf" else _shift
                points = move(ball, image, current, a, b, draws)
            logits = scene.probe.logits(points)
            values = margin(logits, targets).to(best.dtype)
            left = hunt.see(rows, points, logits, values)
            better = values > best
            shape = (-1, *[1] * (points.dim() - 1))
            current = torch.where(better.view(shape), points, current)
            best = torch.where(better, values, best)
            if not bool(left.all()):
                rows, targets, current, best = rows[left], targets[left], current[left], best[left]
                ball, keys = ball.take(left), keys[left.numpy()]
                if not len(rows):
                    break
        return hunt.end()


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _stripes(ball: Ball, image: Image, keys: Keys) -> Tensor:
    """±ε per channel and column."""
    signs = _signs(uniform(keys, image.channels * image.width)).view(-1, image.channels, 1, image.width)
    away = signs.expand(-1, -1, image.height, -1).reshape(ball.centre.shape).to(ball.centre)
    return ball.inside(ball.centre + ball.epsilon * away)


def _square(ball: Ball, image: Image, current: Tensor, a: int, b: int, draws: Tensor) -> Tensor:
    """±ε per channel within a window of every image."""
    inside = windows(image, a, b, draws[:, 0], draws[:, 1])[:, None]
    signs = _signs(draws[:, 5:])[:, :, None, None]
    now, low, high = image.view(current), image.view(ball.low), image.view(ball.high)
    wanted = torch.where(inside, torch.where(signs > 0, high, low), now)
    same = (wanted == now).flatten(1).all(1)
    if bool(same.any()):  # the other signs: what is there already need not be asked for again
        other = torch.where(inside, torch.where(signs > 0, low, high), now)
        wanted = torch.where(same[:, None, None, None], other, wanted)
    return wanted.view(current.shape)


def _peaks(ball: Ball, image: Image, keys: Keys) -> Tensor:
    """A grid of pairs of peaks with random signs."""
    a, b = max(1, image.height // _TILES), max(1, image.width // _TILES)
    shape = bump(a, b, across=b >= a)
    down, along = min(_TILES, image.height), min(_TILES, image.width)
    start = image.channels * image.width
    signs = _signs(uniform(keys, image.channels * down * along, start)).view(-1, image.channels, down, along)
    tiled = torch.einsum("ncij,ab->nciajb", signs, shape).reshape(len(signs), image.channels, down * a, along * b)
    away = torch.zeros(len(signs), image.channels, image.height, image.width)
    away[:, :, : down * a, : along * b] = tiled
    return ball.step(ball.centre, away.reshape(ball.centre.shape).to(ball.centre), ball.epsilon)


def _shift(ball: Ball, image: Image, current: Tensor, a: int, b: int, draws: Tensor) -> Tensor:
    """The norm within two windows, and what is unused, goes to a pair of peaks in the first."""
    away = image.view(current - ball.centre).double()
    to = windows(image, a, b, draws[:, 0], draws[:, 1])[:, None]
    source = windows(image, a, b, draws[:, 2], draws[:, 3])[:, None]
    unused = (ball.epsilon**2 - away.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / image.channels
    budget = ((away * (to | source)).square().sum((2, 3), keepdim=True) + unused).sqrt()
    lying, standing = (placed(image, bump(a, b, across=x), draws[:, 0], draws[:, 1]) for x in (True, False))
    flat = image.height == 1 or image.width == 1
    turned = torch.full_like(draws[:, 4], image.width > 1) > 0 if flat else draws[:, 4] < 0.5
    shape = torch.where(turned[:, None, None, None], lying, standing)
    there = away * to
    made = _signs(draws[:, 5:])[:, :, None, None] * shape + _unit(there)
    moved = torch.where(to, _unit(made) * budget, torch.where(source, 0.0, away))
    return ball.inside(ball.centre + moved.view(current.shape).to(current.dtype))


def _unit(images: Tensor) -> Tensor:
    return images / images.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-300)
