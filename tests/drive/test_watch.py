"""What is summed up of the inputs of every kind of layer, against their outputs: Σ y = W·Σ x, Σ y·yᵀ = W·G·Wᵀ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.watch import Watch, gram_of, watched_names
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.network.inspect import specs

ALL = frozenset({"count", "sum", "sq", "zeros", "gram"})


def seen(model: nn.Module, *inputs: Tensor, needs: frozenset[str] = ALL) -> dict[str, dict[str, Tensor]]:
    listed = specs(model)
    watch = Watch(watched_names(model, listed, frozenset(s.name for s in listed)), needs)
    with torch.inference_mode(), watch:
        for x in inputs:
            model(x)
    return watch.finish()


@given(st.integers(1, 5), st.sampled_from([1, 3, 192, 193, 400, 900]))
def test_gram_matrices_are_those_of_the_plain_product_and_exactly_symmetric(rows: int, columns: int) -> None:
    x = torch.randn(2, rows, columns)
    found = gram_of(x)
    assert torch.allclose(found, x.mT @ x, atol=1e-4)
    assert torch.equal(found, found.mT)


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, padding=1, groups=2, bias=False), (4, 9)),
    (nn.Conv1d(4, 6, 4, padding="same", dilation=2, bias=False), (4, 9)),
    (nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=(1, 0), bias=False), (4, 7, 8)),
    (nn.Conv2d(4, 6, (3, 2), padding="valid", bias=False), (4, 7, 8)),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1, bias=False), (2, 3, 4, 5)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), (4, 5)),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 1), dilation=(1, 2), bias=False), (4, 5, 4)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, padding=2, bias=False), (4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "size"), CONVOLUTIONS, ids=str)
def test_convolutions_see_what_their_outputs_are_made_of(layer: nn.Module, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, *size)
    found = seen(layer, x)["weight"]
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
    groups = int(layer.groups)  # type: ignore[arg-type]
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):  # [in, out/g, …] → [g, out/g, in/g · …]
        parts = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(2)
    else:
        parts = weight.view(groups, -1, *weight.shape[1:]).flatten(2)
    outputs = layer(x).detach().transpose(0, 1).reshape(groups, parts.shape[1], -1)  # [g, out/g, places]
    sums, gram = (found[k].view(groups, *found[k].shape[groups > 1 :]) for k in ("sum", "gram"))
    assert torch.allclose((parts @ sums[..., None])[..., 0], outputs.sum(-1), atol=1e-4)
    assert torch.allclose(parts @ gram @ parts.mT, outputs @ outputs.mT, atol=1e-3)
    assert float(found["count"]) == outputs.shape[-1]
    assert torch.allclose(found["sq"], found["gram"].diagonal(dim1=-2, dim2=-1), atol=1e-4)


class Stack(nn.Module):
    def __init__(self, kind: type[nn.Module], **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, 2, batch_first=True, bidirectional=True, **settings)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_every_level_and_direction_of_a_recurrent_stack_is_seen(kind: type[nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    model, x = Stack(kind, bias=bias), torch.randn(2, 5, 3)
    found = seen(model, x)
    first = kind(3, 4, 1, batch_first=True, bidirectional=True, bias=bias)  # type: ignore[call-arg]
    first.load_state_dict({k: v for k, v in model.rnn.state_dict().items() if "_l0" in k})
    middle = first(x)[0].detach()
    for way in ("", "_reverse"):
        assert torch.allclose(found[f"rnn.weight_ih_l1{way}"]["sum"], middle.sum((0, 1)), atol=1e-5)
    backwards = middle[..., 4:].flip(1)  # in the order in which its states come
    states = torch.cat([torch.zeros(2, 1, 4), backwards[:, :-1]], 1).reshape(-1, 4)
    assert torch.allclose(found["rnn.weight_hh_l0_reverse"]["gram"], states.T @ states, atol=1e-5)
    assert len(found) == 8


def test_an_embedding_counts_its_tokens() -> None:
    found = seen(nn.Embedding(5, 3), torch.tensor([[1, 1, 2], [0, 1, 4]]))["weight"]
    assert float(found["count"]) == 6
    assert torch.equal(found["gram"], torch.eye(3) * 6 / 5)
    assert torch.equal(found["sq"], torch.full((3,), 6 / 5))


def test_layers_that_see_the_same_inputs_share_one_gram_matrix() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x), self.k(x)
            x += 1
            out: Tensor = q + k + self.v(x)
            return out

    x = torch.randn(6, 4)
    found = seen(Three(), x.clone(), x.clone())
    assert found["q.weight"]["gram"] is found["k.weight"]["gram"]
    assert torch.allclose(found["q.weight"]["gram"], 2 * x.T @ x, atol=1e-4)
    assert torch.allclose(found["v.weight"]["gram"], 2 * (x + 1).T @ (x + 1), atol=1e-4)  # written to in between


def test_attention_with_inputs_of_its_own_for_keys_and_values_is_seen() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True)
    q, k, v = torch.randn(1, 2, 4), torch.randn(1, 6, 3), torch.randn(1, 6, 5)
    watch = Watch(watched_names(layer, specs(layer), frozenset(s.name for s in specs(layer))), frozenset({"sum"}))
    with torch.inference_mode(), watch:
        layer(q, k, v)
    for name, x in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
        assert torch.allclose(watch.found[name]["sum"], x.sum((0, 1)), atol=1e-5)


def test_sums_over_many_batches_are_as_exact_as_single_precision() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(8, 16) + 1 for _ in range(2000)]
    found = seen(nn.Linear(16, 1), *batches)["weight"]["gram"].double()
    rows = torch.cat(batches).double()
    exact = rows.T @ rows
    assert float((found - exact).norm() / exact.norm()) < 2e-6


def test_the_weight_of_transformers_conv1d_is_seen_by_its_inputs() -> None:
    weight = nn.Parameter(torch.randn(3, 5))
    spec = TensorSpec("weight", (3, 5), torch.float32, Kind.LINEAR, output_first=(1, 0))
    watch, x = Watch({id(weight): spec}, frozenset({"gram"})), torch.randn(7, 3)
    with torch.inference_mode(), watch:
        torch.addmm(torch.zeros(5), x, weight)
        F.linear(x, weight.T)
    assert torch.allclose(watch.found["weight"]["gram"], x.T @ x, atol=1e-5)
