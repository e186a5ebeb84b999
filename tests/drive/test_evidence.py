"""Statistics of inputs and gradients, against direct computation on small networks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.evidence import gather
from gossamer.drive.progress import NoProgress
from gossamer.drive.source import ModelSource
from gossamer.encoding import Concat, Dense, Kept, LowRank, Mask, Scaled
from gossamer.encoding.node import Encoding
from gossamer.errors import DataError, PlanError

INPUTS = frozenset({"count", "sum", "sq", "zeros", "gram"})


class Batches:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def look(model: nn.Module, needs: frozenset[str], batches: list[Any], **trees: Encoding) -> dict[str, Any]:
    source = ModelSource(model)
    known = {s.name: source.read(s.name) for s in source.specs()} | trees
    return gather(model, source.specs(), known, needs, Batches(batches), progress=NoProgress())


def expected(rows: Tensor) -> dict[str, Tensor]:
    zeros = (rows == 0).sum(0).float()
    count = torch.tensor([float(len(rows))])
    return {"count": count, "sum": rows.sum(0), "sq": rows.square().sum(0), "zeros": zeros, "gram": rows.T @ rows}


def assert_same(found: Any, rows: Tensor) -> None:
    for key, value in expected(rows).items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-4), key


def test_linear_layers_see_their_inputs_summed_over_batches_and_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    batches = [torch.randn(2, 7, 5), torch.randn(3, 7, 5)]
    found = look(model, INPUTS, batches)
    assert_same(found["0.weight"], torch.cat([b.reshape(-1, 5) for b in batches]))
    hidden = torch.cat([model[1](model[0](b)).reshape(-1, 4) for b in batches]).detach()
    assert_same(found["2.weight"], hidden)


@pytest.mark.parametrize("dims", [1, 2])
def test_convolutions_see_unfolded_inputs(dims: int) -> None:
    torch.manual_seed(0)
    settings = {"stride": 2, "padding": 1, "dilation": 1}
    layer = nn.Conv1d(2, 3, 3, **settings) if dims == 1 else nn.Conv2d(2, 3, 3, **settings)  # type: ignore[arg-type]
    x = torch.randn(2, 2, *[7] * dims)
    found = look(nn.Sequential(layer), INPUTS, [x])["0.weight"]
    # With these statistics the outputs can be had: Σ y = W·Σ x, Σ y² = diag(W·G·Wᵀ).
    weight = layer.weight.detach().flatten(1)
    y = F.conv2d(x, layer.weight, None, 2, 1) if dims == 2 else F.conv1d(x, layer.weight, None, 2, 1)
    y = y.detach().transpose(0, 1).flatten(1)
    assert torch.allclose(weight @ found["sum"], y.sum(1), atol=1e-4)
    assert torch.allclose((weight @ found["gram"] @ weight.T).diagonal(), y.square().sum(1), atol=1e-3)
    assert float(found["count"]) == y.shape[1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_see_inputs_and_previous_states(kind: type[nn.Module], batch_first: bool) -> None:
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4, batch_first=batch_first)  # type: ignore[call-arg]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rnn(x)[0]
            return out

    model = Reader()
    x = torch.randn(2, 5, 3)
    given = x if batch_first else x.transpose(0, 1)
    states = model(given).detach()
    states = states if batch_first else states.transpose(0, 1)
    found = look(model, INPUTS, [given])
    assert_same(found["rnn.weight_ih_l0"], x.reshape(-1, 3))
    assert_same(found["rnn.weight_hh_l0"], torch.cat([torch.zeros(2, 1, 4), states[:, :-1]], 1).reshape(-1, 4))


def test_attention_shows_its_inner_layers() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    found = look(model, frozenset({"count", "sum"}), [x])
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
        assert float(found[name]["count"]) == 10, name
    assert torch.allclose(found["self_attn.in_proj_weight"]["sum"], x.reshape(-1, 8).sum(0), atol=1e-5)


def test_gradients_are_summed_over_batches_in_output_first_coordinates() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 4))
    batches = [(torch.randn(3, 2, 2), torch.randint(0, 4, (3,))) for _ in range(2)]
    found = look(model, frozenset({"grad", "grad_sq"}), batches)
    each = [
        torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight, model[2].weight])  # type: ignore[list-item]
        for x, y in batches
    ]
    assert torch.allclose(found["0.weight"]["grad"], (each[0][0] + each[1][0]).transpose(0, 1), atol=1e-6)
    assert torch.allclose(found["2.weight"]["grad_sq"], each[0][1] ** 2 + each[1][1] ** 2, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_what_is_seen_is_the_network_as_it_is_now() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    x = torch.randn(4, 3)
    found = look(model, frozenset({"sum"}), [x], **{"0.weight": Dense(torch.ones(2, 3))})
    assert torch.allclose(found["1.weight"]["sum"], (x @ torch.ones(3, 2)).sum(0), atol=1e-5)


@pytest.mark.parametrize(
    ("needs", "batches", "error", "text"),
    [
        (frozenset({"colour"}), [torch.zeros(1, 2)], PlanError, "colour"),
        (frozenset({"sq"}), [], DataError, "no batches"),
        (frozenset({"grad"}), [torch.zeros(1, 2)], DataError, "expected \\(inputs, targets\\)"),
        (frozenset({"sq"}), [torch.full((1, 2), float("nan"))], DataError, "not finite"),
    ],
)
def test_what_cannot_be_gathered_is_refused(
    needs: frozenset[str], batches: list[Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        look(nn.Sequential(nn.Linear(2, 2)), needs, batches)


def _gradient_below(tree: Encoding, path: str) -> tuple[Tensor, Tensor]:
    """Gradient of Σ w² as autograd has it for the part at ``path``, and as it is handed down."""
    leaf = tree.at(path).to_dense().detach().clone().requires_grad_(True)
    w = tree.put(path, Dense(leaf)).to_dense()
    direct = torch.autograd.grad(w.square().sum(), leaf)[0]
    return direct, tree.hand_down_to(path, {"grad": 2 * w.detach()})["grad"]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (LowRank(Dense(torch.randn(4, 2)), Dense(torch.randn(2, 3, 2))), "/u"),
        (LowRank(Dense(torch.randn(4, 2)), Dense(torch.randn(2, 3, 2))), "/v"),
        (Concat((Dense(torch.randn(2, 3)), Dense(torch.randn(4, 3)))), "/members.1"),
        (Scaled(Dense(torch.randn(2, 3)), Dense(torch.rand(3) + 1), Dense(torch.rand(2) + 1)), "/inner"),
        (
            Kept(
                Dense(torch.randn(2, 4)),
                (Mask.of(torch.tensor([True, False, True])), Mask.of(torch.tensor([True, False, True]))),
                (1, 2),
            ),
            "/inner",
        ),
    ],
    ids=["u", "v", "gate", "scaled", "kept"],
)
def test_gradients_handed_down_are_those_of_the_part(tree: Encoding, path: str) -> None:
    direct, handed = _gradient_below(tree, path)
    assert torch.allclose(direct, handed, atol=1e-5)


def test_inputs_handed_to_factors_are_what_the_factors_see() -> None:
    torch.manual_seed(0)
    x, tree = torch.randn(20, 3), LowRank(Dense(torch.randn(4, 2)), Dense(torch.randn(2, 3)))
    below = tree.hand_down_to("/u", expected(x))
    rows = expected(x @ tree.v.to_dense().T)
    for key in ("count", "sum", "sq", "gram"):
        assert torch.allclose(below[key], rows[key], atol=1e-4), key
