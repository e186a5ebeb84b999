"""Sparse gradients between two real processes over gloo."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gossamer.errors import DataError, PlanError
from gossamer.nn import SparseLinear, Topology
from gossamer.train.wire import TopKGradients, largest

STEPS = 5


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    mask = torch.rand(16, 12) < 0.5
    return nn.Sequential(SparseLinear.of(nn.Linear(12, 16), mask), nn.ReLU(), nn.Linear(16, 5))


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(8, 12, generator=random), torch.randint(5, (8,), generator=random)


def gradients_of(model: nn.Module, rank: int, step: int) -> dict[str, Tensor]:
    model.zero_grad()
    x, y = batch(rank, step)
    nn.functional.cross_entropy(model(x), y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain(rank: int) -> dict[str, Tensor]:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        gradients_of(model, rank, step)
        optimizer.step()
    return {n: p.detach() for n, p in model.module.named_parameters()}


def everything_sent(rank: int) -> dict[str, Tensor]:
    model = DistributedDataParallel(network())
    hook = TopKGradients(model, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        gradients_of(model, rank, step)
        optimizer.step()
    assert not any(bool(rest.any()) for rest in hook.kept().values())
    return {n: p.detach() for n, p in model.module.named_parameters()}


def a_tenth_sent(rank: int) -> dict[str, Tensor]:
    """Weights stay, so that gradients are known: sums of what came, of what each process had, and what it kept."""
    model = DistributedDataParallel(network())
    hook = TopKGradients(model, 0.1)
    own = network()
    came: dict[str, Tensor] = {}
    had: dict[str, Tensor] = {}
    for step in range(STEPS):
        for sums, found in ((came, gradients_of(model, rank, step)), (had, gradients_of(own, rank, step))):
            for key, gradient in found.items():
                name = key.removeprefix("module.")
                sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient
    numbers = sum(p.numel() for p in own.parameters())
    sent = torch.tensor([hook.sent.steps, hook.sent.bytes, hook.sent.dense_bytes, numbers])
    kept = {f"kept.{n}": rest for n, rest in hook.kept().items()}
    return {
        **{f"came.{n}": g for n, g in came.items()},
        **{f"had.{n}": g for n, g in had.items()},
        **kept,
        "sent": sent,
    }


def topology_moves(rank: int) -> dict[str, Tensor]:
    model = DistributedDataParallel(network())
    hook = TopKGradients(model, 0.05)
    gradients_of(model, rank, 0)
    layer = model.module[0]
    assert isinstance(layer, SparseLinear)
    before, kept = layer.topology, hook.kept()["0.values"]
    mask = before.mask()
    mask.view(-1)[before.positions[:20].long()] = False
    mask.view(-1)[(~before.mask()).view(-1).nonzero().squeeze(1)[-20:]] = True
    now = Topology.of_mask(mask)
    layer.set_topology(now, torch.zeros(now.live))
    saved = hook.state_dict()["kept"]["0.values"]
    follows = hook._kept_of(layer.values)
    dense = torch.zeros(16 * 12).index_copy(0, before.positions.long(), kept)
    assert torch.equal(saved, kept)
    return {"follows": follows, "expected": torch.where(before.mask() & mask, dense.view(16, 12), 0)[mask]}


WORK = {f.__name__: f for f in (plain, everything_sent, a_tenth_sent, topology_moves)}


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for name, work in WORK.items():
            save_file({n: t.contiguous() for n, t in work(rank).items()}, Path(folder) / f"{name}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """What two processes found, by the name of the work; they are started once."""
    folder = tmp_path_factory.mktemp("wire")
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_process, args=(rank, str(folder))) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
        assert process.exitcode == 0
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)] for name in WORK}


Both = dict[str, list[dict[str, Tensor]]]


def test_with_everything_sent_training_is_that_of_plain_ddp_bit_for_bit(both: Both) -> None:
    expected, found = both["plain"], both["everything_sent"]
    for rank in range(2):
        assert all(torch.equal(found[rank][n], expected[0][n]) for n in expected[0])
    assert not torch.equal(found[0]["2.weight"], network().get_parameter("2.weight"))


def test_what_came_and_what_is_kept_is_the_sum_of_gradients_and_bytes_are_counted(both: Both) -> None:
    one, other = both["a_tenth_sent"]
    for name in (n.removeprefix("came.") for n in one if n.startswith("came.")):
        assert torch.equal(one[f"came.{name}"], other[f"came.{name}"])
        kept = (one[f"kept.{name}"] + other[f"kept.{name}"]).view_as(one[f"came.{name}"])
        torch.testing.assert_close(2 * one[f"came.{name}"] + kept, one[f"had.{name}"] + other[f"had.{name}"])
    steps, sent, dense, numbers = one["sent"].tolist()
    assert steps == STEPS
    assert sent == STEPS * round(0.1 * numbers) * 8  # to one other process: positions and values
    assert dense == STEPS * numbers * 4


def test_what_is_kept_follows_the_live_weights(both: Both) -> None:
    for found in both["topology_moves"]:
        assert torch.equal(found["follows"], found["expected"])
        assert bool(found["follows"].any())


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_sent_at_their_places(numbers: list[float], k: int) -> None:
    buffer = torch.tensor(numbers)
    at, values = largest(buffer, k)
    assert len(at) == min(k, len(numbers)) and at.dtype is torch.int32
    assert torch.equal(values, buffer[at.long()])
    rest = buffer.clone()
    rest[at.long()] = 0
    assert float(rest.abs().max()) <= float(values.abs().min())


def _alone(folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)


def test_settings_and_states_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    _alone(str(tmp_path))
    try:
        model = DistributedDataParallel(network())
        with pytest.raises(PlanError, match="density: found 0"):
            TopKGradients(model, 0.0)
        hook = TopKGradients(model, 0.5)
        gradients_of(model, 0, 0)
        with pytest.raises(DataError, match="found 'other'"):
            hook.load_state_dict({"kept": {"other": torch.zeros(1)}, "sent": (0, 0, 0)})
        state = hook.state_dict()
        hook.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(state["kept"].values(), hook.kept().values(), strict=True))
    finally:
        dist.destroy_process_group()
