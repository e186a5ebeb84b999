"""BatchNorm folding keeps the function, in memory, in the file and while training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gossamer.api import compress, load
from gossamer.drive import QuantizationAware, Tune, run
from gossamer.encoding import Constant, Dense, View
from gossamer.errors import CompositionError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import FoldBatchNorm, RoundToNearest


class Net(nn.Module):
    """Every way in which a BatchNorm may follow a layer, and one in which it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.bn_plain = nn.BatchNorm2d(6, affine=False)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.bn_up = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.bn_fc = nn.BatchNorm1d(5, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(self.first(x))))
        x = torch.relu(self.bn_plain(self.depthwise(x)))
        x = torch.relu(self.bn_up(self.up(x))).mean((2, 3))
        return self.bn_fc(self.fc(x))


def make() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3.0)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
    return model.eval()


X = torch.randn(4, 2, 7, 7, generator=torch.Generator().manual_seed(1))


def close(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(X), b(X), rtol=1e-5, atol=1e-5)


def test_outputs_stay_and_the_file_loads_into_the_original_network(tmp_path: Path) -> None:
    model = make()
    small = compress(model, [FoldBatchNorm()])
    close(small.dense(), model)
    before = compress(model, []).save(tmp_path / "before.gsm")
    after = small.save(tmp_path / "after.gsm")
    again = load(tmp_path / "after.gsm", into=make)
    close(again.dense(), model)
    assert after < before
    assert again.state_dict().keys() == model.state_dict().keys()
    spent = {t.name: t.file_bytes for t in again.ledger().tensors}
    for norm in ("bn", "bn_up", "bn_fc"):
        constant = [f"{norm}.{p}" for p in ("weight", "running_mean", "running_var", "num_batches_tracked")]
        assert all(spent[name] == 0 for name in constant)
        assert spent[f"{norm}.bias"] > 0
        assert all(isinstance(again.trees[name], Constant) for name in constant)
    assert spent["conv.bias"] == 0
    assert spent["bn_plain.running_var"] == 0
    assert isinstance(again.trees["up.weight"], View)


def test_the_dense_network_keeps_folded_statistics_in_train_mode() -> None:
    model = make()
    network = compress(model, [FoldBatchNorm()]).dense().train()
    network.first.eval()
    close(network, model)
    close(copy.deepcopy(network), model)
    network.first.train()  # an ordinary one goes on as it is used to
    before = network.first.running_mean.clone()
    network(X)
    assert not torch.equal(network.first.running_mean, before)
    assert torch.equal(network.bn.running_mean, torch.zeros(6))


def test_what_no_layer_precedes_stays_and_is_named() -> None:
    small = compress(make(), [FoldBatchNorm()])
    assert isinstance(small.trees["first.weight"], Dense)
    assert small.skipped["first.weight"] == "FoldBatchNorm: no layer comes right before it"


def test_pruned_weights_are_scaled_where_they_live() -> None:
    model = make()
    pruned = [Magnitude(sparsity=0.5)]
    close(compress(model, [*pruned, FoldBatchNorm()]).dense(), compress(model, pruned).dense())


@pytest.mark.parametrize("quantize", [False, True])
def test_training_afterwards_keeps_the_statistics(quantize: bool) -> None:
    model = make()
    small = compress(model, [FoldBatchNorm()])
    network = small.trainable()  # in train mode: first and others would take statistics
    network.first.eval()
    close(network, model)
    close(copy.deepcopy(network), model)
    assert not network.bn.weight.requires_grad
    assert network.bn.bias.requires_grad
    data = [(X, torch.tensor([0, 1, 2, 3]))] * 3
    tune = Tune(epochs=2, lr=0.01)
    stage = QuantizationAware(methods=(RoundToNearest(bits=4),), tune=tune) if quantize else tune
    state = run(model, [FoldBatchNorm(), stage], data=data)
    assert isinstance(state.trees["bn.weight"], Constant)
    assert isinstance(state.trees["bn.running_var"], Constant)
    assert isinstance(state.trees["conv.bias"], Constant)
    assert not torch.equal(state.trees["bn.bias"].to_dense(), small.trees["bn.bias"].to_dense())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(self.fc(x)))


class Read(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.bn(y) + y


class Untraceable(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make_model", "why"),
    [
        (Twice, "used more than once"),
        (Read, "used more than once"),
        (Untraceable, "cannot be traced"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "keeps no statistics"),
        (lambda: nn.Sequential(nn.Embedding(3, 3), nn.BatchNorm1d(3)), "Embedding comes right before it"),
    ],
)
def test_what_cannot_be_folded_is_refused_with_the_reason(make_model: type[nn.Module], why: str) -> None:
    with pytest.raises(CompositionError, match=why):
        compress(make_model().eval(), [FoldBatchNorm()])
