"""Convolutions of live values and their gradients: against float64, at every instruction set, on any team."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, Processor, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.kernels import LIVE_CONVOLUTIONS
from gossamer.runtime.live_conv import LiveConvolution
from gossamer.runtime.live_planes import PlanesMath, planes_math

Shape = tuple[int, int, int, int]


def off(found: Tensor, exact: Tensor, among: Tensor | None = None) -> float:
    """The largest difference, as a share of the largest number, perhaps that among others."""
    assert found.shape == exact.shape
    largest = (exact if among is None else among).abs().max().clamp(min=1e-30)
    return float((found.double() - exact).abs().max() / largest) if exact.numel() else 0.0


def weight(shape: Shape, density: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with zeros, and an empty row; where it is live; its values there."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=draw)
    w *= torch.rand(shape, generator=draw) < density
    if density < 1 and shape[0] > 2:
        w[1] = 0
    positions = w.flatten().nonzero().squeeze(1)
    return w, positions, w.flatten()[positions]


def geometry_of(shape: Shape, stride: int, padding: int, dilation: int) -> Geometry:
    pad = (padding, padding)
    return Geometry((shape[2], shape[3]), (stride, stride), pad, pad, (dilation, dilation))


def errors(math: PlanesMath, shape: Shape, geometry: Geometry, density: float, x: Tensor, seed: int) -> list[float]:
    """Of a product, the gradient of its input and that of its live values."""
    w, positions, values = weight(shape, density, seed)
    live = LiveConvolution(shape, geometry, positions.numpy(), math)
    how = (geometry.stride, geometry.padding, geometry.dilation)
    exact = conv2d(x.double(), w.double(), torch.arange(shape[0]).double(), *how)
    dy = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
    size = (x.shape[2], x.shape[3])
    x_frame, dy_frame = live.frames(size)
    x_blocks, dy_blocks = math.pack(x, x_frame), math.pack(dy, dy_frame)
    exact_dw = conv2d_weight(x.double(), shape, dy.double(), *how).flatten()  # type: ignore[no-untyped-call]
    exact_dx = conv2d_input(x.shape, w.double(), dy.double(), *how)  # type: ignore[no-untyped-call]
    return [
        off(math.unpack(live.product(values, x_blocks, torch.arange(shape[0]).float())), exact),
        off(math.unpack(live.input_gradient(values, dy_blocks, size)), exact_dx),
        off(live.gradient(x_blocks, dy_blocks), exact_dw[positions], exact_dw),
    ]


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    st.tuples(st.integers(1, 20), st.integers(5, 20), st.integers(5, 20)),
    st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(1, 2)),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_products_and_gradients_are_those_of_the_dense_weight(
    shape: Shape, density: float, planes: tuple[int, int, int], how: tuple[int, int, int], seed: int
) -> None:
    x = torch.randn(planes[0], shape[1], *planes[1:], generator=torch.Generator().manual_seed(seed))
    assert max(errors(planes_math(), shape, geometry_of(shape, *how), density, x, seed)) < 5e-6


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("images", "stride"), [(1, 1), (7, 2), (33, 1)])
def test_every_instruction_set_computes_the_same(level: Level, images: int, stride: int) -> None:
    shape = (40, 70, 3, 3)
    x = torch.randn(images, 70, 9, 11)
    assert max(errors(planes_math(level), shape, geometry_of(shape, stride, 1, 1), 0.1, x, 0)) < 5e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_results_do_not_depend_on_the_number_of_threads(stride: int) -> None:
    shape, math = (96, 64, 3, 3), planes_math()
    _, positions, values = weight(shape, 0.2, 1)
    live = LiveConvolution(shape, geometry_of(shape, stride, 1, 1), positions.numpy(), math)
    x, dy = torch.randn(17, 64, 14, 14), torch.randn(17, 96, 14 // stride, 14 // stride)
    x_frame, dy_frame = live.frames((14, 14))
    assert live.live * 49 * 3 > 120_000  # or there would be no team

    def everything() -> list[Tensor]:
        a, b = math.pack(x, x_frame), math.pack(dy, dy_frame)
        products = [live.product(values, a, None), live.input_gradient(values, b, (14, 14))]
        return [a.data, b.data, *(math.unpack(p) for p in products), live.gradient(a, b)]

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append([t.clone() for t in everything()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_blocks_hold_all_planes_in_a_frame_of_zeros(shape: Shape, frame: tuple[int, int], last: bool) -> None:
    math, x = planes_math(), torch.randn(shape)
    given = x.to(memory_format=torch.channels_last) if last else x
    blocks = math.pack(given, frame)
    assert torch.equal(blocks.planes(), x)
    for back in (math.unpack(blocks), math.unpack(blocks, last=True)):
        assert torch.equal(back, x)
    assert int(blocks.data.count_nonzero()) == int(x.count_nonzero())  # so all else is zero


def test_a_layout_takes_a_few_bytes_per_live_value() -> None:
    shape = (256, 256, 3, 3)
    positions = np.flatnonzero(np.random.default_rng(0).random(int(np.prod(shape))) < 0.1)
    live = LiveConvolution(shape, geometry_of(shape, 1, 1, 1), positions, planes_math())
    assert live.resident_bytes < 22 * len(positions)


def test_steps_without_a_kernel_are_refused() -> None:
    with pytest.raises(PlanError, match="found stride 3"):
        LiveConvolution((2, 2, 1, 1), geometry_of((2, 2, 1, 1), 3, 0, 1), np.arange(4), planes_math())


def test_kernels_compile_for_arm() -> None:
    assert "fmla" in assembly(Processor.neon(), LIVE_CONVOLUTIONS)
