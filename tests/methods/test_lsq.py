"""Learned steps: the start, the rounding, and the gradients against autograd of the closed form."""

from __future__ import annotations

from math import sqrt
from typing import cast

import pytest
import torch
from methods.harness import one, planned_on
from torch import Tensor

from gossamer.encoding import Affine, Dense, Encoding, Masked
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import LearnedStep


def closed_form(w: Tensor, step: Tensor, bits: int, n: Tensor) -> Tensor:
    """LSQ as its paper writes it, on rows with one step each: autograd does the rest."""
    largest = 2 ** (bits - 1) - 1
    factor = 1 / (n * largest).sqrt()
    s = (step * factor) + (step - step * factor).detach()  # gradscale
    v = torch.clamp(w / s[:, None], -largest - 1, largest)
    v = v + (v.round() - v).detach()  # roundpass
    return v * s[:, None]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", ["tensor", "channel"])
@pytest.mark.parametrize("pruned", [False, True])
def test_value_and_gradients_are_those_of_the_closed_form(bits: int, group: str, pruned: bool) -> None:
    torch.manual_seed(bits)
    w = torch.randn(5, 40)
    method = LearnedStep(bits=bits, group=group)  # type: ignore[arg-type]
    tree: Encoding = one(Magnitude(sparsity=0.5), w) if pruned else Dense(w)
    mask = tree.where.mask() if isinstance(tree, Masked) else torch.ones(5, 40, dtype=torch.bool)
    grid = one(method, tree)
    site = planned_on(method, {"w": tree}).sites["w"]
    leaves: dict[str, Tensor] = {}

    def trained(e: Encoding, name: str) -> Encoding:
        def leaf(f: object) -> Tensor:
            t = cast(Tensor, f.tensor).clone()  # type: ignore[attr-defined]
            if t.is_floating_point():
                leaves[name] = t.requires_grad_()
            return t

        return e.map_leaves(leaf)

    weight, steps = trained(tree, "w"), trained(grid, "s")
    found = method.surrogate(site, weight, steps).to_dense()
    out = torch.randn(5, 40)
    (found * out).sum().backward()

    dense = (w * mask).requires_grad_()
    s = leaves["s"].detach().clone().requires_grad_()
    n = mask.sum(1).float() if group == "channel" else mask.sum().float()[None]
    rows = (dense, s, n) if group == "channel" else (dense.view(1, -1), s, n)
    expected = closed_form(rows[0], rows[1], bits, rows[2]).view(5, 40)
    (expected * out).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(leaves["s"].grad, s.grad, rtol=1e-4, atol=1e-5)
    assert dense.grad is not None
    torch.testing.assert_close(leaves["w"].grad, dense.grad[mask] if pruned else dense.grad)


def test_the_step_starts_from_the_mean_magnitude() -> None:
    w = torch.randn(3, 50)
    tree = one(LearnedStep(bits=4), w)
    assert isinstance(tree, Affine)
    torch.testing.assert_close(tree.scale.to_dense(), 2 * w.abs().mean(1) / sqrt(7))
    step = tree.scale.to_dense()[:, None]
    torch.testing.assert_close(tree.to_dense(), (w / step).round().clamp(-8, 7) * step)


def test_training_computes_what_the_file_will_hold_also_with_half_steps_driven_below_zero() -> None:
    w = torch.randn(4, 10)
    for dtype in ("float32", "float16", "bfloat16"):
        method = LearnedStep(bits=3, scale_dtype=dtype)  # type: ignore[arg-type]
        grid = one(method, w)
        assert isinstance(grid, Affine)
        moved = grid.put("/scale", Dense(torch.tensor([0.1234567, -0.5, 0.0, 0.3])))
        site = planned_on(method, {"w": w}).sites["w"]
        final = method.assign(site, Dense(w), moved)
        assert final is not None
        assert torch.equal(method.surrogate(site, Dense(w), moved).to_dense(), final.to_dense())
        assert final.at("/scale").to_dense().dtype == getattr(torch, dtype)
        assert bool((final.at("/scale").to_dense() > 0).all())
