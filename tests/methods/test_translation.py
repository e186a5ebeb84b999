"""Convolutions in disguise: layers that torch would write the same way are found and reproduced, others are left."""

from __future__ import annotations

import pytest
import torch
from contract.method_examples import written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.harness import one, planned_on
from torch import Tensor, nn

from gossamer.drive import run
from gossamer.encoding import Convolutional, Dense
from gossamer.errors import CompositionError
from gossamer.methods.prune import Magnitude
from gossamer.methods.share import Translation


def toeplitz(column: Tensor, row: Tensor) -> Tensor:
    """Constant along diagonals, as scipy.linalg.toeplitz builds it."""
    values = torch.cat([column.flip(0), row[1:]])
    at = torch.arange(len(row)) - torch.arange(len(column))[:, None] + len(column) - 1
    return values[at]


def by_hand(tree: Convolutional) -> Tensor:
    """The weight, entry by entry."""
    kernel = tree.kernel.to_dense()
    (oy, ox), (iy, ix), (ty, tx) = tree.output_grid, tree.input_grid, tree.tiles
    parts, (_, channels, high, wide) = ty * tx, kernel.shape
    outputs = len(kernel) // parts
    w = torch.zeros(outputs, oy, ox, channels, iy, ix)
    for y in range(oy):
        for x in range(ox):
            part = y // -(-oy // ty) * tx + x // -(-ox // tx)
            for i in range(iy):
                for j in range(ix):
                    a, b = i - y * tree.stride[0] - tree.offset[0], j - x * tree.stride[1] - tree.offset[1]
                    if 0 <= a < high and 0 <= b < wide:
                        w[:, y, x, :, i, j] = kernel[part * outputs : (part + 1) * outputs, :, a, b]
    return w.view(tree.dense_shape())


sizes = st.integers(1, 4)


@settings(max_examples=40)
@given(st.data())
def test_the_weight_is_the_kernel_laid_out_entry_by_entry(data: st.DataObject) -> None:
    output_grid = data.draw(st.tuples(sizes, sizes))
    input_grid = data.draw(st.tuples(sizes, sizes))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    tiles = data.draw(st.sampled_from([(1, 1), (output_grid[0], 1), output_grid]))
    window = data.draw(st.tuples(st.integers(1, input_grid[0]), st.integers(1, input_grid[1])))
    offset = data.draw(st.tuples(st.integers(-5, 5), st.integers(-5, 5)))
    kernel = torch.randn(2 * tiles[0] * tiles[1], 3, *window)
    tree = Convolutional(Dense(kernel), output_grid, input_grid, stride, offset, tiles)
    assert torch.equal(tree.to_dense(), by_hand(tree))


@pytest.mark.parametrize(
    ("layer", "shape", "most"),
    [
        (nn.Conv2d(2, 3, 3), (2, 6, 6), 54),
        (nn.Conv2d(1, 4, 5, padding=2), (1, 8, 8), 100),
        (nn.Conv2d(3, 2, 3, stride=2, padding=1), (3, 8, 8), 54),
        (nn.Conv1d(2, 3, 5), (2, 16), 30),
        (nn.Conv1d(1, 1, 4, stride=3), (1, 19), 4),
        (nn.Conv2d(2, 2, 3, dilation=2), (2, 9, 9), 100),  # a dilated kernel is a wide one with zeros
    ],
    ids=["plain", "padded", "strided", "sequence", "sequence-strided", "dilated"],
)
def test_a_convolution_written_out_is_found_and_equal(layer: nn.Module, shape: tuple[int, ...], most: int) -> None:
    w = written_out(layer.requires_grad_(False).apply(_no_bias), shape).weight.detach()
    tree = one(Translation(tolerance=1e-5), w)
    assert isinstance(tree, Convolutional)
    assert tree.size_bits() <= 32 * most
    torch.testing.assert_close(tree.to_dense(), w, atol=1e-6, rtol=1e-5)


def _no_bias(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        module.bias = None


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (5, 9), (12, 4)])
def test_a_toeplitz_matrix_is_recovered_exactly(rows: int, columns: int) -> None:
    random = torch.Generator().manual_seed(rows)
    column, row = torch.randn(rows, generator=random), torch.randn(columns, generator=random)
    row[0] = column[0]
    w = toeplitz(column, row)
    tree = one(Translation(tolerance=0.0), w)
    assert isinstance(tree, Convolutional)
    assert tree.size_bits() == 32 * (rows + columns - 1)
    torch.testing.assert_close(tree.to_dense(), w, atol=1e-7, rtol=1e-6)


