"""A small residual network for 28×28 images: three stages of basic blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.demo.networks import ChannelsLast

__all__ = ["BasicBlock", "ResNet", "resnet"]


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), the first convolution strided."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] → [n, outputs, h / stride, w / stride]."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A strided stem to 14×14, then one stage per width, each after the first at half the resolution of the one before.

    Args:
        widths: channels of the stages.
        blocks: basic blocks per stage.
        classes: width of the output.
    """

    def __init__(self, widths: tuple[int, ...], blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.layout = ChannelsLast()
        self.norm = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for number, width in enumerate(widths):
            made = []
            for block in range(blocks):
                made.append(BasicBlock(inputs, width, 2 if number and not block else 1))
                inputs = width
            stages.append(nn.Sequential(*made))
        self.stages = nn.Sequential(*stages)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 1, 28, 28] → scores [n, classes]."""
        x = F.relu(self.norm(self.layout(self.stem(images))))
        return self.head(self.flatten(self.average(self.stages(x))))


def resnet() -> nn.Module:
    """Three stages of one block with 24, 48 and 96 channels, 173,842 parameters, 5.5 million MACs.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2 (their CIFAR-10 networks), here with a strided stem.
    """
    return ResNet((24, 48, 96), blocks=1)
