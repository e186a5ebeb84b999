"""Removing channels: the small network is the zero-masked one, and what cannot be followed is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive import run
from gossamer.encoding import Dense, Kept
from gossamer.errors import CompositionError
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.shrink import Channels
from gossamer.methods.shrink.chain import chain
from gossamer.network import attach, materialise, specs, tensors


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 3))


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 9), nn.Sigmoid(), nn.Linear(9, 4)),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 6, 3), nn.GELU(), nn.Conv1d(6, 5, 3), nn.Flatten(1), nn.Linear(30, 2))


class Written(nn.Module):
    """The same as code: functions and methods between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 9, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return F.log_softmax(self.fc2(torch.relu(self.fc1(x.flatten(1)))), -1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "lenet": (lenet, (2, 14, 14)),
    "conv1d": (conv1d, (2, 10)),
    "written": (Written, (2, 8, 8)),
}


def random_network(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("running_mean", "weight", "bias"):
                getattr(module, name).data.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.3, 2)
    return net


@pytest.mark.parametrize("name", NETWORKS)
@given(sparsity=st.sampled_from([0.2, 0.5, 0.8, 1.0]), seed=st.integers(0, 5))
def test_the_small_network_equals_the_one_with_zeros(name: str, sparsity: float, seed: int) -> None:
    make, shape = NETWORKS[name]
    net = random_network(make, seed)
    state = run(net, [Channels(sparsity=sparsity)])
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    masked = copy.deepcopy(net)
    masked.load_state_dict({n: t.to_dense() for n, t in state.trees.items()})
    x = torch.randn(3, *shape)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    assert small(x).shape == net(x).shape
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    trainable = attach(copy.deepcopy(net), state.specs, state.trees).eval()
    torch.testing.assert_close(trainable(x), small(x))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_exactly_the_weakest_rows_go_and_at_least_one_stays(sparsity: float) -> None:
    net = random_network(mlp, 0)
    norms = net[0].weight.detach().square().sum(1)  # type: ignore[index,operator]
    keep = max(1, 10 - round(10 * sparsity))
    if keep == 10:
        with pytest.raises(CompositionError, match="changes no layer"):
            run(net, [Channels(sparsity=sparsity)])
        return
    tree = run(net, [Channels(sparsity=sparsity)]).trees["0.weight"]
    assert isinstance(tree, Kept)
    assert tree.kept_indices(0).tolist() == sorted(norms.argsort(descending=True)[:keep].tolist())  # type: ignore[union-attr]


def test_the_modules_know_their_new_sizes() -> None:
    net = random_network(lenet, 0)
    state = run(net, [Channels(sparsity=0.5)])
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    assert (small[3].in_channels, small[3].out_channels) == (3, 4)  # type: ignore[index,union-attr]
    assert small[4].num_features == 4  # type: ignore[index,union-attr]
    assert (small[8].in_features, small[8].out_features) == (16, 4 if round(9 * 0.5) == 5 else 5)  # type: ignore[index,union-attr]
    assert small[10].out_features == 4  # type: ignore[index,union-attr]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x + self.b(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if x.sum() > 0 else self.a(x)


class Literal(nn.Module):
    """The code itself says 16: with fewer channels it would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, 16))


class LastDimension(nn.Module):
    """A linear layer on the width of an image, which happens to be as large as the channels are many."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Sequence(nn.Module):
    """Flattening [batch, time, features] puts the features last, not first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).flatten(1))


class Borrowed(nn.Module):
    """A weight that the code reads itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(self.a(x), self.a.weight).relu())


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool1d(self.a(x), 1))


class OtherNorm(nn.Module):
    """Batch normalisation over time steps, not over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(3, 8), nn.BatchNorm1d(5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.n(self.a(x)))


LEFT_ALONE = {
    "branch": (Branch, "a.weight", "read by 2 places"),
    "twice": (Twice, "a.weight", "used more than once"),
    "dynamic": (Dynamic, "a.weight", "cannot be traced"),
    "literal": (Literal, "a.weight", "view comes between"),
    "last dimension": (LastDimension, "a.weight", "another dimension"),
    "sequence": (Sequence, "a.weight", "20 inputs, expected 4"),
    "borrowed": (Borrowed, "a.weight", "used more than once"),
    "pooled": (Pooled, "a.weight", "pooling"),
    "other norm": (OtherNorm, "a.weight", "normalises 5 channels, expected 8"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "0.weight", "grouped"),
    "read by grouped": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), "0.weight", "grouped"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "0.weight", "LayerNorm"),
    "conv over linear": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 2, 1)), "0.weight", "another dimension"),
    "output": (lambda: nn.Sequential(nn.Linear(4, 4)), "0.weight", "outputs of the network"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_followed_is_left_alone_and_the_refusal_says_why(name: str) -> None:
    make, tensor, reason = LEFT_ALONE[name]
    net = make()
    couplings, reasons = chain(net)
    assert tensor not in {c.producer for c in couplings}
    assert reason in reasons.get(tensor, reasons.get("", ""))
    with pytest.raises(CompositionError, match=reason):
        run(net, [Channels(sparsity=0.5)])


def test_layers_beside_one_that_cannot_be_followed_are_still_cut_and_the_other_is_listed() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    state = run(net, [Channels(sparsity=0.5)])
    assert isinstance(state.trees["0.weight"], Kept)
    assert isinstance(state.trees["4.weight"], Dense)
    assert state.trees["2.weight"].at("/inner").dense_shape() == (6, 3)
    assert "outputs" in state.skipped["4.weight"]


def test_a_tied_layer_is_not_cut() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    with pytest.raises(CompositionError):
        run(net, [Channels(sparsity=0.5)])


def test_what_is_inside_kept_can_be_compressed_further_and_stays_small() -> None:
    net = random_network(lenet, 1)
    state = run(net, [Channels(sparsity=0.5), SVD(rank=1, only="8.weight"), Magnitude(sparsity=0.5)])
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    assert {n: t.shape for n, t in tensors(small).items()} == {
        n: t.shape
        for n, t in tensors(
            materialise(copy.deepcopy(net), specs(net), run(net, [Channels(sparsity=0.5)]).trees)
        ).items()
    }
    assert small(torch.randn(2, 2, 14, 14)).shape == (2, 4)
