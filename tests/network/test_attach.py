"""Networks and trees: what there is, ties, shapes, and what attaching changes."""

from __future__ import annotations

import copy

import pytest
import torch
from contract.test_every_encoding import same_trees
from torch import Tensor, nn

from gossamer.drive import ModelSource, run
from gossamer.encoding import Codebook, Dense, Encoding, Kept, Kind, LowRank, Mask, Masked, View
from gossamer.errors import CompositionError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels
from gossamer.network import attach, attached, harvest, materialise, specs, tensors


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose1d(3, 2, 4)
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.batch = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(3, 2)
        self.free = nn.Parameter(torch.zeros(2, 2))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("passing", torch.zeros(2), persistent=False)


def test_every_tensor_has_its_kind_and_orientation() -> None:
    found = {s.name: s for s in specs(Everything())}
    assert found.keys() == Everything().state_dict().keys()
    kinds = {n: s.kind for n, s in found.items()}
    assert (
        kinds["linear.weight"] == kinds["attention.out_proj.weight"] == kinds["attention.in_proj_weight"] == Kind.LINEAR
    )
    assert kinds["conv.weight"] == kinds["up.weight"] == Kind.CONV
    assert kinds["embedding.weight"] == Kind.EMBEDDING
    assert kinds["norm.weight"] == kinds["batch.weight"] == Kind.NORM
    assert kinds["batch.running_mean"] == kinds["kept"] == kinds["batch.num_batches_tracked"] == Kind.BUFFER
    assert kinds["linear.bias"] == kinds["attention.in_proj_bias"] == kinds["lstm.bias_ih_l0"] == Kind.BIAS
    assert kinds["free"] == Kind.OTHER
    assert kinds["lstm.weight_ih_l0"] == kinds["lstm.weight_hh_l0"] == Kind.RECURRENT
    assert {n: s.gates for n, s in found.items() if s.gates > 1} == {"lstm.weight_ih_l0": 4, "lstm.weight_hh_l0": 4}
    assert {n for n, s in found.items() if s.output_first} == {"up.weight"}
    assert found["conv.weight"].groups == 2


def test_specs_need_no_memory() -> None:
    with torch.device("meta"):
        assert [(s.name, s.shape) for s in specs(Everything())] == [(s.name, s.shape) for s in specs(Everything())]


def test_ties_are_found_between_parameters_modules_and_buffers() -> None:
    net = nn.Module()
    net.a, net.b = nn.Linear(3, 3), nn.Linear(3, 3)
    net.b.weight = net.a.weight
    net.c = net.a
    shared = torch.zeros(2)
    net.register_buffer("x", shared)
    net.register_buffer("y", shared)
    names = {s.name: s.aliases for s in specs(net)}
    assert names == {"x": ("y",), "a.weight": ("b.weight", "c.weight"), "a.bias": ("c.bias",), "b.bias": ()}


def test_transposed_convolutions_come_output_first_and_go_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, bias=False))
    tree = ModelSource(net).read("0.weight")
    assert isinstance(tree, View)
    assert tree.inner.dense_shape() == (6, 8, 2, 2)
    assert torch.equal(tree.to_dense(), net[0].weight)
    state = run(net, [Magnitude(sparsity=0.5), KMeans(bits=2)])
    x = torch.randn(2, 8, 3, 3)
    expected = nn.functional.conv_transpose2d(x, state.trees["0.weight"].to_dense())
    torch.testing.assert_close(state.network()(x), expected)
    torch.testing.assert_close(materialise(copy.deepcopy(net), state.specs, state.trees)(x), expected)
    assert same_trees(harvest(state.network(), state.specs, state.trees), state.trees)


def test_plain_transposed_convolutions_are_harvested_in_the_same_orientation() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(8, 6, 2))
    trees: dict[str, Encoding] = {s.name: ModelSource(net).read(s.name) for s in specs(net)}
    again = harvest(attach(copy.deepcopy(net), specs(net), trees), specs(net), trees)
    assert same_trees(trees, again)


def test_attached_networks_train_only_leaves_and_compute_what_the_dense_one_does() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    state = run(net, [Magnitude(sparsity=0.5)])
    small = attach(copy.deepcopy(net), state.specs, state.trees)
    assert {n: p.numel() for n, p in small.named_parameters()} == {
        "0.bias": 5,
        "0.parametrizations.weight.0.value__array": 15,
        "2.bias": 2,
        "2.parametrizations.weight.0.value__array": 5,
    }
    x = torch.randn(3, 6)
    dense = materialise(copy.deepcopy(net), state.specs, state.trees)
    torch.testing.assert_close(small(x), dense(x))
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert state.trees["0.weight"].at("/value").array.grad is None  # type: ignore[attr-defined]


def test_attaching_copies_the_trees() -> None:
    net = nn.Sequential(nn.Linear(6, 5))
    state = run(net, [Magnitude(sparsity=0.5)])
    before = state.trees["0.weight"].to_dense().clone()
    network = state.network()
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert torch.equal(state.trees["0.weight"].to_dense(), before)
    assert bool(net[0].weight.any())


