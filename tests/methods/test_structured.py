"""Channels on the dependency graph: whatever meets dies together, and the small network is the zero-masked one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.shrinkable import IMAGE, NETWORKS, VECTOR, Residual, batch, encoder, labelled, random_network
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.drive import ModelSource, run
from gossamer.drive.one_shot import Planned
from gossamer.encoding import Encoding, Kept, skeleton_of
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import Plan, Site
from gossamer.methods.prune import Magnitude
from gossamer.methods.shrink import Channels, channels, measured, target
from gossamer.methods.shrink.score import greedy_order, merged_into, refit, summary_of
from gossamer.network import attach, harvest, materialise


def masked(net: nn.Module, trees: Mapping[str, Encoding]) -> nn.Module:
    made = copy.deepcopy(net)
    made.load_state_dict({name: tree.to_dense() for name, tree in trees.items()})
    return made


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4)
@given(
    sparsity=st.sampled_from([0.2, 0.5, 0.8, 1.0]), seed=st.integers(0, 3), scope=st.sampled_from(["uniform", "global"])
)
def test_the_small_network_equals_the_one_with_zeros(name: str, sparsity: float, seed: int, scope: str) -> None:
    make, shape = NETWORKS[name]
    net, x = random_network(make, seed), batch(shape)
    method = Channels(sparsity=sparsity, scope=scope, multiple=1, only="*linear1*" if name == "encoder" else ())  # type: ignore[arg-type]
    state = run(net, [method], data=labelled(x))
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    other = batch(shape, 1, size=5)
    torch.testing.assert_close(small(other), masked(net, state.trees)(other), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    trainable = attach(copy.deepcopy(net), state.specs, state.trees).eval()
    torch.testing.assert_close(trainable(other), small(other))
    again = harvest(trainable, state.specs, state.trees)
    assert all(torch.equal(again[n].to_dense(), t.to_dense()) for n, t in state.trees.items())


@pytest.mark.parametrize("name", ["residual", "grouped", "lstm, both ways", "gru cell", "encoder"])
def test_shrunk_networks_train_save_load_and_lower(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    net, x = random_network(make, 0), batch(shape, size=4)
    small = gs.compress(net, [Channels(sparsity=0.5, multiple=1)], data=labelled(x))
    trained = small.trainable()
    trained(x).square().sum().backward()
    assert all(p.grad is not None for p in trained.parameters())
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=make)
    with torch.no_grad():
        torch.testing.assert_close(again.dense()(x), small.dense()(x), rtol=0, atol=0)
        if name == "residual":
            torch.testing.assert_close(again.lower(x)(x), small.dense()(x), rtol=1e-4, atol=1e-5)


def test_what_is_added_dies_together_and_every_tensor_loses_it() -> None:
    net = random_network(Residual, 0)
    bound = Channels(sparsity=0.5).bind(net, batch(IMAGE))
    assert isinstance(bound, Channels)
    stream = next(c for c in bound.network().couplings if "stem.weight" in c.producers)
    assert stream.producers == ("stem.weight", "outer.weight")
    assert {(m.tensor, m.dim) for m in stream.members} == {
        *((f"stem.{k}", 0) for k in ("weight", "bias")),
        *((f"outer.{k}", 0) for k in ("weight", "bias")),
        *((f"norm.{k}", 0) for k in ("weight", "bias", "running_mean", "running_var")),
        *((("inner.weight", 1), ("fc.weight", 1))),
    }


def test_a_unit_of_an_lstm_owns_its_row_of_every_gate_and_its_column_of_every_reader() -> None:
    net = random_network(NETWORKS["lstm"][0], 0)
    bound = Channels(sparsity=0.5).bind(net, batch(NETWORKS["lstm"][1]))
    assert isinstance(bound, Channels)
    units = next(c for c in bound.network().couplings if c.producer == "rnn.weight_ih_l0")
    found = {(m.tensor, m.dim): m.index[2].tolist() for m in units.members}
    gates = [2, 9, 16, 23]
    assert found == {
        **{(f"rnn.{k}_l0", 0): gates for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        ("rnn.weight_hh_l0", 1): [2],
        ("read.weight", 1): [2],
    }


class Literal(nn.Module):
    """The code itself says how many: with fewer channels it would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)).view(-1, 8))))


