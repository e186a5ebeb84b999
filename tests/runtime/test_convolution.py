"""Sparse convolutions agree with float64 at every instruction set, whatever the shape, and are chosen by `lower`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from runtime.exactness import error, exact, thinned
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, Processor, host, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.conv_layout import TiledConv
from gossamer.runtime.conv_plan import Geometry, plan
from gossamer.runtime.conv_product import ConvolutionProduct
from gossamer.runtime.conv_tiles import FromTiles, IntoTiles
from gossamer.runtime.convolution import SparseConv, product_of, refusal
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.kernels import CONVOLUTIONS
from gossamer.runtime.slabs import Slabs

LEVELS = levels()
WAYS = list(Way)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_two_dimensional_convolution_agrees_with_float64(level: Level, way: Way, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    high, wide = (max(1, s - 2 * p) + extra for s, p, extra in zip(span, padding, pair(0, 40), strict=True))
    channels, rows, images = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 70), st.integers(1, 3)))
    density = data.draw(st.sampled_from([0.0, 0.03, 0.1, 0.4, 1.0]))
    torch.manual_seed(data.draw(st.integers(0, 1 << 20)))
    layer = nn.Conv2d(channels, rows, kernel, stride, padding, dilation, bias=data.draw(st.booleans()))
    thinned(layer, density)
    x = torch.randn(images, channels, high, wide)
    assert error(SparseConv(layer, way, (high, wide), level=level)(x), exact(layer, x)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, deadline=None)
@given(
    channels=st.integers(1, 40),
    rows=st.integers(1, 40),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    padding=st.sampled_from([0, 1, 4, "valid"]),
    length=st.integers(9, 300),
    seed=st.integers(0, 1 << 20),
)
def test_any_one_dimensional_convolution_agrees_with_float64(
    level: Level,
    way: Way,
    channels: int,
    rows: int,
    kernel: int,
    stride: int,
    padding: int | str,
    length: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer = thinned(nn.Conv1d(channels, rows, kernel, stride, padding), 0.2)
    x = torch.randn(2, channels, length)
    assert error(SparseConv(layer, way, (length,), level=level)(x), exact(layer, x)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", [7, 8, 14, 56])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_shapes_of_residual_networks_agree_with_float64(
    level: Level, way: Way, side: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(side)
    layer = thinned(nn.Conv2d(130, 70, kernel, stride, kernel // 2), 0.1)
    with torch.no_grad():
        layer.weight[5:9] = 0
    x = torch.randn(2, 130, side, side)
    assert error(SparseConv(layer, way, (side, side), level=level)(x), exact(layer, x)) <= 1e-5


def test_same_padding_of_even_kernels_and_single_images() -> None:
    layer = thinned(nn.Conv2d(3, 5, (4, 2), padding="same"), 0.5)
    x = torch.randn(3, 9, 10)
    with pytest.warns(UserWarning, match="even kernel"):
        expected = exact(layer, x)
    assert error(SparseConv(layer, Way.SLICED, (9, 10))(x), expected) <= 1e-5


def test_images_of_other_sizes_than_the_typical_one_and_other_strides_in_memory() -> None:
    layer = thinned(nn.Conv2d(20, 30, 3, padding=1), 0.2)
    fast = SparseConv(layer, Way.SLICED, (14, 14))
    for shape in [(1, 20, 14, 14), (3, 20, 5, 80), (2, 20, 1, 1), (1, 20, 200, 300)]:
        x = torch.randn(shape)
        assert error(fast(x), exact(layer, x)) <= 1e-5
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(fast(last), fast(x))
    for side in range(3, 20):  # more sizes than are kept
        x = torch.randn(1, 20, side, side)
        assert error(fast(x), exact(layer, x)) <= 1e-5
    assert fast(torch.randn(0, 20, 14, 14)).shape == (0, 30, 14, 14)


def test_a_plane_that_begins_anywhere_in_memory() -> None:
    layer = thinned(nn.Conv2d(4, 6, 1), 0.5)
    x = torch.randn(1 + 4 * 64)[1:].view(1, 4, 8, 8)
    assert error(SparseConv(layer, Way.SLICED, (8, 8))(x), exact(layer, x)) <= 1e-5


FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda y: y,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda y: F.gelu(y, approximate="tanh"),
    Activation.SILU: F.silu,
    Activation.RELU6: F.relu6,
}


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [7, 8])
def test_the_residual_is_added_before_the_activation(activation: Activation, kernel: int, side: int) -> None:
    layer = thinned(nn.Conv2d(12, 18, kernel, padding=kernel // 2), 0.3)
    x, residual = torch.randn(2, 12, side, side), torch.randn(2, 18, side, side)
    product = product_of(layer, Way.SLICED, (side, side), activation=activation)
    plain = exact(layer, x)
    assert error(product(x), FUNCTIONS[activation](plain)) <= 1e-5
    assert error(product(x, residual), FUNCTIONS[activation](plain + residual.double())) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("groups", "side"), [(2, 8), (3, 7), (4, 14)])
def test_groups_agree_with_float64(level: Level, kernel: int, groups: int, side: int) -> None:
    torch.manual_seed(groups)
    layer = thinned(nn.Conv2d(6 * groups, 10 * groups, kernel, padding=kernel // 2, groups=groups), 0.3)
    with torch.no_grad():
        layer.weight[:10] = 0
    fast = SparseConv(layer, Way.SLICED, (side, side), level=level)
    x, residual = torch.randn(2, 6 * groups, side, side), torch.randn(2, 10 * groups, side, side)
    assert error(fast(x), exact(layer, x)) <= 1e-5
    assert error(fast(x, residual), exact(layer, x) + residual.double()) <= 1e-5
    memory = Slabs()
    into = IntoTiles(host(level).lanes, memory)
    y = TiledConv(fast.within(Activation.RELU, memory))(into(x), into(residual))
    assert error(FromTiles(memory)(y), F.relu(exact(layer, x) + residual.double())) <= 1e-5
    assert f"sparsity={1 - int(layer.weight.count_nonzero()) / layer.weight.numel():.3f}" in repr(fast)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("channels", "rows", "side", "images"), [(64, 300, 8, 1), (20, 40, 56, 1), (20, 40, 14, 5)])
def test_the_result_does_not_depend_on_the_number_of_threads(
    way: Way, channels: int, rows: int, side: int, images: int
) -> None:
    x = torch.randn(images, channels, side, side)
    for kernel in (1, 3):
        layer = thinned(nn.Conv2d(channels, rows, kernel, padding=kernel // 2), 0.2)
        product = product_of(layer, way, (side, side))
        assert isinstance(product, ConvolutionProduct)
        product._team_from = 0
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                found.append(product(x))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], y) for y in found[1:])


def test_nan_and_infinity_go_only_where_they_belong() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0, 0] = 1.0
    x = torch.zeros(1, 1, 7, 7)
    x[0, 0, 2, 6] = float("nan")
    y = SparseConv(layer.eval(), Way.SLICED, (7, 7))(x)
    assert int(y.isnan().sum()) == 0  # what would lie to the right of the last column is nowhere
    x[0, 0, 2, 2] = float("inf")
    y = SparseConv(layer, Way.SLICED, (7, 7))(x)
    assert int(y.isinf().sum()) == 1 and bool(y[0, 0, 3, 3].isinf())


def test_what_no_kernel_can_do_is_refused() -> None:
    for layer, found in [
        (nn.Conv2d(4, 4, 3, groups=4), "4 groups of one channel"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "'reflect'"),
    ]:
        with pytest.raises(PlanError, match=found):
            SparseConv(layer, Way.SLICED, (8, 8))
    fast = SparseConv(thinned(nn.Conv2d(4, 4, 3), 0.5), Way.SLICED, (8, 8))
    for x in (torch.randn(1, 5, 8, 8), torch.randn(1, 4, 8, 8).double(), torch.randn(4, 8)):
        with pytest.raises(RuntimeError, match=r"expected \[N, 4, rows, columns\] torch.float32"):
            fast(x)
    with pytest.raises(RuntimeError, match="smaller than the kernel"):
        fast(torch.randn(1, 4, 2, 8))
    with pytest.raises(RuntimeError, match="requires a gradient"):
        fast(torch.randn(1, 4, 8, 8, requires_grad=True))


def test_rows_too_long_for_indices_are_refused() -> None:
    layer = nn.Conv2d(64, 4, 3, padding=1)
    assert refusal(layer, (3, 1 << 20), 0.1) and not refusal(layer, (56, 56), 0.1)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    with pytest.raises(PlanError, match="shorter rows"):
        plan(geometry, (3, 1 << 20), 64, 64, 1000, 16, (1, 2, 4), 3 << 20)


def test_a_product_is_shared_by_copies_and_not_pickled() -> None:
    product = product_of(thinned(nn.Conv2d(4, 4, 3), 0.5), Way.SLICED, (8, 8))
    assert copy.deepcopy(product) is product and copy.copy(product) is product
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(product)
    assert isinstance(product, ConvolutionProduct)


def test_resident_bytes_at_90_percent_are_less_than_018_of_dense() -> None:
    layer = thinned(nn.Conv2d(256, 256, 3, padding=1), 0.1)
    fast = SparseConv(layer, Way.SLICED, (14, 14))
    fast(torch.randn(1, 256, 14, 14))
    assert fast.resident_bytes <= 0.18 * 4 * layer.weight.numel()


def test_kernels_for_neon_use_vector_instructions() -> None:
    text = assembly(Processor.neon(), CONVOLUTIONS)
    assert "fmla" in text and ".4s" in text


def test_lower_chooses_sparse_convolutions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        thinned(nn.Conv2d(16, 32, 3, stride=2, padding=1), 0.1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        thinned(nn.Conv2d(32, 16, 1), 0.2),
    ).eval()
    with torch.no_grad():
        assert isinstance(model[5], nn.Conv2d)
        model[5].weight[:, :, 0] = 0
        model[5].weight[:, :, 1] = 0
    x = torch.randn(2, 8, 20, 20)
    fast = gs.lower(model, x)  # type: ignore[operator]
    chosen = {c.layer: c for c in fast.explain()}
    assert chosen["0"].kernel == "dense" and "too few zeros" in chosen["0"].reason
    assert chosen["3"].kernel == "sliced planes" and chosen["3"].bytes < chosen["3"].dense_bytes
    assert chosen["5"].kernel == "dense" and "32 groups" in chosen["5"].reason
    assert chosen["6"].kernel in ("sliced planes", "planes by pairings", "planes by patterns")
    assert error(fast(x), exact(model, x)) <= 1e-4
    other = torch.randn(1, 8, 31, 17)
    assert error(fast(other), exact(model, other)) <= 1e-4
