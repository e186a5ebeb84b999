"""Sparse layers under DistributedDataParallel over gloo: ordinary parameters, summed like any others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from gossamer.nn import SparseLayer, SparseLinear, Topology


def network() -> nn.Sequential:
    torch.manual_seed(0)
    masks = [torch.rand(40, 30) < 0.2, torch.rand(5, 40) < 0.5]
    layers = [SparseLinear(m.shape[1], m.shape[0], topology=Topology.of_mask(m)) for m in masks]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def batch(rank: int) -> Tensor:
    return torch.randn(16, 30, generator=torch.Generator().manual_seed(rank))


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def work(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    net = network()
    parallel = DistributedDataParallel(net)
    first = net[0]
    assert isinstance(first, SparseLayer)
    for _ in range(3):
        parallel.zero_grad()
        parallel(batch(rank)).square().sum().backward()
    matrix = first.live_matrix()
    parallel.zero_grad()
    parallel(batch(rank)).square().sum().backward()
    assert first.live_matrix() is matrix, "positions that DDP writes unchanged were laid out again"
    torch.save(gradients(net), Path(directory) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    net = network()
    for rank in range(2):
        (net(batch(rank)).square().sum() / 2).backward()
    assert len(found[0]) == 4
    for one, two, mine in zip(*found, gradients(net), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, mine, rtol=1e-5, atol=1e-5)
