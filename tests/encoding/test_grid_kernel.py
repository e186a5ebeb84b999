"""Grids scaled in one compiled pass are those of PyTorch, and nothing is written where there is no memory."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gossamer.encoding import Affine, Dense
from gossamer.jit.cpu import levels


def grid(rows: int, columns: int, group: int, dtype: torch.dtype = torch.float32, zero: int | None = None) -> Affine:
    """A random grid."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    groups = rows * columns // group
    scale = torch.rand(groups, generator=generator).to(dtype)
    zeros = torch.randint(0, 16, (groups,), generator=generator, dtype=torch.uint8) if zero is None else zero
    return Affine(columns=columns, group_size=group, q=q, scale=Dense(scale), zero_point=zeros, bits=4)


def reference(tree: Affine) -> torch.Tensor:
    """The definition."""
    scale = tree.scale.to_dense().float().repeat_interleave(tree.group_size).view(tree.q.shape)
    zero = tree.zero_point
    if isinstance(zero, torch.Tensor):
        zero = zero.repeat_interleave(tree.group_size).view(tree.q.shape).float()
    return (tree.q.float() - zero) * scale


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("group", [7, 16, 48, 336])
@pytest.mark.parametrize("zero", [None, 8])
def test_every_level_scales_as_pytorch_does(
    level: str, group: int, zero: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", level)
    tree = grid(400, 336, group, zero=zero)
    assert torch.equal(tree.values(None), reference(tree))


def test_half_precision_scales_and_gradients_take_pytorchs_way() -> None:
    half = grid(400, 336, 48, torch.float16)
    assert torch.equal(half.values(None), reference(half))
    tree = grid(400, 336, 48)
    scale = tree.scale.to_dense().requires_grad_()
    trained = Affine(336, 48, tree.q, Dense(scale), tree.zero_point, 4)
    trained.values(None).sum().backward()
    assert scale.grad is not None


def test_fake_tensors_take_pytorchs_way() -> None:
    tree = grid(400, 336, 48)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert tree.values(None).shape == tree.q.shape
