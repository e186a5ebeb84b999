"""A Gaussian for every weight of a tensor, in training: sampled forwards, priced by its bits, coded block by block."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gossamer.drive.prices import Prices
from gossamer.encoding.drawn import Drawn, Draws
from gossamer.encoding.gaussian import PER_UNIT
from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of, uniform_bits
from gossamer.encoding.values import Dense

__all__ = ["Posterior", "Sampled", "chosen"]

F64 = npt.NDArray[np.float64]

_START = 0.1  # deviation of a weight at first, as a share of the weights' own
_TYPICAL = 1e-3  # which is at least this: biases may all be zero
_SPEED = 8.0  # logarithms of deviations change by orders of magnitude where weights move little: so many learning rates
_SMALLEST, _LARGEST = 2.0**-14, 2.0**15  # scales, which are stored in half precision


@final
class Posterior(nn.Module):
    """N(mean, deviation²) of every weight against the prior N(0, scale²), or what was drawn where a block is coded.

    Until its first block is coded, the scale is the one that makes KL least, √mean(mean² + deviation²).

    Args:
        mean: the weights to begin with, any shape; float32.
        name: of the stream of random numbers.
        seed: of all that is random.
    """

    def __init__(self, mean: Tensor, name: str, seed: int) -> None:
        super().__init__()
        self.mean, self.name, self.seed = nn.Parameter(mean.detach().clone()), name, seed
        self.scale = max(float(mean.detach().double().square().mean().sqrt()), _TYPICAL)
        self._first = math.log(_START * self.scale)
        self.spread = nn.Parameter(torch.zeros_like(self.mean))  # (log deviation − log of the first one) / _SPEED
        self._left = torch.ones_like(self.mean, dtype=torch.bool)
        self._fixed, self._noise = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self._divided(0, 1.0)

    def log_deviation(self) -> Tensor:
        """Of every weight, shape of the mean."""
        return self._first + _SPEED * self.spread

    def draw_noise(self, step: int) -> None:
        """New noise: what it is depends on seed, name and step alone."""
        key = key_of(self.seed, self.name, "noise", step)
        torch.randn(self.mean.shape, generator=torch.Generator().manual_seed(key >> 1), out=self._noise)

    def sample(self) -> Tensor:
        """The weight of this step, differentiable in means and deviations."""
        weight = self.mean + self.log_deviation().exp() * self._noise
        return torch.where(self._left, weight, self._fixed) if self.blocks else weight

    @torch.no_grad()
    def divergence(self) -> Tensor:
        """KL(posterior ‖ prior) of every weight in nats, shape of the mean; before the first block, fits the scale."""
        log_deviation = self.log_deviation()
        square = self.mean.square() + (2 * log_deviation).exp()
        if not self.coding:
            self.scale = min(max(float(square.double().mean().sqrt()), _SMALLEST), _LARGEST)
        return square / (2 * self.scale**2) - 0.5 - log_deviation + math.log(self.scale)

    @torch.no_grad()
    def add_gradient(self, price: float) -> None:
        """Add the gradient of Σ price · KL to that of the loss, over what is not coded.

        Args:
            price: loss per nat as long as the weights are not divided, then each block has its own.
        """
        if not self.mean.requires_grad:
            return
        if self.blocks:
            each = self.prices.each.float()[self._block].view_as(self.mean) * self._left
        else:
            each = torch.full_like(self.mean, price)
        per_square = each / self.scale**2
        for parameter, gradient in (
            (self.mean, self.mean * per_square),
            (self.spread, ((2 * self.log_deviation()).exp() * per_square - each) * _SPEED),
        ):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    # -- blocks ------------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """How many there are; 0: the weights are not divided yet."""
        return len(self.index)

    @property
    def coding(self) -> bool:
        """Whether a block is coded, from which on the scale stays."""
        return bool(self.coded.any())

    def divide(self, blocks: int, price: float) -> None:
        """Cut the weights into blocks, each with a price of its own from now on.

        Args:
            blocks: how many, 1 to the number of weights.
            price: loss per nat to begin with.
        """
        self._divided(blocks, price)
        block = np.empty(self.mean.numel(), dtype=np.int64)
        block[self.draws.order] = np.repeat(np.arange(blocks), np.diff(self.draws.starts))
        self._block = torch.from_numpy(block)

    def _divided(self, blocks: int, price: float) -> None:
        self.draws = Draws(self.seed, self.name, self.mean.numel(), blocks)
        self.prices = Prices(price, blocks)
        self.index, self.coded = torch.zeros(blocks, dtype=torch.int32), torch.zeros(blocks, dtype=torch.bool)

    def of_blocks(self, divergence: Tensor) -> Tensor:
        """Its sums by block, float64 [blocks]."""
        return torch.zeros(self.blocks, dtype=torch.float64).index_add_(0, self._block, divergence.double().flatten())

    @torch.no_grad()
    def code(self, block: int, bits: int) -> None:
        """Take one of the first 2^bits draws for a block's weights, for good."""
        if not self.coding:
            self.scale = float(torch.tensor(self.scale).half())
        at = torch.from_numpy(self.draws.members(block))
        mean = self.mean.flatten()[at].double() / self.scale
        deviation = self.log_deviation().flatten()[at].double().exp() / self.scale
        uniform = int(uniform_bits(key_of(self.seed, self.name, "choice"), block + 1)[-1]) / 2.0**64
        self._fix(block, chosen(self.draws, block, 1 << bits, mean.numpy(), deviation.numpy(), uniform))

    def _fix(self, block: int, number: int) -> None:
        at = torch.from_numpy(self.draws.members(block))
        drawn = torch.from_numpy(self.draws.one(block, number)).float() / PER_UNIT
        self._fixed.view(-1)[at] = drawn * self.scale
        self._left.view(-1)[at] = False
        self.index[block], self.coded[block] = number, True

    def encoding(self, bits: int) -> Drawn:
        """What is stored; all blocks are coded."""
        scale = Dense(torch.tensor([self.scale], dtype=torch.float16))
        return Drawn(self.index.clone(), scale, tuple(self.mean.shape), self.seed, self.name, bits)

    # -- killed and resumed ------------------------------------------------------------------------------------------

    def rest(self) -> dict[str, Any]:
        """What there is besides parameters, for `take`."""
        return {"scale": self.scale, "prices": self.prices.state(), "index": self.index, "coded": self.coded}

    def take(self, rest: dict[str, Any]) -> None:
        """Go on from a `rest`; parameters have been put in."""
        self.scale = rest["scale"]
        if len(rest["index"]):
            self.divide(len(rest["index"]), 1.0)
            self.prices.take(rest["prices"])
            with torch.no_grad():
                for block in rest["coded"].nonzero().flatten().tolist():
                    self._fix(block, int(rest["index"][block]))


