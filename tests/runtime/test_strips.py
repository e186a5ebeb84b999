"""Images that are too wide for a kernel's distances are convolved strip by strip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import PlanError
from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.conv_product import PlaneProduct
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.group_code import Way
from gossamer.runtime.strips import in_strips


class Narrow(PlaneProduct):
    """Refuses rows of more than ``most`` columns."""

    def __init__(self, weight: Tensor, geometry: Geometry, most: int) -> None:
        self.rows, self.geometry, self.weight, self.most, self.calls = weight.shape[0], geometry, weight, most, 0

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.shape[3] > self.most:
            raise PlanError("too wide")
        self.calls += 1
        g = self.geometry
        padded = F.pad(x, (g.padding[1], g.after[1], g.padding[0], g.after[0]))
        y = F.conv2d(padded, self.weight, stride=g.stride, dilation=g.dilation)
        return y if residual is None else y + residual


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_strips_make_the_whole(data: st.DataObject) -> None:
    kernel, stride, dilation = (data.draw(st.integers(1, n)) for n in (5, 4, 3))
    before, after = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    reach = dilation * (kernel - 1)
    wide = data.draw(st.integers(max(1, reach + 1 - before - after), 60))
    geometry = Geometry((1, kernel), (1, stride), (0, before), (0, after), (1, dilation))
    x, weight = torch.randn(2, 3, 2, wide, dtype=torch.float64), torch.randn(4, 3, 1, kernel, dtype=torch.float64)
    whole = Narrow(weight, geometry, 1000)
    residual = torch.randn_like(whole(x)) if data.draw(st.booleans()) else None
    narrow = Narrow(weight, geometry, data.draw(st.integers(reach + 2 * stride + before + after + 2, 60)))
    y = in_strips(narrow, x, residual)
    torch.testing.assert_close(y, whole(x, residual))
    assert y.is_contiguous()
    assert wide <= narrow.most or narrow.calls > 1


def test_what_is_too_wide_even_as_one_column_is_refused() -> None:
    narrow = Narrow(torch.randn(1, 1, 1, 1), Geometry((1, 1), (1, 1), (0, 0), (0, 0), (1, 1)), 0)
    with pytest.raises(PlanError, match="too wide"):
        in_strips(narrow, torch.randn(1, 1, 1, 5), None)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_packed_for_small_images_takes_large_ones(kernel: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(512, 8, kernel, padding=kernel // 2).eval()
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.05
    packed = SparseConv(layer, Way.SLICED, (7, 7))
    x = torch.randn(1, 512, 3, 4000)
    with torch.inference_mode():
        exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=kernel // 2)
        assert float((packed(x) - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
