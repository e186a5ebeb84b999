"""LeNet-300-100 and LeNet-5 (the Caffe variant), the networks of twenty years of pruning papers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from gossamer.demo.data import Fashion, Shuffled
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.tune import Tune, train

__all__ = ["lenet_5", "lenet_300_100", "train_dense"]


def lenet_300_100() -> nn.Module:
    """784–300–100–10, 266,610 parameters.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """
    layers = OrderedDict(
        flatten=nn.Flatten(),
        fc1=nn.Linear(784, 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, 10),
    )
    return nn.Sequential(layers)


class ChannelsLast(nn.Module):
    """The same numbers in the memory layout in which this processor convolves fastest: half the dense time."""

    def forward(self, images: Tensor) -> Tensor:
        """[n, c, h, w], channels innermost."""
        return images.contiguous(memory_format=torch.channels_last)


def lenet_5() -> nn.Module:
    """Two 5×5 convolutions with 20 and 50 channels, 800–500–10; 431,080 parameters.

    Source: the Caffe variant that Han et al. 2016, arXiv 1510.00149 compress; here with ReLU after the convolutions.
    """
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 20, 5),
        layout=ChannelsLast(),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(800, 500),
        relu3=nn.ReLU(),
        fc2=nn.Linear(500, 10),
    )
    return nn.Sequential(layers)


def train_dense(
    model: nn.Module,
    data: Fashion,
    tune: Tune,
    *,
    batch: int,
    seed: int,
    progress: Progress | None = None,
    title: str = "training the dense network",
) -> nn.Module:
    """Train a freshly made network in place; the same seed gives the same network."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    batches = Shuffled(data.train, data.train_labels, batch, seed, flip=True)
    train(model, batches, tune, progress=progress or NoProgress(), title=title)
    return model
