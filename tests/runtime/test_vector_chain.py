"""Chains of layers for few tokens compute what the layers one by one do."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.runtime.epilogue import Activation
from gossamer.runtime.vector import VectorLinear
from gossamer.runtime.vector_chain import VectorChain, chain_vectors


def layer(rows: int, columns: int, seed: int) -> VectorLinear:
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=draw) < 0.2
    return VectorLinear(torch.randn(rows, columns, generator=draw) * kept, torch.randn(rows, generator=draw))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        layer(40, 20, 0), nn.ReLU(), nn.Dropout(), layer(70, 40, 1), nn.SiLU(), layer(9, 70, 2), nn.Identity()
    ).eval()


SHAPES = [(1, 20), (20,), (1, 1, 20), (6, 20), (2, 3, 20), (0, 20), (50, 20)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_that_is_one_chain_becomes_one_module(shape: tuple[int, ...]) -> None:
    network = mlp()
    chain = chain_vectors(network, (torch.randn(1, 20),))
    assert isinstance(chain, VectorChain)
    assert [p.activation for p in chain.products] == [Activation.RELU, Activation.SILU, Activation.NONE]
    x = torch.randn(shape)
    torch.testing.assert_close(chain(x), network(x))
    assert chain(x).is_contiguous()
    torch.testing.assert_close(copy.deepcopy(chain)(x), network(x))
    assert chain.resident_bytes == sum(m.resident_bytes for m in network if isinstance(m, VectorLinear))
    assert "20 → 40 → 70 → 9, relu, silu, none" in repr(chain)


class Branches(nn.Module):
    """A value that two read, an activation on its own, code around layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = layer(30, 20, 0), layer(30, 30, 1), layer(30, 30, 2), layer(8, 30, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = F.relu(self.a(x.flatten(1)))
        z = torch.tanh(self.c(F.gelu(self.b(y))))
        return self.d(y + z * scale)


def test_chains_end_where_a_value_is_read_twice_or_kernels_have_no_function() -> None:
    network = Branches().eval()
    chained = chain_vectors(network, (torch.randn(1, 4, 5),))
    found = [m for m in chained.modules() if isinstance(m, VectorChain)]
    assert [len(chain.products) for chain in found] == [1, 2]
    for tokens in (1, 3, 20):
        x = torch.randn(tokens, 4, 5)
        torch.testing.assert_close(chained(x), network(x))


def test_a_network_without_such_layers_stays_as_it_is() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    assert chain_vectors(plain, (torch.randn(1, 4),)) is plain
    single = nn.Sequential(layer(4, 4, 0), nn.Softmax(dim=1)).eval()
    assert chain_vectors(single, (torch.randn(1, 4),)) is single


@pytest.mark.parametrize("x", [torch.zeros(1, 19), torch.zeros(1, 20, dtype=torch.float64), torch.zeros(20, 1)])
def test_other_inputs_are_refused(x: Tensor) -> None:
    chain = chain_vectors(mlp(), (torch.randn(1, 20),))
    with pytest.raises(RuntimeError, match=r"expected \[\.\.\., 20\] torch\.float32 on cpu"):
        chain(x)


def test_outputs_are_new_tensors_and_two_threads_do_not_meet() -> None:
    network = mlp()
    chain = chain_vectors(network, (torch.randn(1, 20),))
    wrong: list[float] = []

    def work(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(1, 20, generator=draw) for _ in range(40)]
        outputs = [chain(x) for x in inputs]
        wrong.extend(float((y - network(x)).abs().max()) for x, y in zip(inputs, outputs, strict=True))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 80 and max(wrong) <= 1e-4
