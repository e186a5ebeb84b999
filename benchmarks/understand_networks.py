"""The two networks of `benchmarks.understand`, their data, training, and what is done to them.

Images are pixels from 0 to 1, so that the radius of an attack means what it says; networks bring pixels to mean 0 and
deviation 1 themselves. Settings of training and compression are ordinary ones, looked at once on the last 5,000 of the
training images.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Fashion, Shuffled, load_fashion

__all__ = [
    "CLASSES",
    "NETWORKS",
    "VARIANTS",
    "Network",
    "dense_of",
    "lenet_5",
    "pixels",
    "recipe_of",
    "resnet",
    "small",
]

CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MEAN, DEVIATION = 0.2860405969887955, 0.35302424451492237  # of Fashion-MNIST's training pixels


class Centred(nn.Module):
    """Pixels to mean 0 and deviation 1, channels innermost: so gradients take 0.6 to 0.8 of the time."""

    def forward(self, images: Tensor) -> Tensor:
        """[n, 1, h, w], the same."""
        innermost = torch.empty_like(images, memory_format=torch.channels_last)
        return innermost.copy_((images - MEAN) / DEVIATION)


def lenet_5() -> nn.Module:
    """Two 5×5 convolutions with 6 and 16 channels, 400–120–84–10: 61,706 parameters.

    Source: LeCun et al. 1998, with ReLU and maxima for its sigmoids and means.
    """
    layers = OrderedDict(
        centred=Centred(),
        conv1=nn.Conv2d(1, 6, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, 10),
    )
    return nn.Sequential(layers)


class Block(nn.Module):
    """Two 3×3 convolutions beside a 1×1, or beside nothing."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] → [n, outputs, h / stride, w / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


def resnet() -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels on 14×14 and smaller: 77,562 parameters."""
    layers = OrderedDict(
        centred=Centred(),
        stem=nn.Conv2d(1, 16, 3, 2, 1, bias=False),
        norm=nn.BatchNorm2d(16),
        relu=nn.ReLU(),
        block1=Block(16, 16, 1),
        block2=Block(16, 32, 2),
        block3=Block(32, 64, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, 10),
    )
    return nn.Sequential(layers)


@dataclass(frozen=True)
class Network:
    """What is trained and how.

    Args:
        name: in the results.
        factory: makes it.
        epochs: of dense training.
        lr: its peak.
        heal: epochs in which a pruned one trains; others half of it.
    """

    name: str
    factory: Callable[[], nn.Module]
    epochs: int
    lr: float
    heal: int


NETWORKS = (Network("LeNet-5", lenet_5, 6, 3e-3, 2), Network("ResNet", resnet, 4, 4e-3, 2))
VARIANTS = ("dense", "50% sparse", "90% sparse", "98% sparse", "4-bit", "k-means", "low-rank", "composed")
BATCH = 128


def pixels(folder: str | Path, *, quick: bool = False) -> Fashion:
    """Fashion-MNIST with the files' levels, 0 to 255, divided by 255."""
    fashion = load_fashion(folder)
    low, high = fashion.train.min(), fashion.train.max()  # both levels occur
    train, test = ((images - low).mul(255 / (high - low)).round().div(255) for images in (fashion.train, fashion.test))
    whole = Fashion(train, fashion.train_labels, test, fashion.test_labels, fashion.full)
    return small(whole, 4_096, 1_000) if quick else whole


def small(fashion: Fashion, train: int, test: int) -> Fashion:
    """The first of both."""
    return Fashion(
        fashion.train[:train],
        fashion.train_labels[:train],
        fashion.test[:test],
        fashion.test_labels[:test],
        full=fashion.full and train >= len(fashion.train),
    )


def dense_of(network: Network, data: Fashion, seed: int, *, epochs: int) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A trained network, and its states after every half epoch.

    Args:
        network: what to train.
        data: trains on its training images, half of each batch mirrored.
        seed: of first weights and orders.
        epochs: passes.
    """
    torch.manual_seed(seed)
    model = network.factory()
    batches = Shuffled(data.train, data.train_labels, BATCH, seed, flip=True)
    steps = epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.lr, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.lr, total_steps=steps, pct_start=0.2)
    states: list[dict[str, Tensor]] = []
    every = max(1, len(batches) // 2)
    model.train()
    for step, (inputs, targets) in enumerate((b for _ in range(epochs) for b in batches), 1):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        rates.step()
        if step % every == 0:
            states.append(copy.deepcopy(model.state_dict()))
    return model.eval(), states


_BIASES = gs.quantize.RoundToNearest(bits=8, group="tensor", symmetric=False, only="*.bias")


def recipe_of(variant: str, *, epochs: int) -> list[Any]:
    """What makes a variant of a dense network."""
    tune, half = (gs.Tune(epochs=e, lr=1e-3) for e in (epochs, (epochs + 1) // 2))

    def gradual(sparsity: float) -> gs.Gradual:
        return gs.Gradual(
            methods=(gs.prune.Magnitude(sparsity=sparsity, scope="lamp"),), tune=tune, updates=20, ramp=0.5
        )

    if variant.endswith("sparse"):
        return [gradual(float(variant.split("%", maxsplit=1)[0]) / 100)]
    short = gs.Tune(lr=3e-4)
    return {
        "4-bit": [gs.quantize.RoundToNearest(bits=4, group="channel"), half],
        "k-means": [gs.share.KMeans(bits=4), half, _BIASES],
        "low-rank": [gs.factorize.SVD(energy=0.85), half],
        "composed": [gradual(0.9), gs.share.KMeans(bits=4), short, _BIASES],
    }[variant]
