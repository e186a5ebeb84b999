"""Quantization-aware training against a plain loop with straight-through weights, and against the file it leaves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from contract.test_every_encoding import same_trees
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.api import compress, load
from gossamer.drive import Gradual, QuantizationAware, State, Tune, run
from gossamer.drive.progress import NoProgress
from gossamer.drive.quantization_aware import Latents
from gossamer.drive.recipe import Recipe, run_method
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Affine, Codebook, Encoding, Kept, Masked, View
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import DENSE, Method, Rule, Site
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import (
    Cast,
    FoldBatchNorm,
    LearnedRate,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    RateDistortion,
    RoundToNearest,
    Ternary,
)
from gossamer.methods.quantize.rtn import AFFINE
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels
from gossamer.network.rebuild import materialise

QUANTIZERS: Mapping[str, Method] = {
    "rtn": RoundToNearest(bits=3),
    "rtn-asymmetric-grouped": RoundToNearest(bits=3, group=4, symmetric=False, scale_dtype="bfloat16"),
    "ternary": Ternary(),
    "ternary-optimal": Ternary(threshold="optimal", group="tensor"),
    "power": PowerOfTwo(bits=3),
    "normal": NormalFloat(bits=3, group=4),
    "lsq": LearnedStep(bits=2),
    "lsq-half": LearnedStep(bits=3, scale_dtype="float16", group=4),
    "learned-rate": LearnedRate(levels=3),
    "learned-rate-levels": LearnedRate(levels=5, zeros="level", group=4, scale_dtype="float32"),
    "rate-distortion": RateDistortion(rate=1e-4),
    "mixed": MixedBits(average_bits=3.0),
    "float8": Cast(dtype="float8_e4m3fn"),
    "kmeans": KMeans(bits=2),
    "kmeans-network-wide": KMeans(bits=2, network_wide=True),
}
every_quantizer = pytest.mark.parametrize("method", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def batches(count: int = 8) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 16, 10, generator=torch.Generator().manual_seed(1))
    return [(b, b[:, :3].argmax(1)) for b in x]


def state_of(model: nn.Module, recipe: Recipe) -> State:
    state = run(model, recipe)
    return State(model, state.specs, state.trees, None, F.cross_entropy, NoProgress())


def train_by_hand(latents: Latents, refresh: int) -> None:
    latents.network.train()
    optimizer = Tune(lr=0.02).make_optimizer(latents.network)
    for step, (x, y) in enumerate(batches()):
        if step:
            latents.moved(refresh=step % refresh == 0)
        optimizer.zero_grad()
        F.cross_entropy(latents.network(x), y).backward()
        optimizer.step()
    latents.network.eval()


@pytest.mark.parametrize("method", [RoundToNearest(bits=3), Ternary()], ids=["rtn", "ternary"])
def test_weights_train_as_in_a_plain_loop_with_straight_through_weights(method: Method) -> None:
    model, data, tune = net(), batches(), Tune(epochs=2, lr=0.01)
    reference = copy.deepcopy(model).train()
    optimizer = tune.make_optimizer(reference)
    layers = [m for m in reference if isinstance(m, nn.Linear)]

    def quantized(w: Tensor) -> Tensor:
        site = Site(run(nn.Linear(1, 1), []).specs[0], "", tuple(w.shape))
        q = method.encode(site, run(_holding(w), []).trees["weight"], {}, {}).to_dense()
        return w + (q - w).detach()

    for step in range(2 * len(data)):
        x, y = data[step % len(data)]
        for i, layer in enumerate(layers):
            x = F.linear(F.relu(x) if i else x, quantized(layer.weight), layer.bias)
        optimizer.param_groups[0]["lr"] = tune.rate(step, 2 * len(data))
        optimizer.zero_grad()
        F.cross_entropy(x, y).backward()
        optimizer.step()
    state = run(model, [QuantizationAware(methods=(method,), tune=tune)], data=data)
    for name, parameter in reference.named_parameters():
        expected = quantized(parameter) if name.endswith("weight") else parameter
        torch.testing.assert_close(state.trees[name].to_dense(), expected, rtol=1e-3, atol=1e-4)


def _holding(w: Tensor) -> nn.Module:
    layer = nn.Linear(w.shape[1], w.shape[0])
    layer.weight = nn.Parameter(w.detach().clone())
    return layer


@every_quantizer
@pytest.mark.parametrize("before", [[], [Magnitude(sparsity=0.5)], [SVD(rank=3)]], ids=["dense", "pruned", "low-rank"])
@pytest.mark.parametrize("refresh", [1, 3])
def test_the_result_is_exactly_what_a_forward_pass_after_the_last_step_computes(
    method: Method, before: list[Method], refresh: int
) -> None:
    state = state_of(net(), before)
    latents = Latents((method, RoundToNearest(bits=8, group="tensor", only="*.bias")), state)
    train_by_hand(latents, refresh)
    latents.moved(refresh=False)
    x = torch.cat([b for b, _ in batches()])
    with torch.no_grad():
        computed = latents.network(x)
    latents.settle(refresh=False)
    state.take(latents.network)
    dense = materialise(net(), state.specs, state.trees).eval()
    with torch.no_grad():
        assert torch.equal(latents.network(x), computed)
        assert torch.equal(dense(x), computed)
    for spec in state.specs:
        if spec.name.endswith("bias"):
            assert isinstance(state.trees[spec.name], Affine)


@pytest.mark.parametrize("method", [m for m in QUANTIZERS.values() if not m.learns], ids=lambda m: type(m).__name__)
def test_with_a_fit_at_every_step_the_result_is_the_method_applied_to_the_trained_weights(method: Method) -> None:
    state = state_of(net(), [Magnitude(sparsity=0.3)])
    latents = Latents((method,), state)
    train_by_hand(latents, 1)
    trained = copy.deepcopy(state)
    trained.take(latents.network)
    assert all(not isinstance(n, Affine) for t in trained.trees.values() for _, n in t.nodes())
    latents.settle(refresh=True)
    state.take(latents.network)
    if isinstance(method, MixedBits):  # the bits are those that the first weights got
        bits = {n: cast(Affine, t.at("/value")).bits for n, t in state.trees.items() if isinstance(t, Masked)}
        for name, count in bits.items():
            run_method(RoundToNearest(bits=count, only=name), trained)
    else:
        run_method(method, trained)
    assert same_trees(trained.trees, state.trees)


@every_quantizer
def test_training_helps_and_the_file_holds_what_was_trained(method: Method, tmp_path: Path) -> None:
    model, data = net(), batches(20)
    small = compress(model, [QuantizationAware(methods=(method,), tune=Tune(epochs=6, lr=0.02), refresh=2)], data=data)
    small.save(tmp_path / "w.gsm")
    again = load(tmp_path / "w.gsm", into=net)
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    with torch.no_grad():
        assert torch.equal(again.dense()(x), small.dense()(x))
        rounded = compress(model, [method]).dense()(x)
        assert F.cross_entropy(again.dense()(x), y) < 0.8 * F.cross_entropy(rounded, y)


def test_survivors_of_gradual_pruning_keep_their_mask() -> None:
    tune = Tune(epochs=2, lr=0.01)
    recipe = [
        Gradual(methods=(Magnitude(sparsity=0.8, only=("0.weight", "2.weight")),), tune=tune, updates=3),
        QuantizationAware(methods=(Ternary(threshold=0.3, group="tensor"),), tune=tune),
    ]
    state = run(net(), recipe, data=batches())
    tree = state.trees["0.weight"]
    assert isinstance(tree, Masked)
    assert tree.where.positions().numel() == 32
    assert isinstance(tree.value, Affine)
    assert tree.to_dense().unique().numel() <= 3
    assert [p["method"] for p in state.plans] == ["Magnitude", "Ternary"]


def test_learned_steps_move_and_others_are_fitted() -> None:
    state = run(
        net(), [QuantizationAware(methods=(LearnedStep(bits=3),), tune=Tune(epochs=4, lr=0.02))], data=batches()
    )
    started = run(net(), [LearnedStep(bits=3)])
    for name in ("0.weight", "2.weight"):
        assert not torch.allclose(
            state.trees[name].at("/scale").to_dense(), started.trees[name].at("/scale").to_dense()
        )


def test_a_codebook_of_the_whole_network_stays_one() -> None:
    stage = QuantizationAware(methods=(KMeans(bits=3, network_wide=True),), tune=Tune(epochs=1), refresh=3)
    state = run(net(), [stage], data=batches())
    tables = {id(cast(Codebook, state.trees[f"{i}.weight"]).table) for i in (0, 2, 4)}
    assert len(tables) == 1


def test_the_dense_network_teaches_hidden_states_where_only_these_are_asked_for() -> None:
    ends = []
    for weight in (0.0, 100.0):
        tune = Tune(epochs=1, lr=0.02, hidden={"2": "2"}, hidden_weight=weight)
        state = run(net(), [QuantizationAware(methods=(LearnedStep(bits=3),), tune=tune)], data=batches())
        ends.append(state.trees["2.weight"].to_dense())
    assert not torch.equal(*ends)


def test_two_methods_may_share_a_tensor_at_different_places() -> None:
    stage = QuantizationAware(methods=(Ternary(only="0.weight"), KMeans(bits=2)), tune=Tune(epochs=1))
    state = run(net(), [stage], data=batches())
    assert isinstance(state.trees["0.weight"], Affine)
    assert isinstance(state.trees["2.weight"], Codebook)


class Odd(nn.Module):
    """A transposed convolution and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 2)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.up(x).mean((2, 3)))))


