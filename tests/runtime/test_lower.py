"""Lowering changes how layers run, never what they compute."""

import copy
from pathlib import Path

import pytest
import torch
from runtime.clocks import Recording
from torch import nn

import gossamer as gs
from gossamer.runtime.vector import has_bitmaps


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)).eval()


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.b = nn.Conv2d(24, 32, 3, dilation=2)
        self.c = nn.Linear(32 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(x.flatten(1))


RECIPES = {
    "sparse": [gs.prune.Magnitude(sparsity=0.9)],
    "shared": [gs.prune.Magnitude(sparsity=0.9), gs.share.KMeans(bits=3)],
    "low rank": [gs.factorize.SVD(rank=8)],
    "low rank, sparse": [gs.factorize.SVD(rank=16), gs.prune.Magnitude(sparsity=0.8)],
    "tensor train": [gs.factorize.TensorTrain(rank=4)],
    "monarch": [gs.factorize.Monarch(blocks=(2, 4))],
    "sum": [gs.factorize.LowRankPlusSparse(rank=4, density=0.05)],
    "smaller, sparse": [gs.shrink.Channels(sparsity=0.5), gs.prune.Magnitude(sparsity=0.8)],
    "quantized": [gs.quantize.RoundToNearest(bits=4)],
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("batch", [1, 5])
def test_a_lowered_mlp_computes_what_the_dense_one_does(recipe: list[object], batch: int) -> None:
    made = gs.compress(mlp(), recipe)  # type: ignore[arg-type]
    inputs = torch.randn(batch, 64)
    fast = made.lower(inputs)
    expected = made.dense()(inputs)
    assert torch.allclose(fast(inputs), expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    more = torch.randn(17, 64)  # any batch size, without lowering again
    assert torch.allclose(fast(more), made.dense()(more), atol=1e-5)


CONVOLUTIONS = {
    **{name: RECIPES[name] for name in ("low rank", "sparse", "low rank, sparse", "sum")},
    "tucker": [gs.factorize.Tucker2(macs=0.4)],
    "cp": [gs.factorize.CP(rank=5)],
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_lowered_convolution_computes_what_the_dense_one_does(name: str) -> None:
    made = gs.compress(Conv().eval(), CONVOLUTIONS[name])  # type: ignore[arg-type]
    inputs = torch.randn(4, 3, 14, 14)
    assert made.lower(inputs)(inputs).shape == (4, 10)
    assert torch.allclose(made.lower(inputs)(inputs), made.dense()(inputs), atol=1e-5)


OVERLAPPING = {"pairings", "pairings, narrow panels", "patterns"}
GROUPED = {"sparse", "sliced", "sliced, wide panels", "pairs"}
OFFERED = {
    "sparse": {"dense", *GROUPED},
    "low rank": {"dense", "low rank"},
    "low rank, sparse": {"dense", "low rank", "low rank, sparse", *GROUPED, *OVERLAPPING},
    "tensor train": {"dense", "tensor train"},
    "monarch": {"dense", "monarch"},
    "sum": {"dense", "sum, sparse"},
    "quantized": set(),
}


@pytest.mark.parametrize("name", OFFERED)
def test_the_fastest_of_what_was_measured_runs_a_layer_and_dense_is_always_measured(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gs.compress(mlp(), RECIPES[name])  # type: ignore[arg-type]
    inputs = torch.randn(9, 64)
    expected = made.dense()(inputs)
    for winner in OFFERED[name] or {"dense"}:
        clock = Recording(winner)
        monkeypatch.setattr("gossamer.runtime.tuner.raced", clock)
        fast = made.lower(inputs)
        assert clock.offered[:2] == [OFFERED[name]] * 2 if OFFERED[name] else clock.offered == []
        assert [c.kernel for c in fast.explain()[:2]] == [winner, winner]
        assert torch.allclose(fast(inputs), expected, atol=1e-5)
        copied = copy.deepcopy(fast)
        assert torch.equal(copied(inputs), fast(inputs))
        if winner != "dense":
            assert all(c.bytes < c.dense_bytes for c in fast.explain()[:2])


VECTORS = {"vector by index"} | ({"vector by bitmap"} if has_bitmaps() else set())
FEW_OF = {
    "sparse": VECTORS,
    "shared": VECTORS | {f"{name}, indices of 16 values" for name in VECTORS},
    "eight bits": VECTORS | {f"{name}, 8-bit values" for name in VECTORS},
}


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("name", FEW_OF)
def test_few_tokens_are_offered_kernels_for_few_vectors(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = [gs.prune.Magnitude(sparsity=0.8), gs.quantize.RoundToNearest(bits=8)]
    made = gs.compress(mlp(), {**RECIPES, "eight bits": eight}[name])  # type: ignore[arg-type]
    inputs = torch.randn(tokens, 64)
    expected = made.dense()(inputs)
    offered = {"dense", *FEW_OF[name], *([] if tokens <= 4 else ["sparse", "sliced"])}
    for winner in offered:
        clock = Recording(winner)
        monkeypatch.setattr("gossamer.runtime.tuner.raced", clock)
        fast = made.lower(inputs)
        assert clock.offered[:2] == [offered] * 2
        assert [c.kernel for c in fast.explain()[:2]] == [winner, winner]
        tolerance = 1e-5 * float(expected.detach().abs().max()) + 1e-6
        for x in (inputs, torch.randn(1, 64), torch.randn(2, 3, 64), torch.randn(40, 64), torch.randn(64)):
            torch.testing.assert_close(fast(x), made.dense()(x), rtol=0, atol=tolerance)
        assert torch.equal(copy.deepcopy(fast)(inputs), fast(inputs))


def test_an_embedding_may_run_on_its_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(60, 32), nn.Linear(32, 4))
    made = gs.compress(model, [gs.factorize.TensorTrain(rank=3, only="0.weight")])
    index = torch.randint(60, (5, 7))
    for winner in ("dense", "tensor train"):
        monkeypatch.setattr("gossamer.runtime.tuner.raced", Recording(winner))
        fast = made.lower(index)
        assert {c.layer: c.kernel for c in fast.explain()} == {"0": winner, "1": "dense"}
        assert torch.allclose(fast(index), made.dense()(index), atol=1e-5)


def test_a_factorized_layer_that_cannot_run_on_its_factors_says_so() -> None:
    torch.manual_seed(0)
    made = gs.compress(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), [gs.factorize.Tucker2(macs=0.5)])
    (choice,) = made.lower(torch.randn(1, 8, 6, 6)).explain()
    assert choice.kernel == "dense"
    assert choice.reason == "Tucker in Conv2d: no small operators for it here"


def test_every_layer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", Recording("sliced"))
    made = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.9, only="0.weight")])
    choices = {c.layer: c for c in made.lower(torch.randn(8, 64)).explain()}
    assert set(choices) == {"0", "2", "4"}
    assert choices["0"].density == pytest.approx(0.1, abs=1e-3)
    assert choices["0"].ms > 0
    assert choices["0"].reason == ""
    assert "too few zeros" in choices["2"].reason
    assert choices["2"].kernel == "dense"


def test_where_tiles_lose_as_a_whole_only_their_best_kernel_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording("sliced")  # and networks with their layers replaced, rather than feature-major ones
    monkeypatch.setattr("gossamer.runtime.tuner.raced", recording)
    made = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.9, only="0.weight")])
    choices = {c.layer: c.kernel for c in made.lower(torch.randn(32, 64)).explain()}
    layers = [names for names in recording.offered if "sliced" in names]
    assert layers[0] > layers[1] == {"dense", "sparse", "sliced"}
    assert len(layers) == 2
    assert choices["0"] == "sliced"


