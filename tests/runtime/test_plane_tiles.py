"""Planes cut into blocks: convolutions and pooling on them agree with PyTorch, and networks hand them on."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.clocks import sparse_wins
from runtime.exactness import error, exact, thinned
from torch import Tensor, fx, nn

import gossamer as gs
from gossamer.jit.cpu import Level, host, levels
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.conv_layout import TiledConv
from gossamer.runtime.conv_product import ConvolutionProduct
from gossamer.runtime.conv_tiles import FromTiles, IntoTiles, PlaneTiles, block_length, planes_as_blocks
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.kernels import ConvolutionKernels, load
from gossamer.runtime.lower import Lowered
from gossamer.runtime.pooling import PlanePool, TiledPool, every_second
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import openmp

LEVELS = levels()
WAYS = list(Way)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 5),
    channels=st.integers(1, 4),
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    lanes=st.sampled_from([4, 8, 16]),
)
def test_planes_come_back_from_blocks_and_no_row_lies_in_two(
    images: int, channels: int, rows: int, columns: int, lanes: int
) -> None:
    memory = Slabs()
    x = torch.randn(images, channels, rows, columns)
    tiles = IntoTiles(lanes, memory)(x)
    assert torch.equal(FromTiles(memory)(tiles), x)
    length = block_length(images * rows * columns, columns, lanes)
    assert tiles.data.shape[2] == length and length % lanes == 0
    assert length % columns == 0 or tiles.data.shape[0] == 1
    assert torch.equal(FromTiles(memory)(IntoTiles(lanes, memory)(x[0])), x[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_convolution_of_blocks_agrees_with_float64(level: Level, way: Way, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    pointwise = data.draw(st.booleans())
    kernel, stride, padding = ((1, 1),) * 2 + ((0, 0),) if pointwise else (pair(1, 4), pair(1, 3), pair(0, 3))
    dilation = pair(1, 2)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    high, wide = (max(1, s - 2 * p) + extra for s, p, extra in zip(span, padding, pair(0, 30), strict=True))
    channels, rows, images = data.draw(st.tuples(st.integers(1, 150), st.integers(1, 70), st.integers(1, 4)))
    density = data.draw(st.sampled_from([0.0, 0.03, 0.1, 0.4, 1.0]))
    activation = data.draw(st.sampled_from([Activation.NONE, Activation.RELU, Activation.RELU6, Activation.SILU]))
    torch.manual_seed(data.draw(st.integers(0, 1 << 20)))
    layer = thinned(nn.Conv2d(channels, rows, kernel, stride, padding, dilation), density)
    memory = Slabs()
    conv = SparseConv(layer, way, (high, wide), level=level).within(activation, memory)
    functions = {Activation.NONE: nn.Identity(), Activation.RELU: nn.ReLU(), Activation.RELU6: nn.ReLU6()}
    function = functions.get(activation, nn.SiLU())
    x = torch.randn(images, channels, high, wide)
    plain = exact(layer, x)
    residual = torch.randn(plain.shape)
    lanes = host(level).lanes
    into, back = IntoTiles(lanes, memory), FromTiles(memory)
    for _ in range(2):  # the second time in memory that has been used
        assert error(back(TiledConv(conv)(into(x))), function(plain)) <= 1e-5
        y = back(TiledConv(conv)(into(x), into(residual)))
        assert error(y, function(plain + residual.double())) <= 1e-5
        assert error(conv(x, residual), function(plain + residual.double())) <= 1e-5
        if not conv.product.geometry.pointwise:
            assert error(back(TiledConv(conv)(x, into(residual))), function(plain + residual.double())) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "rows", "side", "images"), [(64, 300, 8, 1), (300, 40, 14, 3), (20, 40, 14, 5)])
def test_results_on_blocks_do_not_depend_on_the_number_of_threads(
    way: Way, kernel: int, channels: int, rows: int, side: int, images: int
) -> None:
    memory = Slabs()
    layer = thinned(nn.Conv2d(channels, rows, kernel, padding=kernel // 2), 0.2)
    conv = SparseConv(layer, way, (side, side)).within(Activation.RELU, memory)
    assert isinstance(conv.product, ConvolutionProduct)
    conv.product._team_from = 0
    into = IntoTiles(conv.product.kernels.processor.lanes, memory)
    x, residual = into(torch.randn(images, channels, side, side)), into(torch.randn(images, rows, side, side))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(FromTiles(memory)(TiledConv(conv)(x, residual)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], y) for y in found[1:])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 2),
    share=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(5, 40), st.integers(5, 70)),
    images=st.integers(1, 3),
    channels=st.integers(1, 5),
)
def test_pooling_of_planes_and_blocks_is_that_of_pytorch(
    level: Level,
    kernel: tuple[int, int],
    stride: int,
    share: tuple[int, int],
    size: tuple[int, int],
    images: int,
    channels: int,
) -> None:
    a, b = (min(p, k // 2) for p, k in zip(share, kernel, strict=True))
    pool = nn.MaxPool2d(kernel, stride, (a, b))
    memory = Slabs()
    kernels = load(ConvolutionKernels, host(level), cache_directory())
    planes = PlanePool.of(pool, kernels, openmp(), memory)
    assert planes is not None
    x = torch.randn(images, channels, *size)
    x[0, 0, 2, 2] = float("nan")
    x[0, 0, 4, 4] = float("-inf")
    y = planes(x)
    assert torch.equal(y.nan_to_num(7.0), pool(x).nan_to_num(7.0)) and bool(y.isnan().any())
    on_blocks = FromTiles(memory)(TiledPool(planes)(IntoTiles(host(level).lanes, memory)(x)))
    assert torch.equal(on_blocks.nan_to_num(7.0), pool(x).nan_to_num(7.0))


@pytest.mark.parametrize("level", LEVELS)
def test_pooling_after_relu_is_pooling_that_rectifies(level: Level) -> None:
    kernels = load(ConvolutionKernels, host(level), cache_directory())
    pool = nn.MaxPool2d(3, 2, 1)
    x = torch.randn(2, 5, 13, 22) - 1.0
    x[0, 0, 2, 2] = float("nan")
    expected = pool(x.relu()).nan_to_num(7.0)
    planes = PlanePool.of(pool, kernels, openmp(), Slabs(), rectified=True)
    assert planes is not None
    back = FromTiles(Slabs())
    assert torch.equal(planes(x).nan_to_num(7.0), expected)
    assert torch.equal(back(TiledPool(planes)(x)).nan_to_num(7.0), expected)
    assert torch.equal(planes(x.double()).nan_to_num(7.0), expected.double())
    with pytest.raises(RuntimeError, match=r"float64.*expected"):
        TiledPool(planes)(x.double())


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 70)), images=st.integers(1, 3), channels=st.integers(1, 5))
def test_every_second_row_and_column_of_blocks(level: Level, size: tuple[int, int], images: int, channels: int) -> None:
    kernels = load(ConvolutionKernels, host(level), cache_directory())
    memory = Slabs()
    x = torch.randn(images, channels, *size)
    for blocks in (IntoTiles(host(level).lanes, memory)(x), planes_as_blocks(x)):
        assert torch.equal(FromTiles(memory)(every_second(blocks, kernels, openmp(), memory)), x[..., ::2, ::2])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(9, 14), (28, 28), (1, 1)])
def test_a_pointwise_convolution_with_stride_agrees_with_float64(level: Level, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = thinned(nn.Conv2d(70, 30, 1, 2), 0.2)
    memory = Slabs()
    conv = SparseConv(layer, Way.SLICED, size, level=level).within(Activation.RELU, memory)
    into, back = IntoTiles(host(level).lanes, memory), FromTiles(memory)
    for images in (1, 3):
        x = torch.randn(images, 70, *size)
        plain = exact(layer, x)
        residual = torch.randn(plain.shape)
        wanted = (plain + residual.double()).relu()
        assert error(conv(x), plain.relu()) <= 1e-5 and error(conv(x, residual), wanted) <= 1e-5
        assert error(back(TiledConv(conv)(into(x), into(residual))), wanted) <= 1e-5
        assert error(back(TiledConv(conv)(x)), plain.relu()) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("channels", "rows", "size"), [(64, 96, (56, 56)), (300, 40, (14, 14)), (33, 130, (5, 9))])
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SILU])
def test_a_result_that_takes_the_residuals_memory_is_the_same(
    level: Level, way: Way, channels: int, rows: int, size: tuple[int, int], activation: Activation
) -> None:
    torch.manual_seed(0)
    layer, memory = thinned(nn.Conv2d(channels, rows, 1), 0.15), Slabs()
    conv = TiledConv(SparseConv(layer, way, size, level=level).within(activation, memory))
    into = IntoTiles(host(level).lanes, memory)
    x, residual = into(torch.randn(2, channels, *size)), into(torch.randn(2, rows, *size))
    expected = FromTiles(memory)(conv(x, residual))
    address = residual.data.data_ptr()
    conv.into = True
    found: PlaneTiles = conv(x, residual)
    assert found.data.data_ptr() == address
    assert error(FromTiles(memory)(found), expected.double()) <= 1e-6


def test_windows_that_the_kernel_cannot_do_stay_with_pytorch() -> None:
    kernels = load(ConvolutionKernels, host("native"), cache_directory())
    for pool in (nn.MaxPool2d(3, 3), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, dilation=2)):
        assert PlanePool.of(pool, kernels, openmp(), Slabs()) is None
    planes = PlanePool.of(nn.MaxPool2d(2), kernels, openmp(), Slabs())
    assert planes is not None
    x = torch.randn(3, 4, 6)
    assert torch.equal(planes(x), nn.MaxPool2d(2)(x))
    assert planes(x.double()).dtype == torch.float64


def test_memory_comes_back_only_when_nobody_holds_the_output() -> None:
    memory = Slabs()
    first = memory.empty(4, 64, 56, 56)
    part = first[:, 3]
    address = first.data_ptr()
    del first
    gc.collect()
    other = memory.empty(4, 64, 56, 56)
    assert other.data_ptr() != address
    part.fill_(1.0)
    del part
    gc.collect()
    assert memory.empty(4, 64, 56, 56).data_ptr() == address
    assert copy.deepcopy(memory) is memory


class Small(nn.Module):
    """A stem, pooling, and a block with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a, self.b = thinned(nn.Conv2d(16, 16, 1), 0.1), thinned(nn.Conv2d(16, 16, 3, padding=1), 0.1)
        self.c = thinned(nn.Conv2d(16, 32, 1), 0.1)
        self.d = thinned(nn.Conv2d(16, 32, 1), 0.1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))) + self.d(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def tiled_of(fast: Lowered) -> list[TiledConv | TiledPool]:
    assert fast.captured is not None
    graphs = [m for m in fast.captured.modules() if isinstance(m, fx.GraphModule)]
    called = {str(n.target) for n in graphs[0].graph.nodes if n.op == "call_module"}
    modules = dict(graphs[0].named_modules())
    return [m for name in sorted(called) if isinstance(m := modules[name], (TiledConv, TiledPool))]


class Twice(nn.Module):
    """Two sums: what is added in the first is read again afterwards, what is added in the second is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (thinned(nn.Conv2d(32, 32, 1), 0.1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.a(x))
        second = torch.relu(self.b(first) + first)
        out: Tensor = torch.relu(self.c(second) + first)
        return out


def test_only_a_residual_that_is_read_last_gives_its_memory_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(1, 32, 28, 28)
    fast = gs.lower(model, x)  # type: ignore[operator]
    with_residual = [m for m in tiled_of(fast) if isinstance(m, TiledConv)]
    assert [m.into for m in with_residual] == [False, False, True]
    for _ in range(2):
        assert error(fast(x), exact(model, x)) <= 1e-4


def test_a_network_hands_on_blocks_for_any_batch_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    torch.manual_seed(0)
    model = Small().eval()
    fast = gs.lower(model, torch.randn(2, 3, 64, 64))  # type: ignore[operator]
    tiled = tiled_of(fast)
    assert len(tiled) == 6
    outputs = []
    for shape in [(2, 3, 64, 64), (1, 3, 64, 64), (5, 3, 30, 44), (2, 3, 64, 64)]:
        x = torch.randn(shape)
        outputs.append((fast(x), exact(model, x)))
    assert all(error(found, expected) <= 1e-4 for found, expected in outputs)
    with pytest.raises(RuntimeError, match=r"bfloat16"):
        fast(torch.randn(2, 3, 64, 64).bfloat16())