def test_views_and_tied_weights_train_too() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 2, 3, 3), torch.randint(4, (8,))) for _ in range(4)]
    state = run(Odd(), [QuantizationAware(methods=(LearnedStep(bits=3),), tune=Tune(epochs=2, lr=0.02))], data=data)
    assert isinstance(state.trees["up.weight"], View)
    assert isinstance(state.trees["up.weight"].at("/inner"), Affine)
    dense = materialise(Odd(), state.specs, state.trees)
    assert dense.first.weight is dense.second.weight
    with torch.no_grad():
        torch.testing.assert_close(dense(data[0][0]), state.network()(data[0][0]))


def test_shrunk_layers_stay_shrunk() -> None:
    recipe = [Channels(sparsity=0.5), QuantizationAware(methods=(RoundToNearest(bits=4),), tune=Tune(epochs=1))]
    state = run(net(), recipe, data=batches())
    tree = state.trees["0.weight"]
    assert isinstance(tree, Kept)
    assert isinstance(tree.inner, Affine)
    assert tree.inner.dense_shape() == (8, 10)


def test_a_copy_of_the_latent_network_is_a_network_of_its_own() -> None:
    latents = Latents((LearnedStep(bits=2),), state_of(net(), []))
    twin = copy.deepcopy(latents.network)
    x = batches()[0][0]
    before = latents.network(x).detach()
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(3)
    assert not torch.equal(twin(x), before)
    assert torch.equal(latents.network(x), before)


