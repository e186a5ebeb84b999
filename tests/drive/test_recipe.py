"""A recipe runs in order, trains what it should, and refuses what would only look like success."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive import Stage, State, Tune, run
from gossamer.encoding import Codebook, Dense, LowRank, Masked
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels
from gossamer.network import attach, attached, harvest, specs
from gossamer.store import read_container, write_container

Batch = tuple[Tensor, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def batches(count: int = 15) -> list[Batch]:
    x = torch.randn(count, 16, 10, generator=torch.Generator().manual_seed(1))
    return [(b, b[:, :3].argmax(1)) for b in x]


def loss_of(model: nn.Module, data: list[Batch]) -> float:
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


class Note(Stage):
    """Writes down what it sees."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def run(self, state: State) -> None:
        self.seen.append(type(state.trees["0.weight"]).__name__)


def test_an_empty_recipe_leaves_every_tensor_as_it_is() -> None:
    model = net()
    state = run(model, [])
    assert all(torch.equal(state.trees[n].to_dense(), t) for n, t in model.state_dict().items())
    assert all(isinstance(t, Dense) for t in state.trees.values())


def test_entries_run_in_order() -> None:
    seen: list[str] = []
    note = Note(seen)
    state = run(
        net(), [note, Channels(sparsity=0.5), note, SVD(rank=2, only="2.weight"), Magnitude(sparsity=0.5), note]
    )
    assert seen == ["Dense", "Kept", "Kept"]
    assert [p["method"] for p in state.plans] == ["Channels", "SVD", "Magnitude"]
    assert isinstance(state.trees["0.weight"].at("/inner"), Masked)
    assert isinstance(state.trees["2.weight"].at("/inner"), LowRank)


@pytest.mark.parametrize(
    "method",
    [Magnitude(sparsity=0.7), KMeans(bits=3), RoundToNearest(bits=3), SVD(rank=3), Channels(sparsity=0.5)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fine_tuning_lowers_the_loss_and_keeps_the_structure(method: Method, optimizer: str) -> None:
    model, data = net(), batches()
    before = copy.deepcopy(model.state_dict())
    tune = Tune(epochs=5, lr=0.01 if optimizer == "adam" else 0.03, optimizer=optimizer)  # type: ignore[arg-type]
    alone = run(model, [method])
    tuned = run(model, [method], data=data, tune=tune)
    entry = run(model, [method, tune], data=data)
    assert loss_of(tuned.network(), data) < 0.98 * loss_of(alone.network(), data)
    for name, tree in tuned.trees.items():
        assert torch.equal(tree.to_dense(), entry.trees[name].to_dense())
        fixed = {f.path: f.tensor for f in alone.trees[name].leaves() if f.role.value != "trainable"}
        assert all(torch.equal(f.tensor, fixed[f.path]) for f in tree.leaves() if f.path in fixed)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_biases_and_norms_train_with_the_encoded_weights_and_what_was_frozen_stays() -> None:
    model, data = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), batches()
    model[2].bias.requires_grad_(False)
    state = run(model, [Magnitude(sparsity=0.5), Tune(epochs=2, lr=0.01)], data=data)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(state.trees[n].to_dense(), t)}
    assert changed == set(model.state_dict()) - {"2.bias"}


def test_a_recipe_may_train_before_it_compresses() -> None:
    model, data = net(), batches()
    state = run(model, [Tune(epochs=3, lr=0.01)], data=data)
    assert loss_of(state.network(), data) < loss_of(model, data)


def test_a_callable_trains_with_the_user_s_own_loop() -> None:
    model, data = net(), batches()
    seen: list[int] = []

    def train(network: nn.Module) -> None:
        seen.append(sum(p.numel() for p in network.parameters()))
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

    state = run(model, [Magnitude(sparsity=0.5), KMeans(bits=2)], tune=train)
    assert seen[0] > seen[1]
    assert loss_of(state.network(), data) < loss_of(
        run(model, [Magnitude(sparsity=0.5), KMeans(bits=2)]).network(), data
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_distillation_brings_the_outputs_closer_to_the_dense_network(share: float) -> None:
    model, data = net(), batches()
    unlabelled = [(x, torch.zeros_like(y)) for x, y in data] if share == 1.0 else data
    plain = run(model, [Magnitude(sparsity=0.8)])
    state = run(model, [Magnitude(sparsity=0.8), Tune(epochs=8, lr=0.01, distil=share)], data=unlabelled)
    x = torch.cat([b[0] for b in data])
    with torch.no_grad():
        teacher = model(x).log_softmax(1)
        gaps = [
            float(F.kl_div(s.network()(x).log_softmax(1), teacher, reduction="batchmean", log_target=True))
            for s in (plain, state)
        ]
    assert share < 1 or gaps[1] < 0.5 * gaps[0]
    assert loss_of(state.network(), unlabelled if share == 1 else data) != loss_of(plain.network(), data)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.embedding(x))))