class Shuffled(nn.Module):
    """Channels in another order: torch-pruning does not see it, the trial does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)).mean((2, 3))


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x + self.b(F.relu(self.a(x))))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.a(x).detach())))


class Meaning(nn.Module):
    """A softmax over the channels: a zero is not the same as none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.a(x).softmax(-1))))


LEFT_DENSE = {
    "literal": (Literal, VECTOR, "a.weight", "fails: RuntimeError", "b.weight"),
    "added to the input": (Added, VECTOR, "b.weight", "fails: RuntimeError", "a.weight"),
    "detached": (Detached, VECTOR, "a.weight", "cannot follow", "b.weight"),
    "softmax": (Meaning, VECTOR, "a.weight", "is off by", "b.weight"),
}


@pytest.mark.parametrize("name", LEFT_DENSE)
def test_what_cannot_be_followed_is_left_dense_and_named_and_the_rest_is_cut(name: str) -> None:
    make, shape, tensor, reason, other = LEFT_DENSE[name]
    state = run(random_network(make, 0), [Channels(sparsity=0.5)], data=labelled(batch(shape)))
    assert reason in state.skipped[tensor]
    rows = state.trees[tensor].to_dense().flatten(1).square().sum(1)
    assert bool((rows > 0).all())
    assert isinstance(state.trees[other], Kept)


def test_a_layer_whose_channels_are_shuffled_is_refused_with_the_measured_difference() -> None:
    with pytest.raises(CompositionError, match=r"is off by .* from the one with zeros"):
        run(random_network(Shuffled, 0), [Channels(sparsity=0.5)], data=labelled(batch(IMAGE)))


def test_without_torch_pruning_chains_are_followed_and_the_reasons_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "installed", lambda: False)
    net = random_network(Residual, 0)
    state = run(net, [Channels(sparsity=0.5)], data=labelled(batch(IMAGE)))
    assert isinstance(state.trees["inner.weight"], Kept)
    assert "pip install gossamer[structured]" in state.skipped["stem.weight"]
    with pytest.raises(CompositionError, match=r"read by 2 places, expected one; pip install gossamer\[structured\]"):
        run(net, [Channels(sparsity=0.5, only="stem.*")], data=labelled(batch(IMAGE)))


def test_outputs_never_change_width() -> None:
    for make, shape in NETWORKS.values():
        net, x = random_network(make, 0), batch(shape)
        state = run(net, [Channels(sparsity=1.0, multiple=1)], data=labelled(x))
        assert materialise(copy.deepcopy(net), state.specs, state.trees)(x).shape == net(x).shape


# -- how much ------------------------------------------------------------------------------------------------------


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize(("sparsity", "multiple", "expected"), [(0.5, 8, 24), (0.5, 1, 20), (0.9, 8, 8), (0.1, 8, 40)])
def test_large_layers_keep_a_multiple_and_small_ones_any_number(sparsity: float, multiple: int, expected: int) -> None:
    trees = run(random_network(wide, 0), [Channels(sparsity=sparsity, multiple=multiple)]).trees
    small = trees["2.weight"]
    inner = small.inner.dense_shape() if isinstance(small, Kept) else small.dense_shape()
    assert inner == (12 - round(12 * sparsity), expected)


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_a_target_is_reached_and_no_more_than_needed_goes(unit: str, scope: str) -> None:
    net, x = random_network(wide, 0), batch(VECTOR)
    method = Channels(scope=scope, multiple=1, **{unit: 0.5})  # type: ignore[arg-type]
    small = gs.compress(net, [method], data=labelled(x)).dense()

    def cost(m: nn.Module) -> float:
        if unit == "parameters":
            return sum(p.numel() for p in m.parameters())
        return sum(n * dict(m.named_parameters())[name].numel() for name, n in measured.uses_of(m, x).items())

    assert 0.42 <= cost(small) / cost(net) <= 0.5


