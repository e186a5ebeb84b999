"""One of two processes that train together: ``python rank.py RANK FOLDER``; results go to the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F
from train.every_method import every_method
from train.nets import batch, mlp, positions

from gossamer.errors import DataError, PlanError
from gossamer.train import Sparsifier, sparsify

AGREE = ("rigl", "set", "n of m")


def train(name: str, rank: int, seed: int) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    method = every_method(40, 3, seed)[name]
    model = sparsify(mlp(), every_method(40, 3)[name])
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
    sparsifier = Sparsifier(wrapped, optimizer, method)
    found = []
    for step in range(16):
        x, y = batch(2 * step + rank)  # each rank its own data
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        sparsifier.step()
        found.append(positions(model))
    return found, dict(model.state_dict())


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in AGREE:
        torch.save(train(name, rank, seed=0), folder / f"{name}.{rank}.pt")
    for name, seed in (("set", rank), ("dsr", 0)):
        try:
            train(name, rank, seed)
        except (PlanError, DataError) as error:
            (folder / f"{name}.{rank}.error").write_text(str(error))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
