"""Products by live values in training: the same function, gradients and topology changes as with the dense weight."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import gossamer as gs
from gossamer.drive import Tune, run
from gossamer.drive.progress import NoProgress
from gossamer.drive.tune import train
from gossamer.errors import PlanError
from gossamer.nn import products
from gossamer.nn.laid_out import compiled
from gossamer.nn.products import live_products

kernels = pytest.mark.skipif(not compiled(), reason="no kernels can be compiled here")
Batch = tuple[Tensor, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))


def batches(count: int = 12) -> list[Batch]:
    x = torch.randn(count, 16, 40, generator=torch.Generator().manual_seed(1))
    return [(b, b[:, :5].argmax(1)) for b in x]


def pruned(sparsity: float) -> nn.Module:
    return gs.compress(net(), [gs.prune.Magnitude(sparsity=sparsity)]).trainable()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    plain = products.live_product

    def product(*given: object) -> Tensor:
        calls.append(1)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(products, "live_product", product)
    return calls


def gradients(network: nn.Module) -> dict[str, Tensor]:
    x, y = batches(1)[0]
    x = x.clone().requires_grad_()
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return {"x": x.grad} | {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@kernels
def test_outputs_and_all_gradients_are_those_of_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = pruned(0.8), counted(monkeypatch)
    expected = gradients(network)
    with live_products(network):
        found = gradients(network)
    assert len(calls) == 3
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@kernels
def test_layers_go_back_to_what_they_were_even_after_an_error() -> None:
    network = pruned(0.8)
    with pytest.raises(ZeroDivisionError), live_products(network):
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in network.modules())


@kernels
def test_layers_with_more_than_a_third_of_their_weights_keep_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = pruned(0.5), counted(monkeypatch)
    with live_products(network):
        network(batches(1)[0][0])
    assert not calls


@kernels
def test_a_weight_quantized_on_its_way_keeps_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    tune = Tune(products="live")
    recipe = [
        gs.prune.Magnitude(sparsity=0.8),
        gs.QuantizationAware(methods=(gs.quantize.RoundToNearest(bits=4),), tune=tune),
    ]
    gs.compress(net(), recipe, data=batches(2))
    assert not calls


@kernels
def test_a_layer_with_a_forward_of_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model, calls = nn.Sequential(Doubled(32, 32)), counted(monkeypatch)
    network = gs.compress(model, [gs.prune.Magnitude(sparsity=0.9)]).trainable()
    x = torch.ones(4, 32)
    expected = network(x)
    with live_products(network):
        assert torch.equal(network(x), expected)
    assert not calls


@kernels
def test_a_weight_with_a_second_parametrization_keeps_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    network, calls = (
        gs.compress(nn.Linear(32, 32), [gs.prune.Magnitude(sparsity=0.9)]).trainable(),
        counted(monkeypatch),
    )
    parametrize.register_parametrization(network, "weight", Twice())
    x = torch.ones(4, 32)
    expected = network(x)
    with live_products(network):
        assert torch.equal(network(x), expected)
    assert not calls


@kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradual_pruning_ends_with_the_masks_and_nearly_the_values_of_dense_products(
    precision: Literal["float32", "bfloat16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)

    def trained(products: Literal["dense", "live"]) -> dict[str, Tensor]:
        tune = Tune(epochs=3, lr=1e-3, precision=precision, products=products)
        stage = gs.Gradual(methods=(gs.prune.Magnitude(sparsity=0.8),), tune=tune, updates=5)
        return gs.compress(net(), [stage], data=batches()).dense().state_dict()

    expected = trained("dense")
    assert not calls
    found = trained("live")
    assert calls
    for name, weight in expected.items():
        same = ((found[name] != 0) == (weight != 0)).float().mean()
        # rounding to 8 bits may turn the order of almost equal weights
        assert same == 1 if precision == "float32" else same > 0.97
        assert float((found[name] - weight).norm()) < (1e-3 if precision == "float32" else 0.1) * float(weight.norm())


@kernels
def test_autocast_leaves_live_products_in_float32() -> None:
    network = pruned(0.8)
    x = batches(1)[0][0]
    with live_products(network), torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert found.dtype is torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, network(x), atol=1e-5, rtol=1e-4)


def test_without_kernels_training_goes_on_with_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "compiled", lambda: False)
    calls = counted(monkeypatch)
    recipe = [gs.prune.Magnitude(sparsity=0.8), Tune(products="live")]
    gs.compress(net(), recipe, data=batches(2))
    assert not calls


def test_live_products_outside_of_compress_are_refused_with_what_to_do() -> None:
    recipe = [gs.prune.Magnitude(sparsity=0.8), Tune(products="live")]
    with pytest.raises(PlanError, match="products: found 'live' without kernels at hand"):
        run(net(), recipe, data=batches(2))
    with pytest.raises(PlanError, match="expected it in a recipe of compress"):
        train(copy.deepcopy(net()), batches(2), Tune(products="live"), progress=NoProgress())


def test_products_of_another_kind_are_refused() -> None:
    with pytest.raises(PlanError, match="products: found 'sparse', expected 'dense' or 'live'"):
        Tune(products="sparse")  # type: ignore[arg-type]
