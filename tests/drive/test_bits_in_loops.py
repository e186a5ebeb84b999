"""Hand-written training loops with the bits in their loss: what is trained is what is harvested, and files shrink."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.coding import order0_bits
from gossamer.drive.learning import rate
from gossamer.encoding import Affine, Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Method
from tests.drive.sparse_classes import accuracy_of, data, net

METHODS = (gs.quantize.LearnedRate(levels=7), gs.quantize.LearnedRate(only="*.bias", levels=31, zeros="level"))


def by_hand(price: float, start: gs.Compressed, epochs: int = 20) -> gs.Compressed:
    network = start.trainable(METHODS)
    weights = sum(p.numel() for p in net().parameters())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for x, y in data():
            loss = F.cross_entropy(network(x), y)
            if price:
                loss = loss + price * min(1.0, 2 * epoch / epochs) * gs.rate(network) / weights
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return start.harvest(network.eval())


def test_a_loop_of_ones_own_with_the_bits_in_its_loss_leaves_a_smaller_file_that_works(tmp_path: Path) -> None:
    small = gs.compress(net(), [])
    sizes, right = [], []
    for price in (0.0, 0.1):
        done = by_hand(price, small)
        sizes.append(done.save(tmp_path / "a.gsm"))
        again = gs.load(tmp_path / "a.gsm", into=net)
        assert isinstance(again.trees["0.weight"], Masked)
        assert isinstance(again.trees["0.bias"], Affine)
        right.append(accuracy_of(again.dense()))
    assert sizes[1] < 0.6 * sizes[0]
    assert right[1] > right[0] - 0.05


def test_the_rate_is_what_an_order_0_coder_takes_for_what_is_harvested() -> None:
    small = gs.compress(net(), [])
    network = small.trainable([gs.quantize.LearnedRate(zeros="level", levels=3)])
    trees = small.harvest(network).trees
    symbols = [trees[n].q.numpy() for n in ("0.weight", "2.weight", "4.weight")]  # type: ignore[attr-defined]
    assert float(rate(network).detach()) == pytest.approx(sum(map(order0_bits, symbols)), rel=0.01)


def test_harvesting_leaves_the_network_as_it_trains_and_holds_what_it_computes() -> None:
    small = gs.compress(net(), [gs.prune.Magnitude(sparsity=0.5)])
    network = small.trainable([gs.quantize.LearnedRate(), gs.quantize.LearnedStep(bits=8, only="*.bias")]).eval()
    x = data()[0][0]
    with torch.no_grad():
        before = network(x)
        done = small.harvest(network)
        assert torch.equal(network(x), before)
        assert torch.equal(done.dense()(x), before)
    mask = small.trees["0.weight"].at("/where").mask()  # type: ignore[attr-defined]
    assert not bool((done.trees["0.weight"].to_dense() != 0)[~mask].any())
    rate(network).backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None for p in network.parameters())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.tokens(x))  # type: ignore[no-any-return]


def test_a_weight_of_two_names_counts_once_and_is_harvested_once(tmp_path: Path) -> None:
    small = gs.compress(Tied(), [])
    network = small.trainable([gs.quantize.LearnedRate(zeros="level")])
    done = small.harvest(network)
    index = next(iter(done.trees.values())).q.numpy()  # type: ignore[attr-defined]
    assert float(rate(nn.Sequential(network)).detach()) == pytest.approx(order0_bits(index), rel=0.02)
    done.save(tmp_path / "a.gsm")
    dense = gs.load(tmp_path / "a.gsm", into=Tied).dense()
    assert dense.out.weight is dense.tokens.weight


@pytest.mark.parametrize("method", [gs.quantize.RoundToNearest(bits=4), gs.prune.Magnitude(sparsity=0.5)])
def test_methods_whose_scales_do_not_learn_are_refused(method: Method) -> None:
    with pytest.raises(PlanError, match=f"found {type(method).__name__}, expected methods that learn"):
        gs.compress(net(), []).trainable([method])


def test_what_has_no_bits_or_matches_nothing_is_refused() -> None:
    small = gs.compress(net(), [gs.quantize.RoundToNearest(bits=4)])
    with pytest.raises(CompositionError, match="rate: found no weights with bits"):
        rate(small.trainable())
    with pytest.raises(CompositionError, match="rate: found no weights with bits"):
        rate(gs.compress(net(), []).trainable([gs.quantize.LearnedStep(bits=4)]))
    with pytest.raises(CompositionError, match="LearnedRate"):
        small.trainable([gs.quantize.LearnedRate()])
    with pytest.raises(PlanError, match="expected a list"):
        small.trainable(gs.quantize.LearnedRate())  # type: ignore[arg-type]