def test_macs_are_what_each_layer_multiplies() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
    assert measured.uses_of(net, torch.zeros(2, 1, 6, 6)) == {"0.weight": 2 * 16, "1.weight": 2 * 4, "3.weight": 2}
    rnn = nn.Sequential(nn.LSTM(3, 2, batch_first=True))
    assert measured.uses_of(rnn, torch.zeros(2, 5, 3)) == {"0.weight_ih_l0": 10, "0.weight_hh_l0": 10}


def test_milliseconds_are_measured_on_shrunk_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def pretend(model: nn.Module, example: Tensor) -> float:
        seen.append(model[0].out_features)  # type: ignore[index]
        return 0.1 * seen[-1]

    monkeypatch.setattr(target, "median_ms", pretend)
    net = random_network(wide, 0)
    small = gs.compress(net, [Channels(ms=2.05, multiple=1)], data=labelled(batch(VECTOR))).dense()
    assert small[0].out_features == 20  # type: ignore[index]
    assert len(set(seen)) > 4
    with pytest.raises(PlanError, match=r"found 0\.1 ms with all removed that can be, expected 0\.05"):
        run(net, [Channels(ms=0.05, multiple=1)], data=labelled(batch(VECTOR)))


def test_targets_and_scores_that_need_data_say_so() -> None:
    for method in (Channels(macs=0.5), Channels(ms=1.0), Channels(sparsity=0.5, score="influence")):
        with pytest.raises(PlanError, match="found no inputs to measure with, expected data"):
            run(wide(), [method])
    with pytest.raises(DataError, match="found no data, expected data=… to gather grad from"):
        run(wide(), [Channels(sparsity=0.5, score="taylor")])
    with pytest.raises(PlanError, match="score 'taylor': found no statistics of the layers' inputs"):
        planned_with(Channels(sparsity=0.5, score="taylor"), wide(), {})


# -- scores --------------------------------------------------------------------------------------------------------


def planned_with(method: Channels, net: nn.Module, evidence: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Encoding]:
    """Plan and carry out with statistics of our own."""
    source = ModelSource(net)
    bound = method.bind(net, None)
    sites = [Site(s, "", s.shape) for s in source.specs() if bound.find(s, skeleton_of(source.read(s.name))).paths]
    summaries = {s.key: bound.observe(s, source.read(s.spec.name), evidence.get(s.key, {}), None) for s in sites}
    plan = bound.plan(sites, summaries, None)
    assert isinstance(plan, Plan)
    planned = Planned(bound, plan, {s.key: s for s in sites})
    trees = {s.name: source.read(s.name) for s in source.specs()}
    for step in planned.plan.steps:
        site = planned.sites[step.targets[0]]
        weights = {site.key: trees[site.spec.name]}
        given = {site.key: evidence.get(site.key, {})}
        trees |= bound.apply([site], weights, step.entry, plan.shared, given)
    return trees