def chosen(draws: Draws, block: int, count: int, mean: F64, deviation: F64, uniform: float) -> int:
    """Number of one of a block's draws from N(0, 1), with probability in proportion to posterior / prior there.

    log(posterior / prior) = Σ z²/2 − (z − mean)²/(2 deviation²), up to a constant: a product with z and one with z².

    Args:
        draws: of the tensor.
        block: which.
        count: draws to choose from.
        mean: of the posterior in units of the prior's deviation, float64 [size].
        deviation: the same.
        uniform: 0 to 1, decides.

    Cost: some 8 ns per number.

    Source: Havasi et al. 2019, arXiv 1810.00440, algorithm 1.
    """
    inverse = 1 / deviation**2
    linear = (mean * inverse / PER_UNIT).astype(np.float32)
    square = (0.5 * (1 - inverse) / PER_UNIT**2).astype(np.float32)
    found = []
    for some in draws.of(block, count):
        z = some.astype(np.float32)
        products = z @ linear
        z *= z
        found.append(products + z @ square)
    logarithms = np.concatenate(found).astype(np.float64)
    summed = np.cumsum(np.exp(logarithms - logarithms.max()))
    return min(int(np.searchsorted(summed, uniform * summed[-1], side="right")), count - 1)


@final
class Sampled(nn.Module):
    """What a weight's tree goes through while its numbers are random: leaves replaced by samples.

    Args:
        posteriors: path of a `Dense` node in the tree → its posterior.
    """

    def __init__(self, posteriors: dict[str, Posterior]) -> None:
        super().__init__()
        self.paths = tuple(posteriors)
        self.posteriors = nn.ModuleList(posteriors.values())

    def forward(self, tree: Encoding) -> Encoding:
        """The tree that the layer multiplies with."""
        for path, posterior in zip(self.paths, self.posteriors, strict=True):
            assert isinstance(posterior, Posterior)
            tree = tree.put(path, Dense(posterior.sample()))
        return tree
