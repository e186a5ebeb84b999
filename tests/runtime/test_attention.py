"""Attention on feature-major tiles computes what PyTorch's does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime.clocks import tiles_win
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.jit.cpu import Level, Processor, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.attention import TiledAttention
from gossamer.runtime.kernels import ATTENTION
from gossamer.runtime.lower import Lowered
from gossamer.runtime.tiled import Tiles, tiler

LEVELS = levels()


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def exact(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool, scale: float | None) -> Tensor:
    parts = (heads_of(x.double(), heads) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)


def attended(q: Tensor, k: Tensor, v: Tensor, level: Level, module: Callable[[Tiles, Tiles, Tiles], Tiles]) -> Tensor:
    operations = tiler(level)
    return operations.unpack(module(operations.pack(q), operations.pack(k), operations.pack(v)))


@pytest.mark.parametrize("level", LEVELS)
@given(
    images=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    heads=st.integers(1, 3),
    depth=st.integers(1, 9),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    threads=st.integers(1, 2),
)
def test_any_shape_is_right_at_every_level(
    level: Level, images: int, queries: int, keys: int, heads: int, depth: int, causal: bool, scale: float, threads: int
) -> None:
    torch.manual_seed(queries * 100 + keys)
    q, k, v = (torch.randn(images, n, heads * depth) for n in (queries, keys, keys))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        module = TiledAttention(heads, causal=causal, scale=scale, operations=tiler(level))
        found = attended(q, k, v, level, module)
    finally:
        torch.set_num_threads(before)
    wanted = exact(q, k, v, heads, causal=causal, scale=scale)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_results_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 100, 96) for _ in range(3))
    module = TiledAttention(6, causal=False, scale=None, operations=tiler())
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(attended(q, k, v, LEVELS[0], module))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_lanes_beyond_the_last_token_repeat_it() -> None:
    operations = tiler()
    q, k, v = (operations.pack(torch.randn(1, 37, 12)) for _ in range(3))
    made = TiledAttention(3, causal=False, scale=None, operations=operations)(q, k, v)
    flat = made.data.transpose(1, 2).reshape(-1, 12)
    assert torch.equal(flat[37:], flat[36:37].expand(len(flat) - 37, 12))


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((1, 5, 4), 1e4)
    found = attended(q, q, torch.arange(20.0).view(1, 5, 4), LEVELS[0], attention(1))
    assert torch.allclose(found, torch.arange(8.0, 12.0).expand(1, 5, 4))


def attention(heads: int) -> TiledAttention:
    return TiledAttention(heads, causal=False, scale=None, operations=tiler())


def test_features_that_heads_do_not_divide_are_refused() -> None:
    operations = tiler()
    x = operations.pack(torch.randn(1, 4, 10))
    with pytest.raises(RuntimeError, match="found 10 features, expected a multiple of 3"):
        attention(3)(x, x, x)


def test_neon_uses_vector_multiply_adds() -> None:
    assert "fmla\tv" in assembly(Processor.neon(), ATTENTION)


class Attending(nn.Module):
    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.mix(self.q(x), self.k(x), self.v(x)))
        return made


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (y.view(b, t, 4, 8).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 32)


def permuted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (y.reshape(b, -1, 4, 8).permute(0, 2, 1, 3) for y in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    return mixed.permute((0, 2, 1, 3)).contiguous().view(b, t, -1)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (y.view(b, t, 4, 8).transpose(1, 2) for y in (q, k, v))
    mask = torch.zeros(1, 1, 1, 8)[..., :1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, 32)


def head_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads lie within features, not side by side: another function, which must not be taken for the usual one."""
    b, t, _ = q.shape
    q, k, v = (y.view(b, t, 8, 4).permute(0, 3, 1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).reshape(b, t, 32)


def read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (y.view(b, t, 4, 8).transpose(1, 2) for y in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v) + q
    return mixed.transpose(1, 2).reshape(b, t, 32)


@pytest.mark.parametrize(
    ("mix", "tiled"),
    [(plain, 1), (permuted, 1), (masked, 0), (head_last, 0), (read_twice, 0)],
    ids=["plain", "permuted", "masked", "head last", "read twice"],
)
def test_attention_is_recognised_where_it_is_the_usual_one(
    mix: Callable[[Tensor, Tensor, Tensor], Tensor], tiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", tiles_win)
    torch.manual_seed(0)
    model = Attending(mix).eval()
    for layer in (model.q, model.k, model.v, model.out):
        layer.weight.data[torch.rand(32, 32) < 0.8] = 0
    x = torch.randn(2, 19, 32)
    fast: Lowered = gs.lower(model, x)  # type: ignore[operator]
    assert sum(isinstance(m, TiledAttention) for m in fast.modules()) == tiled
    for other in (x, torch.randn(3, 40, 32), torch.randn(1, 1, 32)):
        with torch.no_grad():
            wanted = model(other)
        assert torch.allclose(fast(other), wanted, rtol=0, atol=1e-5)
