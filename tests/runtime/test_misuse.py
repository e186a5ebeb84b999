"""What users do later with a lowered network: other batches, defaults, devices, objects that are shared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from runtime.clocks import sparse_wins, tiles_win
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gossamer as gs
from gossamer.runtime.convolution import SparseConv
from gossamer.runtime.graph import Either
from gossamer.runtime.group_code import Way
from gossamer.runtime.lower import Lowered
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.vector import VectorLinear


@pytest.fixture
def wins(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    return lambda clock: monkeypatch.setattr("gossamer.runtime.tuner.raced", clock)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def thinned(layer: nn.Module) -> nn.Module:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    weight.data[torch.rand_like(weight) < 0.8] = 0
    return layer


def lowered(model: nn.Module, *inputs: Tensor) -> Lowered:
    made: Lowered = gs.lower(model.eval(), inputs)  # type: ignore[operator]
    return made


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    largest = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    assert torch.allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, largest))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_change_what_kernels_write(
    dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    torch.manual_seed(0)
    layer = thinned(nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(1, 16, 9, 9)
    wanted = layer(x)
    sparse = SparseConv(layer, Way.SLICED, (9, 9))  # type: ignore[arg-type]
    default_dtype(dtype)
    assert_same(sparse(x), wanted)
    assert Slabs().empty(3, 5).dtype is torch.float32


def test_inputs_that_are_stored_with_the_other_sign_are_read_right() -> None:
    torch.manual_seed(0)
    conv, linear = thinned(nn.Conv2d(16, 16, 1)), thinned(nn.Linear(16, 8))
    x = torch._neg_view(torch.randn(1, 16, 8, 8))
    assert_same(SparseConv(conv, Way.SLICED, (8, 8))(x), conv(x))  # type: ignore[arg-type]
    y = torch._neg_view(torch.randn(1, 16))
    assert_same(VectorLinear(linear.weight, linear.bias)(y), linear(y))  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 3)])
def test_pointwise_groups_on_planes_that_are_no_whole_vectors(groups: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = thinned(nn.Conv2d(16, 24, 1, groups=groups))
    x = torch.randn(3, 16, *size)
    assert_same(SparseConv(layer, Way.SLICED, size)(x), layer(x))  # type: ignore[arg-type]


def test_a_smaller_team_than_asked_for_stays_within_its_scratch() -> None:
    """A limit on threads is read when OpenMP starts, so a process of its own is needed."""
    script = """
import torch, numpy as np
from gossamer.runtime.linear import SparseLinear
torch.set_num_threads(4)
torch.manual_seed(0)
weight = torch.randn(512, 512) * (torch.rand(512, 512) < 0.3)
at = weight.flatten().nonzero().squeeze(1)
layer = SparseLinear((512, 512), at, weight.flatten()[at], None)
asked = []
space = layer.product._workspace
class Watched:
    def address(self, floats):
        asked.append(floats)
        return space.address(floats)