def test_the_kernel_is_the_mean_of_what_it_stands_for_and_no_kernel_is_nearer() -> None:
    random = torch.Generator().manual_seed(0)
    w = toeplitz(torch.randn(6, generator=random), torch.randn(8, generator=random))
    w = w + 0.05 * torch.randn(6, 8, generator=random)
    tree = one(Translation(tolerance=0.2, input_grid=(1, 8), output_grid=(1, 6), stride=1), w)
    assert isinstance(tree, Convolutional)
    assert float((tree.to_dense() - w).norm() / w.norm()) <= 0.2
    start = tree.offset[1] + 5
    for entry, value in enumerate(tree.kernel.to_dense().flatten().tolist()):
        assert value == pytest.approx(float(w.diagonal(start + entry - 5).mean()), abs=1e-6)


def test_the_window_shrinks_as_far_as_the_tolerance_allows() -> None:
    kernel = torch.tensor([[[0.01, 1.0, 2.0, 1.0, 0.02]]])
    layer = nn.Conv1d(1, 1, 5, bias=False)
    layer.weight = nn.Parameter(kernel)
    w = written_out(layer, (1, 24)).weight.detach()
    found = [one(Translation(tolerance=t), w) for t in (1e-4, 0.05)]
    assert [f.at("/kernel").dense_shape()[3] for f in found] == [5, 3]


def test_local_sharing_has_kernels_per_tile_where_one_kernel_is_not_enough() -> None:
    random = torch.Generator().manual_seed(0)
    layers = [nn.Conv1d(1, 2, 3, bias=False) for _ in range(2)]
    for layer in layers:
        layer.weight = nn.Parameter(torch.randn(2, 1, 3, generator=random))
    left, right = (written_out(layer, (1, 18)).weight.detach().view(2, 16, 18) for layer in layers)
    w = torch.cat([left[:, :8], right[:, 8:]], dim=1).reshape(32, 18)
    grids = {
        "output_grid": (1, 16),
        "input_grid": (1, 18),
    }  # in sequences of 8 it would be one convolution of 4 channels
    with pytest.raises(CompositionError, match=r"no smaller convolution within a relative error of 0\.01"):
        planned_on(Translation(tolerance=0.01, **grids), {"w": w})  # type: ignore[arg-type]
    tree = one(Translation(tolerance=0.01, tiles=(1, 2), **grids), w)  # type: ignore[arg-type]
    assert isinstance(tree, Convolutional)
    assert tree.kernel.dense_shape() == (4, 1, 1, 3)
    torch.testing.assert_close(tree.to_dense(), w)


def test_a_locally_connected_layer_is_one_tile_per_output() -> None:
    kernels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    w = torch.zeros(9, 11)
    for y in range(9):
        w[y, y : y + 3] = kernels[y]
    tree = one(Translation(tolerance=0.01, input_grid=(1, 11), output_grid=(1, 9), tiles=(1, 9)), w)
    assert isinstance(tree, Convolutional)
    assert tree.size_bits() == 32 * 27
    torch.testing.assert_close(tree.to_dense(), w)


def test_weights_without_structure_are_left_and_the_plan_says_why() -> None:
    random = torch.Generator().manual_seed(0)
    w = toeplitz(torch.randn(20, generator=random), torch.randn(20, generator=random))
    weights = {"toeplitz": w, "random": torch.randn(36, 64, generator=random), "prime": torch.randn(1, 7), "v": w[0]}
    planned = planned_on(Translation(tolerance=0.1), weights)
    assert set(planned.sites) == {"toeplitz"}
    assert "within a relative error of 0.1" in planned.skipped["random"]
    assert "expected sizes that the grids and tiles divide" in planned.skipped["prime"]
    assert "expected a matrix" in planned.skipped["v"]


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_giving_up_early_never_misses_a_layer_that_is_near_enough(noise: float) -> None:
    random = torch.Generator().manual_seed(3)
    w = toeplitz(torch.randn(16, generator=random), torch.randn(24, generator=random))
    w = w + noise * torch.randn(16, 24, generator=random)
    at = torch.arange(24) - torch.arange(16)[:, None]
    means = torch.stack([w.diagonal(int(k)).mean() for k in range(-15, 24)])
    error = float((means[at + 15] - w).norm() / w.norm())
    for tolerance in (0.9 * error, 1.1 * error + 1e-6):
        method = Translation(tolerance=tolerance, input_grid=(1, 24), output_grid=(1, 16), stride=1)
        if tolerance < error:
            with pytest.raises(CompositionError):
                planned_on(method, {"w": w})
        else:
            assert set(planned_on(method, {"w": w}).sites) == {"w"}


def test_kernels_are_weights_that_later_methods_reach() -> None:
    linear = written_out(nn.Conv2d(2, 3, 3, bias=False), (2, 6, 6))
    state = run(linear, [Translation(tolerance=0.01), Magnitude(sparsity=0.5)])
    assert state.plans[1]["steps"][0]["targets"] == ["weight#/kernel"]


def test_a_layer_of_zeros_is_a_convolution_of_one_zero() -> None:
    tree = one(Translation(tolerance=0.1), torch.zeros(4, 4))
    assert isinstance(tree, Convolutional)
    assert not bool(tree.to_dense().any())
