"""Kernel patterns against enumeration."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one, planned_on
from torch import Tensor

from gossamer.encoding import KernelShapes, Masked
from gossamer.errors import CompositionError
from gossamer.methods.prune import KernelPattern, Magnitude


@st.composite
def kernels(draw: st.DrawFn) -> Tensor:
    out, into, size = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 3]))
    count = out * into * size * size
    numbers = draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, 3.0, -4.0, 5.0]), min_size=count, max_size=count))
    return torch.tensor(numbers).view(out, into, size, size)


@given(kernels(), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_kernel_takes_the_best_of_the_most_frequent_shapes(w: Tensor, entries: int, patterns: int) -> None:
    flat = w.flatten(2).flatten(0, 1).double()
    natural = [tuple(sorted(sorted(range(len(k)), key=lambda i: (-abs(k[i]), i))[:entries])) for k in flat.tolist()]
    frequent = sorted(Counter(natural).items(), key=lambda item: (-item[1], item[0]))[:patterns]
    shapes = [shape for shape, _ in frequent]
    expected = []
    for number, kernel in enumerate(flat.tolist()):
        best = max(shapes, key=lambda s: sum(kernel[i] ** 2 for i in s))  # the first of equals
        expected += [number * flat.shape[1] + i for i in best]
    tree = one(Magnitude(structure=KernelPattern(entries, patterns)), w)
    assert isinstance(tree, Masked)
    assert isinstance(tree.where, KernelShapes)
    assert tree.where.positions().tolist() == expected
    assert torch.equal(tree.to_dense(), torch.where(tree.where.mask(), w, 0))


def test_all_shapes_allowed_is_the_best_of_all_subsets() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 3, 3, 3)
    kept = one(Magnitude(structure=KernelPattern(4, 255)), w).to_dense().square().flatten(2).sum(2)
    for i in range(5):
        for j in range(3):
            kernel = w[i, j].flatten()
            assert float(kept[i, j]) == pytest.approx(
                max(float(kernel[list(s)].square().sum()) for s in combinations(range(9), 4)), rel=1e-6
            )


def test_whole_kernels_go_weakest_first() -> None:
    torch.manual_seed(1)
    w = torch.randn(4, 4, 3, 3)
    full = one(Magnitude(structure=KernelPattern(4, 5)), w)
    tree = one(Magnitude(sparsity=0.7, structure=KernelPattern(4, 5)), w)
    assert isinstance(tree, Masked)
    keep = (144 - round(0.7 * 144)) // 4
    norms = full.to_dense().flatten(2).square().sum(2).flatten()
    live = tree.where.mask().flatten(2).any(2).flatten()
    assert int(live.sum()) == keep
    assert float(norms[live].min()) >= float(norms[~live].max())
    assert tree.where.size_bits() == 16 * 3 + 6 * 9  # five shapes and the empty one


def test_linear_layers_have_no_kernels() -> None:
    with pytest.raises(CompositionError, match="expected a convolution"):
        planned_on(Magnitude(structure=KernelPattern()), {"w": torch.randn(4, 9)})
