"""Networks of every shape, and methods that show what they were given, for tests of the block-by-block driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Dense
from gossamer.methods.base import DENSE, Ask, Evidence, Method, Plan, Rule, Site, Step, Summary

__all__ = ["Chain", "Coded", "Damp", "Decoder", "Hidden", "Tied", "UNet", "Whole"]


@dataclass(frozen=True, kw_only=True)
class Damp(Method):
    """w · (1 − G's diagonal / (1 + its largest)) per column: different wherever the inputs are."""

    given: ClassVar[dict[str, Tensor]] = {}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gram"})

    def rules(self) -> tuple[Rule, ...]:
        return (Rule(DENSE, lambda skeleton: skeleton),)

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        new: dict[str, Encoding] = {}
        for site in sites:
            gram = evidence[site.key]["gram"]
            self.given[site.key] = gram
            new[site.key] = Dense(damped(weights[site.key].to_dense(), gram) * float(entry.get("factor", 1.0)))
        return new


def damped(weight: Tensor, gram: Tensor) -> Tensor:
    diagonal = gram.diagonal(dim1=-2, dim2=-1).float()  # [in], or [groups, in]
    scale = 1 - 0.5 * diagonal / (1 + diagonal.max())
    rows = len(weight) // (len(gram) if gram.dim() == 3 else 1)
    return (weight.flatten(1).view(-1, rows, scale.shape[-1]) * scale.view(-1, 1, scale.shape[-1])).view(weight.shape)


@dataclass(frozen=True, kw_only=True)
class Whole(Damp):
    """As `Damp`, times this layer's share of the whole network's energy: it must look at everything before it plans."""

    @property
    def observes(self) -> bool:
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        return {"energy": float(evidence["gram"].trace())}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        total = sum(s["energy"] for s in summaries.values())
        if ask is None:
            return Ask({"total": total})
        return Plan(tuple(Step((s.key,), {"factor": summaries[s.key]["energy"] / total}) for s in sites))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, None]:
        return x + self.down(torch.tanh(self.up(x))) * scale, None


class Chain(nn.Module):
    """Embedding, layers with an extra argument and tuples, a norm, a head."""

    def __init__(self, layers: int = 3, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x, scale = self.embed(ids), torch.cos(torch.arange(ids.shape[1]))[:, None]
        for layer in self.layers:
            x, _ = layer(x, scale=scale)
        out: Tensor = self.head(self.norm(x))
        return out


class Tied(Chain):
    """Its head is the table of its embedding."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, torch.ones(()))[0]
        return F.linear(self.norm(x), self.embed.weight)


class UNet(nn.Module):
    """Every level's output goes down to the next and across to its counterpart."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down[0](x))
        second = F.relu(self.down[1](first))
        out: Tensor = self.up[1](torch.cat([self.up[0](second), first], 1))
        return out


class Coded(nn.Module):
    """Encoder and decoder: every decoder layer reads the encoder's states; outputs are added up in place."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.cross = nn.ModuleList(nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(3))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states, x = self.encoder(source), target
        for layer in self.cross:
            mixed = layer(x, states, states)[0]
            mixed += x
            x = mixed
        return x


class Decoder(nn.Module):
    """A cell and a head that take turns, as often as the data ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4, batch_first=True)
        self.cell, self.head, self.embed = nn.GRUCell(3, 4), nn.Linear(4, 5), nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder(x)[1][0]
        token = torch.zeros(len(x), dtype=torch.long)
        outputs = []
        for _ in range(x.shape[1]):
            state = self.cell(self.embed(token), state)
            outputs.append(self.head(state))
            token = outputs[-1].argmax(-1)
        return torch.stack(outputs, 1)


class Hidden(nn.Module):
    """Its layers hand something on beside their outputs."""

    class Part(nn.Module):
        def __init__(self, notes: list[Tensor]) -> None:
            super().__init__()
            self.linear, self.notes = nn.Linear(4, 4), notes

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x)
            self.notes.append(out)
            return out

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Tensor] = []
        self.layers = nn.ModuleList(Hidden.Part(self.notes) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        del self.notes[:]
        for layer in self.layers:
            x = layer(torch.tanh(x) + sum(self.notes))
        return x


def networks() -> Iterator[tuple[str, nn.Module, list[Any]]]:
    torch.manual_seed(0)
    ids = [torch.randint(0, 11, (2, n)) for n in (5, 7, 5)]
    images = [torch.randn(6, 2, 6, 6) for _ in range(2)]
    pairs = [((torch.randn(2, 5, 4), torch.randn(2, n, 4)), None) for n in (3, 4)]
    sounds = [torch.randn(2, n, 3) for n in (3, 2)]
    yield "chain", Chain(), ids
    yield "tied", Tied(), ids
    yield "unet", UNet(), images
    yield "coded", Coded(), pairs
    yield "decoder", Decoder(), sounds
    yield "hidden", Hidden(), [torch.randn(3, 4) for _ in range(2)]
