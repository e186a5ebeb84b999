"""Blocks of images, one image per lane: convolutions, pooling and means on them agree with float64 and PyTorch."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.clocks import Recording
from runtime.exactness import exact, thinned
from torch import Tensor, nn

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, Processor, host, levels
from gossamer.jit.kernel_cache import assembly, cache_directory
from gossamer.runtime import image_product
from gossamer.runtime.conv_product import ConvolutionProduct
from gossamer.runtime.convolution import geometry_of, product_of
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way, height
from gossamer.runtime.image_blocks import ImageBlocks, ImageEdges, Window
from gossamer.runtime.image_code import STRIDES, WIDEST
from gossamer.runtime.image_layout import ByBatch, ImageConv, along_images
from gossamer.runtime.image_product import ImageProduct, frame_of
from gossamer.runtime.kernels import IMAGES, ConvolutionKernels, ImageKernels, PackKernels, load
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import openmp

LEVELS = levels()


class Dirty:
    """Memory that is full of NaN."""

    def empty(self, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"))


DIRTY = cast(Slabs, Dirty())


def edges_of(level: Level) -> ImageEdges:
    return ImageEdges(load(ImageKernels, host(level), cache_directory()), openmp(), DIRTY)


def error(y: Tensor, expected: Tensor) -> float:
    assert y.shape == expected.shape and y.dtype == torch.float32
    # Numbers of about 1 are added: where a single sum happens to be near 0, its error is still relative to them.
    return float((y.double() - expected).abs().max()) / max(float(expected.abs().max()), 0.1)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(1, 33),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    frame=st.integers(0, 3),
)
def test_planes_come_back_from_blocks_whose_frame_and_missing_images_are_zeros(
    level: Level, images: int, channels: int, size: tuple[int, int], frame: int
) -> None:
    edges = edges_of(level)
    x = torch.randn(images, channels, *size)
    blocks = edges.into(x, frame)
    assert torch.equal(edges.back(blocks), x)
    assert int((blocks.data != 0).sum()) == int((x != 0).sum()) and not bool(blocks.data.isnan().any())


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_convolution_of_images_agrees_with_float64(level: Level, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, padding, dilation = pair(1, 4), pair(0, 3), pair(1, 2)
    stride = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(STRIDES))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    high, wide = (max(1, s - 2 * p) + extra for s, p, extra in zip(span, padding, pair(0, 20), strict=True))
    channels, rows, images = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 33)))
    groups = data.draw(st.sampled_from([1, 1, 2])) if channels > 1 else 1
    density = data.draw(st.sampled_from([0.0, 0.03, 0.1, 0.4, 1.0]))
    activation = data.draw(st.sampled_from([Activation.NONE, Activation.RELU, Activation.RELU6]))
    torch.manual_seed(data.draw(st.integers(0, 1 << 20)))
    layer = nn.Conv2d(channels * groups, rows * groups, kernel, stride, padding, dilation, groups)
    layer = thinned(layer, density)
    panel = data.draw(st.integers(1, channels))
    planes = product_of(layer, Way.SLICED, (high, wide), activation=activation, level=level, panel=panel)
    edges = edges_of(level)
    product = ImageProduct(planes, edges.kernels, openmp(), DIRTY)
    functions = {Activation.NONE: nn.Identity(), Activation.RELU: nn.ReLU(), Activation.RELU6: nn.ReLU6()}
    x = torch.randn(images, channels * groups, high, wide)
    plain = exact(layer, x)
    residual = torch.randn(plain.shape)
    frame = frame_of(planes.geometry, (high, wide))
    blocks = edges.into(x, frame + data.draw(st.integers(0, 1)))
    y = product(blocks, None, data.draw(st.integers(0, 2)))
    assert error(edges.back(y), functions[activation](plain)) <= 1e-5
    y = product(blocks, edges.into(residual, data.draw(st.integers(0, 2))), y.frame)
    assert error(edges.back(y), functions[activation](plain + residual.double())) <= 1e-5
    # The frame is zeros: what reads it sees padding, whatever the memory held.
    after = thinned(nn.Conv2d(rows * groups, 3, 3, padding=1), 0.5)
    size = (int(plain.shape[2]), int(plain.shape[3]))
    second = ImageProduct(product_of(after, Way.SLICED, size, level=level), edges.kernels, openmp(), DIRTY)
    framed = product(blocks, None, 1)
    assert error(edges.back(second(framed, None, 0)), exact(after, edges.back(framed))) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("columns", [7, 12, 13, 28])
@pytest.mark.parametrize("panel", [20, 7])
def test_outputs_past_the_caches_are_the_same_numbers(
    level: Level, columns: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = edges_of(level)
    layer = thinned(nn.Conv2d(20, 70, 1), 0.3)
    planes = product_of(layer, Way.SLICED, (5, columns), activation=Activation.RELU, level=level, panel=panel)
    x, residual = edges.into(torch.randn(11, 20, 5, columns), 0), edges.into(torch.randn(11, 70, 5, columns), 0)
    found = []
    for start in (0, 1 << 40):
        monkeypatch.setattr(image_product, "STREAMED_FROM", start)
        product = ImageProduct(planes, edges.kernels, openmp(), DIRTY, team_from=0)
        found.append(edges.back(product(x, residual, 0)))
    assert torch.equal(*found) and bool((found[0] > 0).any())


@pytest.mark.parametrize(("name", "lanes"), [("x86-64-v3", 8), ("x86-64-v4", 16)])
def test_every_store_past_the_caches_is_one(name: str, lanes: int) -> None:
    text = assembly(Processor("x86_64-unknown-linux-gnu", name, "", lanes), IMAGES)
    register = "ymm" if lanes == 8 else "zmm"
    stores = re.findall(rf"vmovntps\s+%{register}", text)
    assert len(stores) == len(STRIDES) * height(Way.SLICED, lanes) * sum(range(1, WIDEST + 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_reach_the_outputs_that_live_weights_connect_and_no_others(stride: int) -> None:
    edges = edges_of("native")
    layer = thinned(nn.Conv2d(6, 9, 3, stride, padding=1, bias=False), 0.2)
    product = ImageProduct(product_of(layer, Way.SLICED, (10, 11), panel=4), edges.kernels, openmp(), DIRTY)
    x = torch.randn(19, 6, 10, 11)
    x[3, 2, 4, 5], x[17, 1, 0, 0], x[0, 5, 9, 10] = float("nan"), float("inf"), float("-inf")
    y = edges.back(product(edges.into(x, 1), None, 0))
    touched = nn.functional.conv2d((~x.isfinite()).double(), (layer.weight != 0).double(), stride=stride, padding=1)
    assert torch.equal(y.isfinite(), touched == 0) and bool((touched > 0).any())


@pytest.mark.parametrize("kernel", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_product, "STREAMED_FROM", 0)
    edges = edges_of("native")
    layer = thinned(nn.Conv2d(40, 70, kernel, padding=kernel // 2), 0.2)
    product = ImageProduct(product_of(layer, Way.SLICED, (9, 14)), edges.kernels, openmp(), DIRTY, team_from=0)
    x = edges.into(torch.randn(21, 40, 9, 14), kernel // 2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found += [edges.back(product(x, None, frame)) for frame in (0, 1)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], y) for y in found[1:])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    share=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    images=st.integers(1, 20),
    frames=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_pooling_and_means_of_images_are_those_of_pytorch(
    level: Level,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    share: tuple[int, int],
    size: tuple[int, int],
    images: int,
    frames: tuple[int, int],
) -> None:
    a, b = (min(p, k // 2) for p, k in zip(share, kernel, strict=True))
    edges = edges_of(level)
    x = torch.randn(images, 3, *size)
    mean = edges.mean(edges.into(x, frames[0]))
    assert error(mean, x.double().mean((2, 3))) <= 1e-5
    x[0, 0, 2, 2], x[0, 0, 4, 4] = float("nan"), float("-inf")
    pooled = edges.pool(edges.into(x, frames[0]), Window(kernel, stride, (a, b)), frames[1])
    expected = nn.MaxPool2d(kernel, stride, (a, b))(x)
    assert torch.equal(edges.back(pooled).nan_to_num(7.0), expected.nan_to_num(7.0))
    assert int(pooled.data.isnan().sum()) == int(expected.isnan().sum())  # none in the frame


@cache
def wide_kernels() -> tuple[ImageKernels, ConvolutionKernels, PackKernels]:
    """For vectors of 16 floats, which the compiler makes of two or four registers here."""
    native = host(LEVELS[-2])
    wide = Processor(native.triple, native.name, native.features, 16)
    images, planes = (load(kind, wide, cache_directory()) for kind in (ImageKernels, ConvolutionKernels))
    assert isinstance(images, ImageKernels) and isinstance(planes, ConvolutionKernels)
    return images, planes, load(PackKernels, host("native"), cache_directory())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "size", "images"), [(1, (3, 14), 16), (3, (7, 7), 33), (3, (6, 17), 9)])
def test_vectors_of_sixteen_floats_give_the_same(stride: int, kernel: int, size: tuple[int, int], images: int) -> None:
    kernels, planes_kernels, packers = wide_kernels()
    layer = thinned(nn.Conv2d(24, 30, kernel, stride, padding=kernel // 2), 0.2)
    geometry = geometry_of(layer)
    assert not isinstance(geometry, str) and layer.bias is not None
    planes = ConvolutionProduct(
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy(),
        geometry,
        activation=Activation.RELU,
        kernels=planes_kernels,
        packers=packers,
        openmp=openmp(),
        way=Way.SLICED,
        size=size,
        panel=10,
    )
    edges = ImageEdges(kernels, openmp(), DIRTY)
    x = torch.randn(images, 24, *size)
    y = ImageProduct(planes, kernels, openmp(), DIRTY)(edges.into(x, kernel // 2), None, 1)
    assert error(edges.back(y), exact(layer, x).relu()) <= 1e-5


def test_products_that_there_is_no_kernel_for_say_so() -> None:
    kernels = load(ImageKernels, host("native"), cache_directory())

    def of(layer: nn.Conv2d, way: Way, activation: Activation) -> ImageProduct:
        planes = product_of(layer, way, (12, 12), activation=activation)
        return ImageProduct(planes, kernels, openmp(), DIRTY)

    with pytest.raises(PlanError, match="patterns"):
        of(nn.Conv2d(4, 4, 3), Way.PATTERNS, Activation.NONE)
    with pytest.raises(PlanError, match="stride 3"):
        of(nn.Conv2d(4, 4, 3, stride=3), Way.SLICED, Activation.NONE)
    with pytest.raises(PlanError, match="SILU"):
        of(nn.Conv2d(4, 4, 3), Way.SLICED, Activation.SILU)
    product = of(nn.Conv2d(4, 4, 3), Way.SLICED, Activation.NONE)
    x = ImageBlocks.empty(DIRTY, 3, 5, (12, 12), 0, kernels.processor.lanes)
    with pytest.raises(RuntimeError, match="5 planes"):
        ImageConv(product, 0)(x)


class Small(nn.Module):
    """A stem, pooling, blocks with shortcuts, and a layer in between that only planes have a kernel for."""

    def __init__(self, *, between: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a, self.b = thinned(nn.Conv2d(16, 16, 1), 0.1), thinned(nn.Conv2d(16, 16, 3, padding=1), 0.1)
        self.c = thinned(nn.Conv2d(16, 32, 1, 2), 0.1)
        self.d = thinned(nn.Conv2d(16, 32, 3, 2, 1), 0.1)
        self.between = between
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = torch.relu(self.c(x) + self.d(x))
        out: Tensor = self.head(self.between(x).mean((2, 3)))
        return out


class Sparse(Recording):
    """Sparse layers win, and the form of the network with images along vectors."""

    def __call__(self, calls: Any, *, seconds: float) -> Any:
        times = super().__call__(calls, seconds=seconds)
        if "images along vectors" not in calls and "sliced planes" in calls:
            self.winner = "sliced planes"
            times = super().__call__(calls, seconds=seconds)
            self.winner = "images along vectors"
        return times


@pytest.mark.parametrize("between", [nn.Identity(), nn.GELU()])
def test_a_network_hands_on_blocks_of_images_for_any_batch(between: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", Sparse("images along vectors"))
    torch.manual_seed(0)
    model = Small(between=between).eval()
    lanes = host("native").lanes
    fast = gs.lower(model, torch.randn(2 * lanes, 3, 48, 40))  # type: ignore[operator]
    assert isinstance(fast.captured, ByBatch)
    found = [m for m in fast.captured.images.modules() if isinstance(m, ImageConv)]
    assert len(found) == 5 and {c.layout for c in fast.explain() if c.kernel == "sliced"} == {"images along vectors"}
    took: list[str] = []
    for form in ("images", "planes"):
        fast.captured.get_submodule(form).register_forward_hook(lambda *_, form=form: took.append(form))
    for batch in (1, lanes // 2 - 1, lanes, lanes + 1, 2 * lanes - 1, 33):
        x = torch.randn(batch, 3, 48, 40)
        assert error(fast(x), exact(model, x)) <= 1e-4
    x = torch.randn(2 * lanes, 3, 30, 44)
    assert error(fast(x), exact(model, x)) <= 1e-4
    assert took[0] == "planes" and took[2] == "images" and took[4] == "images" and took[-1] == "planes"


def test_few_images_are_not_tried() -> None:
    model = Small(between=nn.Identity()).eval()
    x = torch.randn(1, 3, 48, 40)
    assert along_images(model, (x,), {}) is None