def test_a_leaf_shared_by_two_weights_is_one_parameter() -> None:
    table = Dense(torch.tensor([[0.5, -1.0]]))
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False))
    trees: dict[str, Encoding] = {
        s.name: Codebook(6, 6, torch.randint(2, s.shape, dtype=torch.uint8), table) for s in specs(net)
    }
    found = specs(net)
    model = attach(net, found, trees)
    assert len(list(model.parameters())) == 1
    assert len(list(copy.deepcopy(model).parameters())) == 1
    again = harvest(model, found, trees)
    assert again["0.weight"].at("/table").array is again["1.weight"].at("/table").array  # type: ignore[attr-defined]


def test_dtype_follows_the_network() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    network = run(net, [Magnitude(sparsity=0.5), KMeans(bits=2)]).network().double()
    assert network(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64
    network.bfloat16()
    assert network(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert attached(network)["0.weight"].tree.to_dense().dtype == torch.float32  # computed, then cast


def test_a_shrunk_weight_in_a_layer_of_unknown_size_is_refused() -> None:
    net = nn.Sequential(nn.Bilinear(2, 2, 4))
    keep = Mask.of(torch.tensor([True, True, False, False]))
    trees: dict[str, Encoding] = {"0.weight": Kept(Dense(torch.ones(2, 2, 2)), (keep, None, None), (1, 1, 1))}
    with pytest.raises(CompositionError, match=r"0\.weight: found a shrunk weight in Bilinear"):
        materialise(copy.deepcopy(net), specs(net), trees)
    with pytest.raises(CompositionError, match=r"0\.weight"):
        attach(net, specs(net), trees)


def test_materialise_works_on_the_meta_device() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    state = run(net, [Channels(sparsity=0.5), Magnitude(sparsity=0.3)])
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    rebuilt = materialise(empty, state.specs, state.trees)
    x = torch.randn(3, 6)
    torch.testing.assert_close(rebuilt(x), materialise(copy.deepcopy(net), state.specs, state.trees)(x))


def test_materialised_weights_do_not_alias_the_trees() -> None:
    net = nn.Sequential(nn.Linear(6, 8))
    trees: dict[str, Encoding] = {n: Dense(t.clone()) for n, t in tensors(net).items()}
    dense = materialise(copy.deepcopy(net), specs(net), trees)
    with torch.no_grad():
        dense[0].weight.zero_()  # type: ignore[index,union-attr,operator]
    assert bool(trees["0.weight"].to_dense().any())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_attention_projections_are_weights_too() -> None:
    torch.manual_seed(0)
    net = Recurrent().eval()
    state = run(net, [Magnitude(sparsity=0.5)])
    assert isinstance(state.trees["attention.in_proj_weight"], Masked)
    assert isinstance(state.trees["attention.out_proj.weight"], Masked)
    x = torch.randn(2, 3, 8)
    dense = materialise(copy.deepcopy(net), state.specs, state.trees)
    torch.testing.assert_close(state.network().eval()(x), dense(x))


def test_factors_of_a_convolution_attach() -> None:
    tree = LowRank(Dense(torch.randn(4, 2)), Dense(torch.randn(2, 3, 2, 2)))
    net = nn.Conv2d(3, 4, 2, bias=False)
    model = attach(net, specs(net), {"weight": tree})
    assert sorted(p.numel() for p in model.parameters()) == [8, 24]
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(model(x), nn.functional.conv2d(x, tree.to_dense()))


def test_numbers_stored_in_half_precision_train_in_single_and_come_back_as_they_were_stored() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    small = run(net, [RoundToNearest(bits=4, scale_dtype="float16")])
    before = small.trees["weight"]
    model = attach(nn.Linear(6, 4), small.specs, small.trees)
    trained = {name: p for name, p in model.named_parameters() if name != "bias"}
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    assert torch.equal(model.weight, before.to_dense())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    (1e-5 * model(torch.randn(8, 6)).square().sum()).backward()  # squares of such gradients are zero in half precision
    optimizer.step()
    after = harvest(copy.deepcopy(model), small.specs, small.trees)["weight"]
    for old, new in zip(before.leaves(), after.leaves(), strict=True):
        assert old.tensor.dtype is new.tensor.dtype and new.tensor.isfinite().all()
        if old.tensor.dtype is torch.float16:
            assert float((old.tensor.float() - new.tensor.float()).abs().max()) <= 1.1e-3
            assert not torch.equal(old.tensor, new.tensor)


def test_scales_in_float16_of_weights_in_bfloat16_train_in_float32_too() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4).bfloat16()
    small = run(net, [RoundToNearest(bits=4, scale_dtype="float16")])
    model = attach(nn.Linear(6, 4).bfloat16(), small.specs, small.trees)
    kinds = {name.rpartition("__")[2]: p.dtype for name, p in model.named_parameters()}
    assert kinds == {"bias": torch.bfloat16, "array": torch.float32}
    assert model.weight.dtype is torch.bfloat16
    again = harvest(model, small.specs, small.trees)["weight"]
    assert [leaf.tensor.dtype for leaf in again.leaves()] == [
        leaf.tensor.dtype for leaf in small.trees["weight"].leaves()
    ]
