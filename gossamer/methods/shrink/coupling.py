"""Channels that die together: what they are, and how a tensor is cut where several of them die."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.encoding.patterns import Mask

__all__ = ["Coupling", "Cut", "Member", "cuts_of", "run_of"]


@dataclass(frozen=True, eq=False)
class Member:
    """A tensor dimension that loses indices with the channels of a coupling.

    Args:
        tensor: name.
        dim: output-first dimension.
        index: int64 [channels, k]: the k indices along the dimension that die with each channel. Consecutive ones for
            pixels of a flattened channel, with an offset behind a concatenation, strided for the gates of an LSTM.
    """

    tensor: str
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """Channels of one or more layers and every tensor dimension that loses them.

    Args:
        producers: names of the weights whose rows (columns, for an embedding) the channels are.
        channels: how many there are.
        members: all tensor dimensions, the producers' included; a tensor may appear with both of its dimensions.
        exact: whether the network without a channel equals the one in which the channel is zero; not so where a
            normalisation takes its statistics over the channels.
    """

    producers: tuple[str, ...]
    channels: int
    members: tuple[Member, ...]
    exact: bool = True

    @property
    def producer(self) -> str:
        """The first of the weights."""
        return self.producers[0]

    def readers(self) -> tuple[Member, ...]:
        """The dimensions along which the channels are read: inputs of weights that do not also produce them."""
        return tuple(m for m in self.members if m.dim == 1 and m.tensor not in self.producers)

    def rows(self) -> tuple[Member, ...]:
        """The dimensions along which the channels are made."""
        made = tuple(m for m in self.members if m.dim == 0 and m.tensor in self.producers)
        return made or tuple(m for m in self.members if m.tensor in self.producers)


def run_of(tensor: str, dim: int, channels: int, repeat: int = 1, offset: int = 0) -> Member:
    """Member whose channel c dies with the indices offset + c · repeat … offset + (c + 1) · repeat − 1.

    Example:
        >>> run_of("fc.weight", 1, 2, repeat=3).index.tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    return Member(tensor, dim, offset + torch.arange(channels * repeat).view(channels, repeat))


@dataclass(frozen=True, eq=False)
class Cut:
    """What one tensor loses along one dimension.

    Args:
        keep: bool [size // repeat], True = kept.
        repeat: consecutive indices that live or die together everywhere along this dimension.
    """

    keep: Tensor
    repeat: int

    def mask(self) -> Mask:
        """As the pattern that `Kept` holds."""
        return Mask.of(self.keep)

    def indices(self) -> Tensor:
        """Indices that stay, int64."""
        return (self.keep.nonzero() * self.repeat + torch.arange(self.repeat)).reshape(-1)


def cuts_of(
    couplings: Iterable[tuple[Coupling, Tensor]], shapes: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, Cut]]:
    """Per tensor and dimension what stays; several couplings may cut the same dimension.

    Args:
        couplings: each with its bool mask [channels], True = kept; those that keep everything say nothing.
        shapes: output-first shape per tensor.
    """
    dead: dict[tuple[str, int], list[Tensor]] = {}
    repeats: dict[tuple[str, int], int] = {}
    for coupling, keep in couplings:
        if bool(keep.all()):
            continue
        for member in coupling.members:
            key = (member.tensor, member.dim)
            dead.setdefault(key, []).append(member.index[~keep].reshape(-1))
            mine = _repeat(member.index)
            repeats[key] = mine if repeats.get(key, mine) == mine else 1
    found: dict[str, dict[int, Cut]] = {}
    for (tensor, dim), gone in dead.items():
        keep = torch.ones(shapes[tensor][dim], dtype=torch.bool)
        keep[torch.cat(gone)] = False
        repeat = repeats[tensor, dim]
        if len(keep) % repeat:
            repeat = 1
        found.setdefault(tensor, {})[dim] = Cut(keep.view(-1, repeat)[:, 0].clone(), repeat)
    return found


def _repeat(index: Tensor) -> int:
    """k if every channel owns k consecutive indices from a multiple of k on, else 1."""
    k = index.shape[1]
    aligned = bool((index[:, 0] % k == 0).all()) and torch.equal(index, index[:, :1] + torch.arange(k))
    return k if aligned else 1