@pytest.mark.filterwarnings("ignore:SVD. found a language model")
@pytest.mark.parametrize(
    "method", [Magnitude(sparsity=0.5), KMeans(bits=3), SVD(rank=2)], ids=lambda m: type(m).__name__
)
def test_tied_weights_stay_tied_through_training_saving_and_loading(method: Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    data = [(torch.arange(20), (torch.arange(20) + 3) % 20)] * 10
    state = run(model, [method], data=data, tune=Tune(epochs=2, lr=0.02))
    assert "head.weight" not in state.trees
    network = state.network()
    assert torch.equal(network.head.weight, network.embedding.weight)
    holders = attached(network)
    assert {id(p) for p in holders["head.weight"].parameters()} == {
        id(p) for p in holders["embedding.weight"].parameters()
    }
    write_container(tmp_path / "a.gsm", state.specs, state.trees)
    loaded = read_container(tmp_path / "a.gsm", specs(Tied()))
    again = attach(Tied(), loaded.specs, loaded.trees)
    assert torch.equal(again(torch.arange(20)), network(torch.arange(20)))
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    F.cross_entropy(again(data[0][0]), data[0][1]).backward()
    optimizer.step()
    assert torch.equal(again.head.weight, again.embedding.weight)
    assert set(harvest(again, loaded.specs, loaded.trees)) == {s.name for s in specs(Tied())}


def test_a_codebook_shared_by_the_network_stays_one_when_it_is_tuned() -> None:
    model, data = net(), batches()
    state = run(model, [KMeans(bits=3, network_wide=True), Tune(lr=0.01)], data=data)
    books = [t for t in state.trees.values() if isinstance(t, Codebook)]
    assert len({id(b.table.array) for b in books}) == 1  # type: ignore[attr-defined]
    assert len(books) == 3


def test_dead_layers_and_methods_without_layers_are_refused() -> None:
    with pytest.raises(PlanError, match=r"recipe entry 1 \(Magnitude\): .*0\.weight: found a plan that keeps 0 of 160"):
        run(net(), [Magnitude(sparsity=1.0)])
    with pytest.raises(CompositionError, match="matches no layer"):
        run(nn.Sequential(nn.ReLU()), [Magnitude(sparsity=0.5)])
    with pytest.raises(CompositionError, match="matches no layer"):
        run(nn.LayerNorm(4), [Magnitude(sparsity=0.5)])
    weak = net()
    with torch.no_grad():
        weak[2].weight.mul_(1e-4)  # type: ignore[index,union-attr,operator]
    with pytest.raises(PlanError, match=r"2\.weight.*at least one live weight per layer"):
        run(weak, [Magnitude(sparsity=0.5, scope="global")])


def test_a_layer_of_zeros_may_be_pruned_to_nothing() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()  # type: ignore[index,union-attr,operator]
    state = run(model, [Magnitude(sparsity=1.0, only="2.weight")])
    assert state.trees["2.weight"].size_bits() == 192


def test_skipped_layers_are_listed_with_the_reason() -> None:
    state = run(net(), [KMeans(bits=6)])
    assert "expected more than the 64 entries" in state.skipped["4.weight"]
    assert isinstance(state.trees["4.weight"], Dense)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "found no data"),
        (iter([]), "expected something with a length"),
        ([], "found no batches"),
        ([torch.zeros(2, 10)], "found a batch of Tensor"),
        ([(torch.zeros(2, 10),)], "found a batch of tuple"),
        ([(torch.full((2, 10), float("nan")), torch.zeros(2, dtype=torch.int64))], "found loss nan at step 0"),
    ],
    ids=["none", "iterator", "empty", "tensor", "single", "nan"],
)
def test_data_that_cannot_train_are_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(net(), [Magnitude(sparsity=0.5), Tune()], data=data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        *({"epochs": 0}, {"lr": 0.0}, {"temperature": 0.0}, {"distil": 1.5}, {"warmup": -0.1}),
        *({"optimizer": "lion"}, {"schedule": "step"}),
    ],
    ids=str,
)
def test_tuning_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="Tune"):
        Tune(**bad)  # type: ignore[arg-type]


def test_the_rate_rises_then_falls_to_zero() -> None:
    tune = Tune(lr=2.0, warmup=0.2)
    rates = [tune.rate(i, 100) for i in range(101)]
    assert rates[:20] == pytest.approx([2.0 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert [Tune(lr=2.0, schedule="constant").rate(i, 100) for i in (0, 50, 99)] == [2.0] * 3


def test_clipping_bounds_the_step() -> None:
    model, data = net(), batches(1)
    tune = Tune(lr=1.0, optimizer="sgd", schedule="constant", clip=1e-3)
    state = run(model, [tune], data=data)
    moves = [(state.trees[n].to_dense() - p).detach() for n, p in model.named_parameters()]
    moved = sum(float(m.square().sum()) for m in moves) ** 0.5
    assert 0 < moved <= 1.9e-3 * 1.01  # Nesterov: 1 + momentum
