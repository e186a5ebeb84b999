"""The networks that are trained here, on Fashion-MNIST: two LeNets, a ResNet, an LSTM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.zoo.lstm import row_reader
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.resnet import resnet
from benchmarks.zoo.subject import Subject
from gossamer.demo.data import Shuffled
from gossamer.demo.networks import lenet_5, lenet_300_100, train_dense
from gossamer.drive.tune import Tune
from gossamer.measure.accuracy import accuracy

__all__ = ["lenet_5_subject", "lenet_300_100_subject", "resnet_subject", "row_reader_subject"]


@dataclass(frozen=True)
class _Training:
    """How a dense network is trained and fine-tuned.

    Args:
        tune: of the dense network; lengths are those for 60,000 images.
        batch: samples per batch, fine-tuning included.
        flip: whether fine-tuning sees mirrored images too (dense training always does).
        epoch_seconds: of 60,000 images on two cores that do nothing else.
    """

    tune: Tune
    batch: int
    flip: bool
    epoch_seconds: float


def lenet_300_100_subject(zoo: Zoo) -> Subject:
    """As in benchmarks.pipeline."""
    training = _Training(Tune(epochs=20, lr=2e-3, warmup=0.2), 256, flip=False, epoch_seconds=1.0)
    return _subject("LeNet-300-100", lenet_300_100, training, zoo)


def lenet_5_subject(zoo: Zoo) -> Subject:
    """As in benchmarks.pipeline."""
    training = _Training(Tune(epochs=6, lr=2e-3, warmup=0.2), 128, flip=True, epoch_seconds=8.0)
    return _subject("LeNet-5", lenet_5, training, zoo)


def resnet_subject(zoo: Zoo) -> Subject:
    """Three stages of one basic block each."""
    training = _Training(Tune(epochs=5, lr=4e-3, warmup=0.2, weight_decay=1e-2), 128, flip=True, epoch_seconds=18.0)
    return _subject("ResNet", resnet, training, zoo)


def row_reader_subject(zoo: Zoo) -> Subject:
    """An LSTM over image rows."""
    training = _Training(Tune(epochs=8, lr=4e-3, warmup=0.2, clip=1.0), 128, flip=False, epoch_seconds=7.0)
    return _subject("LSTM", row_reader, training, zoo)


def _subject(name: str, factory: Callable[[], nn.Module], training: _Training, zoo: Zoo) -> Subject:
    data = zoo.fashion
    share = len(data.train) / 60_000

    def dense() -> nn.Module:
        torch.manual_seed(0)  # recurrent layers are initialised when they are made
        model = factory()
        tune = replace(training.tune, epochs=max(1, training.tune.epochs // 3)) if zoo.quick else training.tune
        return train_dense(model, data, tune, batch=training.batch, seed=0)

    return Subject(
        name=name,
        factory=factory,
        metric="accuracy",
        dense=dense,
        measure=lambda model: accuracy(model, data.test, data.test_labels).value,
        batches=lambda seed: Shuffled(data.train, data.train_labels, training.batch, seed, flip=training.flip),
        loss=F.cross_entropy,
        inputs=lambda batch: data.test[:batch].contiguous(),
        dense_seconds=training.tune.epochs * training.epoch_seconds * share,
        epoch_seconds=training.epoch_seconds * share,
        measure_seconds=1.0,
    )
