"""LSTM and GRU weights are gates: methods reach each, training and files keep them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.drive.source import ModelSource
from gossamer.encoding import Concat, Masked
from gossamer.methods.base import Method


class Reader(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True)  # type: ignore[call-arg]
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_weights_come_gate_by_gate(kind: type[nn.Module], gates: int) -> None:
    model = Reader(kind)
    tree = ModelSource(model).read("rnn.weight_hh_l1_reverse")
    assert isinstance(tree, Concat)
    assert [m.dense_shape() for m in tree.members] == [(8, 8)] * gates
    assert torch.equal(tree.to_dense(), model.get_parameter("rnn.weight_hh_l1_reverse"))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "recipe",
    [
        [],
        [gs.prune.Magnitude(sparsity=0.5), gs.share.KMeans(bits=2)],
        [gs.prune.Magnitude(sparsity=0.4, scope="lamp"), gs.quantize.RoundToNearest(bits=4)],
        [gs.factorize.SVD(rank=2), gs.quantize.RoundToNearest(bits=8)],
    ],
    ids=["lossless", "pruned-shared", "pruned-quantized", "factorized"],
)
def test_families_reach_the_gates_and_the_file_brings_them_back(
    kind: type[nn.Module], recipe: list[Method], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Reader(kind).eval()
    small = gs.compress(model, recipe)
    x = torch.randn(2, 5, 6)
    small.save(tmp_path / "m.gsm")
    again = gs.load(tmp_path / "m.gsm", into=lambda: Reader(kind))
    assert torch.equal(small.dense()(x), again.dense()(x))
    assert torch.allclose(again.lower(x)(x), small.dense()(x), atol=1e-5)
    if not recipe:
        assert torch.equal(small.dense()(x), model(x))
        assert all(t.untouched for t in again.ledger().tensors)


def test_survivors_of_the_gates_train_and_are_harvested() -> None:
    torch.manual_seed(0)
    small = gs.compress(Reader(), [gs.prune.Magnitude(sparsity=0.5)])
    net = small.trainable()
    assert net.rnn.weight_ih_l0.shape == (32, 6)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.randn(4, 5, 6)).square().sum().backward()
    optimizer.step()
    after = small.harvest(net)
    tree = after.trees["rnn.weight_ih_l0"]
    assert isinstance(tree, Concat)
    assert all(isinstance(m, Masked) for m in tree.members)
    assert not torch.equal(tree.to_dense(), small.trees["rnn.weight_ih_l0"].to_dense())
    x = torch.randn(2, 5, 6)
    assert torch.allclose(after.dense()(x), net.eval()(x), atol=1e-6)
