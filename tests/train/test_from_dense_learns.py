"""Methods with a dense phase on real images: a sparse network comes out, and it has learned."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.demo.data import Fashion, Shuffled, load_fashion
from gossamer.methods.prune import Magnitude
from gossamer.train.from_dense import (
    ACDC,
    DenseMethod,
    Feedback,
    FromDense,
    GroupLasso,
    HardConcrete,
    HardThresholding,
    Hoyer,
    IterativePruning,
    LotteryTicket,
    SoftThreshold,
    VariationalDropout,
    harvest,
    live_masks,
    penalty,
    prepare,
)

TOP = Magnitude(sparsity=0.9, scope="global")
STEPS = 240  # of 128 images: three epochs of the packaged subset

# per method: what it is, and how much sparsity it finds or is told to reach
METHODS: dict[str, tuple[DenseMethod, float, float]] = {
    "acdc": (ACDC(prune=TOP, steps=STEPS, warmup=40, period=40, final=80), 0.9, 0.9),
    "ticket": (LotteryTicket(prune=TOP, rounds=3, length=75, to=15), 0.9, 0.9),
    "rate": (IterativePruning(prune=TOP, rounds=3, length=75, to=15, rewind="rate"), 0.9, 0.9),
    "feedback": (Feedback(prune=TOP, every=16, ramp=120), 0.9, 0.9),
    "hard-thresholding": (HardThresholding(prune=TOP, every=8), 0.9, 0.9),
    "l0": (HardConcrete(strength=2e-5, start=0.7), 0.5, 0.99),
    "soft-threshold": (SoftThreshold(start=-6.0, decay=1e-4, threshold_decay=1e-2), 0.5, 0.99),
    "variational": (VariationalDropout(strength=4e-5, start=-6.0), 0.5, 0.99),
    "group-lasso": (GroupLasso(group="columns", strength=3e-4, threshold=0.3), 0.1, 0.95),
    "hoyer": (Hoyer(strength=3e-5, threshold=0.3), 0.5, 0.99),
}


@cache
def data() -> Fashion:
    return load_fashion()


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_network_comes_out_that_has_learned(name: str) -> None:
    method, least, most = METHODS[name]
    fashion = data()
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)), method)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if isinstance(method, (HardConcrete, SoftThreshold, VariationalDropout)):
        weights = [p for n, p in model.named_parameters() if "original" in n or "bias" in n]
        own = [p for n, p in model.named_parameters() if not ("original" in n or "bias" in n)]
        optimizer = torch.optim.Adam([{"params": weights}, {"params": own, "lr": 3e-2}], lr=2e-3)
    settles = isinstance(method, Feedback)
    if settles:  # what is dead moves as far as what lives under Adam, and masks never settle
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    steps = method.steps if isinstance(method, IterativePruning) else STEPS
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps) if settles else 1.0)
    run = FromDense(model, optimizer, method)
    step = 0
    while step < steps:
        for x, y in Shuffled(fashion.train, fashion.train_labels, 128, step):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + penalty(model)).backward()
            optimizer.step()
            decay.step()
            run.step()
            step += 1
            if step == steps:
                break
    model.eval()
    small = harvest(model).dense()
    with torch.inference_mode():
        accuracy = float((small(fashion.test).argmax(1) == fashion.test_labels).float().mean())
    masks = live_masks(model).values()
    sparsity = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert least - 1e-3 <= sparsity <= most + 1e-3, (sparsity, accuracy)
    assert accuracy > 0.77, (sparsity, accuracy)  # dense: 0.85