@dataclass(frozen=True, kw_only=True)
class OnlyWhole(Method):
    """A quantizer that can only start over."""

    def rules(self) -> tuple[Rule, ...]:
        return (Rule(DENSE, lambda _: AFFINE),)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        return RoundToNearest(bits=4).encode(site, weight, entry, shared)


def test_methods_that_cannot_keep_a_grid_are_applied_anew_at_the_end() -> None:
    data = batches()
    state = state_of(net(), [])
    latents = Latents((OnlyWhole(),), state)
    train_by_hand(latents, 100)
    trained = copy.deepcopy(state)
    trained.take(latents.network)
    latents.settle(refresh=False)
    state.take(latents.network)
    run_method(OnlyWhole(), trained)
    assert same_trees(trained.trees, state.trees)
    assert run(net(), [QuantizationAware(methods=(OnlyWhole(),), refresh=3)], data=data).trees


def test_what_makes_no_sense_is_refused_before_work() -> None:
    for rigid in (Magnitude(sparsity=0.5), SVD(rank=2), FoldBatchNorm(), Channels(sparsity=0.5)):
        with pytest.raises(PlanError, match=f"QuantizationAware: found {type(rigid).__name__}"):
            QuantizationAware(methods=(rigid,))
    for bad in ({"methods": ()}, {"refresh": 0}):
        with pytest.raises(PlanError, match="QuantizationAware"):
            QuantizationAware(**{"methods": (Ternary(),), **bad})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"QuantizationAware.: found no data"):
        run(net(), [QuantizationAware(methods=(Ternary(),))])
    stage = QuantizationAware(methods=(KMeans(bits=2),))
    with pytest.raises(CompositionError, match="Prune before"):
        run(net(), [stage, Magnitude(sparsity=0.5)], data=batches())
    with pytest.raises(CompositionError, match="cannot be quantized again"):
        run(net(), [QuantizationAware(methods=(Ternary(), RoundToNearest()))], data=batches())


def test_a_dry_run_applies_the_methods_and_yaml_names_the_stage() -> None:
    stage = QuantizationAware(
        methods=(Ternary(threshold=1.5), KMeans(bits=3, only="*.bias")), tune=Tune(epochs=3, distil=0.5), refresh=4
    )
    assert parse_recipe(yaml.safe_load(dump_recipe([stage]))) == [stage]
    state = run(net(), [QuantizationAware(methods=(Ternary(),))], training=False)
    assert isinstance(state.trees["0.weight"], Affine)
