"""A lowered network computes the same at every instruction set, in inference mode, in forks and in several threads."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from runtime.clocks import sparse_wins
from torch import Tensor, nn

import gossamer as gs
from gossamer.jit.cpu import levels
from gossamer.runtime.vector_chain import VectorChain


def sparse_mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(400, 512), nn.ReLU(), nn.Linear(512, 300)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight *= torch.rand_like(layer.weight) < 0.05
    return model


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("tokens", [1, 37])
def test_a_network_is_lowered_at_the_level_that_the_environment_forces(
    level: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", level)
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    model, x = sparse_mlp(0), torch.randn(tokens, 400)
    fast = gs.lower(model, x)  # type: ignore[operator]
    assert all(c.kernel != "dense" for c in fast.explain())
    with torch.inference_mode():
        exact = model.double()(x.double())
        assert float((fast(x) - exact).abs().max() / exact.abs().max()) <= 1e-5


def test_an_unknown_level_in_the_environment_is_refused_by_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_ISA", "sse9")
    with pytest.raises(gs.PlanError, match="GOSSAMER_ISA: found 'sse9'"):
        gs.lower(sparse_mlp(0), torch.randn(8, 400))  # type: ignore[operator]


def test_a_lowered_network_runs_with_and_without_inference_mode() -> None:
    model, x = sparse_mlp(0), torch.randn(20, 400)
    fast = gs.lower(model, x)  # type: ignore[operator]
    expected = model(x).detach()
    with torch.inference_mode():
        inside = fast(x).clone()
    outside = fast(x)
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(inside, outside) and not outside.requires_grad


def test_two_networks_run_at_once_in_two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    wrong: list[float] = []
    try:
        models = [sparse_mlp(seed) for seed in range(2)]
        fast = [gs.lower(model, torch.randn(40, 400)) for model in models]  # type: ignore[operator]

        def work(which: int) -> None:
            draw = torch.Generator().manual_seed(which)
            for _ in range(15):
                x: Tensor = torch.randn(40, 400, generator=draw)
                with torch.inference_mode():
                    wrong.append(float((fast[which](x) - models[which](x)).abs().max()))

        workers = [threading.Thread(target=work, args=(which,)) for which in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert len(wrong) == 30 and max(wrong) <= 1e-4


def test_the_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.lower.unavailable", lambda: "no compiler in this test")
    model, x = sparse_mlp(0), torch.randn(2, 400)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            assert torch.equal(gs.lower(model, x)(x), model(x))  # type: ignore[operator]
    assert len(seen) == 1


def test_a_network_lowered_for_one_token_is_one_chain_and_takes_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    model = sparse_mlp(0)
    fast = gs.lower(model, torch.randn(1, 400))  # type: ignore[operator]
    assert isinstance(fast.captured, VectorChain)
    for shape in ((1, 400), (400,), (2, 3, 400), (70, 400), (0, 400)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-5)