def two_layers(hidden: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def kept_rows(trees: Mapping[str, Encoding]) -> list[int]:
    tree = trees["0.weight"]
    assert isinstance(tree, Kept)
    index = tree.kept_indices(0)
    assert index is not None
    return index.tolist()


def test_taylor_is_the_slope_of_the_loss_when_a_channel_fades() -> None:
    net, x = random_network(two_layers, 1).double(), batch(VECTOR, size=16).double()
    y = torch.arange(16) % 3
    fade = torch.ones(6, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(net[2](net[1](net[0](x)) * fade), y).backward()  # type: ignore[index,operator,no-untyped-call]
    F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
    assert fade.grad is not None
    expected = sorted(fade.grad.abs().argsort(descending=True)[:3].tolist())
    evidence = {"2.weight": {"grad": net[2].weight.grad.clone()}}  # type: ignore[index,union-attr]
    assert kept_rows(planned_with(Channels(sparsity=0.5, score="taylor"), net, evidence)) == expected


def test_apoz_keeps_the_channels_that_are_rarely_zero() -> None:
    net = random_network(two_layers, 1)
    evidence = {"2.weight": {"zeros": torch.tensor([9.0, 0, 5, 2, 10, 1]), "count": torch.tensor([10.0])}}
    assert kept_rows(planned_with(Channels(sparsity=0.5, score="apoz"), net, evidence)) == [1, 3, 5]


def test_batchnorm_keeps_the_largest_gains_and_names_layers_without() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net[1].weight.data = torch.tensor([0.1, -3.0, 0.2, 2.0, 1.0, -0.3])
    state = run(net, [Channels(sparsity=0.5, score="batchnorm")])
    assert kept_rows(state.trees) == [1, 3, 4]
    assert "no BatchNorm" in state.skipped["2.weight"]


def test_influence_is_measured_by_reading_zero() -> None:
    net, x = random_network(two_layers, 2), batch(VECTOR, size=16)
    before = net(x)
    changes = []
    for c in range(6):
        without = copy.deepcopy(net)
        with torch.no_grad():
            without[2].weight[:, c] = 0  # type: ignore[index,operator]
            changes.append(float((without(x) - before).square().sum()))
    expected = sorted(torch.tensor(changes).argsort(descending=True)[:3].tolist())
    state = run(net, [Channels(sparsity=0.5, score="influence")], data=labelled(x))
    assert kept_rows(state.trees) == expected


def test_greedy_order_removes_what_adds_least_to_the_outputs() -> None:
    parts = torch.randn(
        20, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )  # [data, channel, out]
    products = torch.einsum("dio,djo->ij", parts, parts)
    order, errors = greedy_order(products)
    gone: list[int] = []
    for step in range(5):
        costs = {c: float(parts[:, [*gone, c]].sum(1).square().sum()) for c in range(5) if c not in gone}
        gone.append(min(costs, key=costs.__getitem__))
        assert float(errors[step]) == pytest.approx(costs[gone[-1]])
    assert order.tolist() == gone


def test_reconstruction_fits_the_reader_again() -> None:
    torch.manual_seed(0)
    net, x = random_network(two_layers, 1), batch(VECTOR, size=64)
    net[0].weight.data[4] = 2 * net[0].weight.data[1]  # type: ignore[index,operator]
    net[0].bias.data[4] = 2 * net[0].bias.data[1]  # type: ignore[index,operator]
    hidden = net[1](net[0](x)).detach()  # type: ignore[index,operator]
    evidence = {"2.weight": {"gram": hidden.T @ hidden}}
    trees = planned_with(Channels(sparsity=0.2, score="reconstruction"), net, evidence)
    kept = kept_rows(trees)
    reader = trees["2.weight"]
    assert isinstance(reader, Kept)
    read = hidden[:, kept].double()
    weight = net[2].weight.detach().double()  # type: ignore[index,union-attr,operator]
    best = near_old(read, hidden.double() @ weight.T, weight[:, kept], hidden.T @ hidden)
    torch.testing.assert_close(reader.inner.to_dense().double(), best, rtol=1e-4, atol=1e-5)
    lost = [(read @ w.T - hidden.double() @ weight.T).square().sum() for w in (best, weight[:, kept])]
    assert float(lost[0]) < 0.8 * float(lost[1])


def near_old(x: Tensor, wanted: Tensor, old: Tensor, gram: Tensor) -> Tensor:
    """Least squares with one more row for each old weight, weighed by the root of the ridge."""
    ridge = 0.03 * x.double().square().sum(0) + 1e-6 * float(gram.double().diagonal().mean())
    root = torch.diag(ridge.sqrt())
    rows = torch.cat([x.double(), root])
    return torch.linalg.lstsq(rows, torch.cat([wanted.double(), root @ old.double().T])).solution.T


def test_too_few_samples_leave_the_weights_that_stay_near_what_they_were() -> None:
    torch.manual_seed(0)
    weight, mix = torch.randn(4, 40), torch.randn(6, 40)  # inputs of a few factors, as activations have, and noise
    x, fresh = (torch.randn(n, 6) @ mix + 0.5 * torch.randn(n, 40) for n in (12, 500))
    keep = torch.arange(40) % 4 > 0
    small = refit(weight, keep, x.T @ x)
    errors = [(fresh[:, keep] @ w.T - fresh @ weight.T).square().sum() for w in (small, weight[:, keep])]
    exact = torch.linalg.lstsq(x[:, keep].double(), (x @ weight.T).double()).solution.T.float()
    assert float(errors[0]) < 0.8 * float(errors[1])
    assert float((fresh[:, keep] @ exact.T - fresh @ weight.T).square().sum()) > 1.5 * float(errors[0])


def test_too_few_samples_are_said() -> None:
    net, x = random_network(two_layers, 1), batch(VECTOR, size=2)
    with pytest.warns(UserWarning, match="2.weight: found 2 rows of calibration data for"):
        run(net, [Channels(sparsity=0.2, score="reconstruction")], data=[(x, torch.zeros(2, dtype=torch.long))])


def test_refitting_a_convolution_keeps_whole_channels() -> None:
    weight, x = torch.randn(4, 3, 2, 2), torch.randn(50, 12)
    keep = torch.tensor([True, False, True])
    small = refit(weight, keep, x.T @ x)
    assert small.shape == (4, 2, 2, 2)
    stays = keep.repeat_interleave(4)
    flat = weight.flatten(1)
    best = near_old(x[:, stays], x @ flat.T, flat[:, stays], x.T @ x).float()
    torch.testing.assert_close(small.flatten(1), best, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(refit(weight, keep | True, x.T @ x), weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("with_norm", [False, True])
def test_merging_neurons_that_compute_the_same_loses_nothing(with_norm: bool) -> None:
    """Each removed neuron is a positive multiple of one that stays."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(6)] if with_norm else []
    net = nn.Sequential(nn.Linear(5, 6), *norm, nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for c, (twin, factor) in {3: (0, 0.1), 4: (1, 0.05), 5: (2, 0.2)}.items():
            net[0].weight[c], net[0].bias[c] = factor * net[0].weight[twin], factor * net[0].bias[twin]
    x = batch(VECTOR, size=9)
    state = run(net, [Channels(sparsity=0.5, score="merge")])
    assert kept_rows(state.trees) == [0, 1, 2]
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)


def test_merging_says_why_it_cannot() -> None:
    net = random_network(Residual, 0)
    bound = Channels(sparsity=0.5, score="merge").bind(net, batch(IMAGE))
    assert isinstance(bound, Channels)
    stream = next(c for c in bound.network().couplings if len(c.producers) == 2)
    why = merged_into(stream, torch.arange(8) < 4, {})
    assert isinstance(why, str)
    assert "more than one layer" in why


def test_a_vector_says_its_squares_and_integers_nothing() -> None:
    found = summary_of("magnitude", torch.tensor([3.0, 4.0]), {}, plain=False)
    assert found["rows"].tolist() == [9.0, 16.0]


def test_normalisation_over_the_channels_keeps_shapes_and_is_marked() -> None:
    net = nn.Sequential(nn.Linear(5, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = batch(VECTOR)
    bound = Channels(sparsity=0.5).bind(net, x)
    assert isinstance(bound, Channels)
    assert [c.exact for c in bound.network().couplings] == [False]
    small = gs.compress(net, [Channels(sparsity=0.5)], data=labelled(x)).dense()
    assert small[1].normalized_shape == (6,)  # type: ignore[index,union-attr]
    assert small(x).shape == (3, 3)


def test_the_first_half_is_cut_as_often_as_the_second_where_code_splits_evenly() -> None:
    net = random_network(NETWORKS["halves"][0], 0)
    tree = run(net, [Channels(sparsity=0.5, multiple=1)], data=labelled(batch(VECTOR))).trees["a.weight"]
    assert isinstance(tree, Kept)
    index = tree.kept_indices(0)
    assert index is not None
    assert sorted((index % 6).tolist()) == sorted([*index[:3].tolist()] * 2)


def test_pruning_and_a_second_recipe_entry_reach_inside_recurrent_layers() -> None:
    make, shape = NETWORKS["lstm"]
    net, x = random_network(make, 0), batch(shape)
    state = run(net, [Channels(sparsity=0.5, multiple=1), Magnitude(sparsity=0.5)], data=labelled(x))
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    assert small.rnn.hidden_size == 7 - round(3.5)  # type: ignore[union-attr]
    assert small(x).shape == net(x).shape


def test_the_encoder_keeps_its_attention_width() -> None:
    net, x = random_network(encoder, 0), batch(NETWORKS["encoder"][1])
    state = run(net, [Channels(sparsity=0.5)], data=labelled(x))
    assert "Heads removes its heads" in state.skipped["0.weight"]