def test_a_module_with_zeros_is_lowered_without_a_recipe() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand_like(model[0].weight) < 0.05)  # type: ignore[index]
    untouched = copy.deepcopy(model.state_dict())
    inputs = torch.randn(6, 64)
    fast = gs.lower(model, inputs)  # type: ignore[operator]
    assert torch.allclose(fast(inputs), model(inputs), atol=1e-5)
    assert all(torch.equal(untouched[k], v) for k, v in model.state_dict().items())


def test_a_layer_that_is_the_whole_network_is_lowered() -> None:
    made = gs.compress(nn.Linear(64, 64), [gs.prune.Magnitude(sparsity=0.9)])
    inputs = torch.randn(3, 64)
    assert torch.allclose(made.lower(inputs)(inputs), made.dense()(inputs), atol=1e-5)


def test_inputs_that_the_network_rejects_are_refused_with_its_reason() -> None:
    made = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.9)])
    with pytest.raises(gs.DataError, match="example_inputs"):
        made.lower(torch.randn(3, 63))


def test_without_a_compiler_everything_runs_dense_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.lower.unavailable", lambda: "no compiler in this test")
    made = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.9)])
    inputs = torch.randn(2, 64)
    with pytest.warns(UserWarning, match="no compiler in this test"):
        fast = made.lower(inputs)
    assert torch.equal(fast(inputs), made.dense()(inputs))


def test_a_reloaded_file_lowers_to_the_same_results(tmp_path: Path) -> None:
    made = gs.compress(mlp(), RECIPES["shared"])  # type: ignore[arg-type]
    made.save(tmp_path / "a.gsm")
    inputs = torch.randn(4, 64)
    again = gs.load(tmp_path / "a.gsm", into=mlp)
    assert torch.equal(again.dense()(inputs), made.dense()(inputs))
    assert torch.allclose(again.lower(inputs)(inputs), made.dense()(inputs), atol=1e-5)