layer.product._workspace = Watched()
tile = layer.product._tile
x = torch.randn(3 * tile, 512)
y = layer(x)
assert float((y - x.double() @ weight.double().T).abs().max()) < 1e-3
assert asked == [3 * tile * 1024], (asked, tile)
"""
    environment = {"OMP_THREAD_LIMIT": "2", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


class Aliased(nn.Module):
    """Works in place on a value that passed through a module which returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = thinned(nn.Linear(32, 32)), thinned(nn.Linear(32, 32))
        self.same, self.clip = nn.Identity(), nn.Hardtanh(-1.0, 1.0, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        z = self.clip(self.same(h))
        made: Tensor = self.b(h) + z
        return made


class Squashed(nn.Module):
    """A method without arguments between a Linear and a change of shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = thinned(nn.Linear(32, 32)), thinned(nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.b(self.a(x).tanh().reshape(x.shape))
        return made


class Joined(nn.Module):
    """Joins the heads of all examples as if they were one: right at batch 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (thinned(nn.Linear(32, 32)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (layer(x).view(b, t, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, c)
        made: Tensor = self.o(mixed)
        return made


class Swapped(nn.Module):
    """Splits tokens as if they came first: batch and tokens are equally many in the example."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (thinned(nn.Linear(32, 32)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (layer(x).view(t, b, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(t, b, c)
        made: Tensor = self.o(mixed)
        return made


@pytest.mark.parametrize("make", [Aliased, Squashed, Joined, Swapped])
def test_graphs_that_fit_the_example_only_are_not_taken_for_more(
    make: type[nn.Module], wins: Callable[[object], None]
) -> None:
    wins(tiles_win)
    torch.manual_seed(0)
    model = make().eval()
    example = torch.randn(20, 20, 32) if make is Swapped else torch.randn(1, 20, 32)
    fast = lowered(model, example)
    for x in (example, 100 * example, torch.randn(3, 20, 32), torch.randn(2, 5, 32)):
        with torch.no_grad():
            assert_same(fast(x), model(x))


class Doubling(nn.Module):
    """Works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = thinned(nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.a(x.mul_(2))
        return made


def test_example_inputs_stay_as_they_were(wins: Callable[[object], None]) -> None:
    wins(sparse_wins)
    torch.manual_seed(0)
    model, x = Doubling().eval(), torch.randn(20, 32)
    kept = x.clone()
    fast = lowered(model, x)
    assert torch.equal(x, kept)
    assert fast.explain()[0].kernel != "dense"
    with torch.no_grad():
        assert_same(fast(x.clone()), model(x.clone()))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = thinned(nn.Conv2d(16, 16, 3, padding=1)), nn.Dropout()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.drop(input=self.conv(x)) + y)


def test_what_did_not_broadcast_in_the_example_may_later(wins: Callable[[object], None]) -> None:
    wins(sparse_wins)
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(3, 16, 8, 8)
    fast = lowered(model, x, x)
    assert isinstance(fast.captured, Either)
    for other in (x, x[:1], x[:0]):
        with torch.no_grad():
            first = x if len(other) else other
            assert_same(fast(first, other), model(first, other))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = thinned(nn.Linear(32, 32))
        self.again = [self.layer]
        self.weights = {"first": (self.layer.weight,)}

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.again[0](self.layer(x)) @ self.weights["first"][0]
        return made


def test_training_the_original_later_does_not_change_the_lowered_one(wins: Callable[[object], None]) -> None:
    wins(sparse_wins)
    torch.manual_seed(0)
    model, x = Listed().eval(), torch.randn(20, 32)
    fast = lowered(model, x)
    with torch.no_grad():
        before = model(x)
        model.layer.weight.zero_()
    assert_same(fast(x), before)


def test_packed_sequences_that_do_not_fit_their_rows_are_refused(wins: Callable[[object], None]) -> None:
    wins(sparse_wins)
    torch.manual_seed(0)
    layer = nn.LSTM(16, 32)
    for parameter in layer.parameters():
        parameter.data[torch.rand_like(parameter) < 0.9] = 0
    fast = lowered(nn.Sequential(layer), torch.randn(5, 3, 16))
    for sizes in ([3, 3], [1, 2], [2, 0, 1]):
        with pytest.raises(RuntimeError, match="batch sizes"):
            fast(PackedSequence(torch.randn(3, 16), torch.tensor(sizes)))


def test_forward_hooks_are_called_as_before(wins: Callable[[object], None]) -> None:
    wins(tiles_win)
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 32), nn.ReLU()), block).eval()
    for layer in (model[0], model[2][0], block.linear1):
        thinned(layer)
    called: list[str] = []
    model[0].register_forward_hook(lambda module, inputs, output: called.append("first"))
    model[2].register_forward_pre_hook(lambda module, inputs: called.append("second"))
    block.self_attn.register_forward_hook(lambda module, inputs, output: called.append("attention"))
    x = torch.randn(2, 20, 32)
    fast: Lowered = gs.lower(model, x)  # type: ignore[operator]
    with torch.inference_mode():
        expected = model(x)
        called.clear()
        torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)
    assert called[:2] == ["first", "second"]
    kernels = {c.layer: (c.kernel, c.reason) for c in fast.explain()}
    assert kernels["0"] == ("dense", "the layer has forward hooks, which another one would not call")
    assert kernels["2.0"][0] == "sliced"
