"""Vector quantization that spends bits where they lower the error most: codes of runs of weights under one price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.vectors import VectorCodebook
from gossamer.errors import PlanError
from gossamer.methods.base import (
    DENSE,
    Ask,
    Entry,
    Evidence,
    Rule,
    Shared,
    Site,
    Summary,
)
from gossamer.methods.quantize.groups import ScaleType, check_scale_dtype
from gossamer.methods.quantize.rate_codes import Codes, Placed, Vectors, grown, settled, spaced, thinned
from gossamer.methods.quantize.rate_levels import code_lengths
from gossamer.methods.quantize.rate_search import Weighed, search
from gossamer.methods.quantize.rate_size import coded_bytes
from gossamer.methods.quantize.rate_sweep import Inputs
from gossamer.methods.quantize.rate_target import Priced, curve_of
from gossamer.methods.vector_means import cluster

__all__ = ["VectorRateDistortion"]

_SAMPLE = 1 << 16  # weights that codes are found with
_SCALAR = 1 << 13  # of these, for the step of the grid that codes start from
_PER_CODE = 8  # vectors of the sample that a code of k-means stands for, at least
_LLOYD = 8
_PATH = (64.0, 16.0, 4.0)  # prices on the way, as fractions
_ROUNDS = 12
_LAST = 4  # with all vectors
_NUMBER, _FREQUENCY = 8.0, 5.0  # bits that a number of a code takes in the file, and its frequency, about
# Bits by which a number that is fitted to a sample looks too good: D / n of error, and λ is 2 · ln 2 · D / n.
_FITTED = 0.72
VECTORS = Skeleton(VectorCodebook, (("table", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class VectorRateDistortion(Priced):
    """Runs of ``dim`` weights become codes that minimise error + λ · bits: entropy-constrained vector quantization.

    bits = −log2 of the share that a code has among all of its tensor, which is what the file's static coder takes, and
    of each code its place in the table. Error and λ are those of `RateDistortion`, so sizes can be compared. Several
    weights under one symbol can take less than a bit each, fill space better than a grid (0.17 dB at best with 2
    weights, 0.37 with 4, 1.53 with very many), and follow what neighbours have in common. At most 256 codes: 2 weights
    can have 4 bits each, 4 weights 2, so it is for few bits. Which of ``dim`` is best is decided per tensor by the sum
    on a sample, 1 included, where runs do not pay for their table.

    Codes start (a) from the vectors that the best uniform grid makes, most frequent first, so that the sum is not above
    that of scalars, and (b) from k-means, with λ rising, so that it is not above that of k-means. Choice, means and
    counts in turn follow; codes that nothing takes, or that save less than they cost, go; vectors that are far from all
    get codes of their own. The better of both is kept.

    Args:
        rate: λ, lost share of a tensor's energy per bit, above 0; or
        target: size of the file, as in `RateDistortion`.
        dim: weights per run, along a row, or several to choose from; those that do not divide the columns are left out.
        entries: codes at most, 2 to 256.
        inputs: what errors are measured by: "equal", or with data "sq" (squares of inputs).
        weighted: "output" or, with data and targets, "loss", as in `RateDistortion`.
        scale_dtype: of the table at rest.

    Cost: some 10⁹ multiplications per tensor on a sample, then 6 · weights · codes; with a target that up to six times.

    Exact: every choice is the best for the codes as stored at the bits counted last; codes are a local optimum.

    Example:
        >>> VectorRateDistortion(target="16x").dim
        (1, 2, 4)

    Source: Chou, Lookabaugh, Gray 1989, IEEE Trans. ASSP 37(1), section III; gains by dimension: Lookabaugh and Gray
    1989, IEEE Trans. Information Theory 35(5).
    """

    dim: int | tuple[int, ...] = (1, 2, 4)
    entries: int = 256
    inputs: Literal["equal", "sq"] = "equal"
    weighted: Literal["output", "loss"] = "output"
    scale_dtype: ScaleType = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("inputs", ("equal", "sq")), ("weighted", ("output", "loss"))):
            if getattr(self, name) not in known:
                found = f"found {getattr(self, name)!r}, expected one of {known}"
                raise PlanError(f"VectorRateDistortion: {name}: {found}")
        dims: tuple[object, ...] = self.dim if isinstance(self.dim, tuple) else (self.dim,)
        if not dims or not all(isinstance(d, int) and 1 <= d <= 64 for d in dims):
            raise PlanError(f"VectorRateDistortion: dim: found {self.dim!r}, expected 1 to 64, or several of these")
        if not 2 <= self.entries <= 256:
            raise PlanError(f"VectorRateDistortion: entries: found {self.entries}, expected 2 to 256")
        check_scale_dtype(self, self.scale_dtype)

    @property
    def needs(self) -> frozenset[str]:
        """What the errors are measured by."""
        of_inputs = frozenset({"sq"} if self.inputs == "sq" else ())
        return of_inputs | (frozenset({"grad_sq"}) if self.weighted == "loss" else frozenset())

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become a codebook of vectors."""
        return (Rule(DENSE, lambda _: VECTORS),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Runs with pruned or quantized weights in them would be dense again: use RateDistortion on those"

    def refuses(self, site: Site) -> str:
        """Vectors, and columns that no length of runs divides."""
        if len(site.shape) < 2 or not prod(site.shape):
            return f"found shape {site.shape}, expected a matrix"
        if not self._dims(site.shape):
            columns = prod(site.shape[1:])
            divisors = [d for d in range(1, min(columns, 64) + 1) if columns % d == 0]
            return f"found {columns} columns, expected a multiple of dim {self.dim} (dim may be {divisors})"
        return ""

    def _dims(self, shape: tuple[int, ...]) -> list[int]:
        dims = (self.dim,) if isinstance(self.dim, int) else self.dim
        return sorted({d for d in dims if prod(shape[1:]) % d == 0})

    def blank(self, site: Site, weight: Encoding) -> Encoding:
        """Codes that are all the same take no bytes."""
        del weight
        dim = self._dims(site.shape)[-1]
        index = torch.zeros(site.shape[0], prod(site.shape[1:]) // dim, dtype=torch.uint8)
        return VectorCodebook(index, Dense(torch.zeros(1, 1, dim, dtype=self._dtype)), site.shape[1:])

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """First bytes at several prices as a grid has them; then as coded at the price that is asked for."""
        if ask is not None:
            return {"bytes": coded_bytes(self._encoded(site, weight, ask.state, evidence)[0])}
        values, each = self._seen(site, weight, evidence)
        rest = coded_bytes(self.blank(site, weight))
        return curve_of(Weighed.alone(values, each), rest, grouped=False)

    # -- one tensor --------------------------------------------------------------------------------------------------

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Quantize at the plan's price."""
        del shared
        made, differ = self._encoded(site, weight, entry, evidence)
        if differ and made.entries() == 1:
            raise PlanError(
                f"VectorRateDistortion: {site.key}: found a price of {entry['rate']:.3g} per bit, where all its runs "
                f"are one code, expected a lower rate, a larger target, or skip={site.spec.name!r}"
            )
        return made

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.scale_dtype)
        return found

    def _seen(self, site: Site, weight: Encoding, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Values, float64 [n], and what their errors cost, float64 [1] or [n]."""
        values = weight.to_dense().detach().double().reshape(-1)
        by_loss = self.weighted == "loss"
        where = f"VectorRateDistortion: {site.key}"
        costs = Inputs.of(where, site, evidence, self.inputs, 0.0, by_loss=by_loss)
        return values, costs.weights(weight, None, values)

    def _encoded(self, site: Site, weight: Encoding, entry: Entry, evidence: Evidence) -> tuple[VectorCodebook, bool]:
        """The encoding at a price of bits, with codes as for another if the entry has one; whether runs differ."""
        rate = float(entry["rate"])
        values, each = self._seen(site, weight, evidence)
        dims = self._dims(site.shape)
        start, dim = self._found(site.key, values, each, dims, float(entry.get("steps", rate)))
        vectors, table = runs(values, each, dim), place_bits(dim)
        found = grown(vectors, settled(vectors, start, rate, table, _LAST), rate, table, self.entries)
        large = float(found.codes.points.abs().max())
        if large > torch.finfo(self._dtype).max:
            said = f"found a weight of {large:.3g}, which {self.scale_dtype} cannot hold"
            raise PlanError(f"VectorRateDistortion: {site.key}: {said}, expected scale_dtype float32 or bfloat16")
        points, index = spaced(vectors, found, rate, self._dtype)
        symbols = index.to(torch.uint8).view(site.shape[0], -1)
        made = VectorCodebook(symbols, Dense(points[None].contiguous()), site.shape[1:])
        return made, not bool((vectors.values == vectors.values[0]).all())

    def _found(self, key: str, values: Tensor, each: Tensor, dims: Sequence[int], rate: float) -> tuple[Codes, int]:
        """The codes with the least sum on a sample, and the weights of each."""
        run = lcm(*dims)
        rows = torch.linspace(0, len(values) // run - 1, min(len(values) // run, _SAMPLE // run), dtype=torch.float64)
        picked = (rows.long()[:, None] * run + torch.arange(run)).reshape(-1)
        share = len(picked) / len(values)
        values, each = values[picked], each if each.numel() == 1 else each[picked]
        best: tuple[Placed, int] | None = None
        for dim in dims:
            table = share * place_bits(dim) + (1 - share) * _FITTED * dim
            found = codebook(values, each, dim, rate, table, self.entries, key_of(dim, key))
            if best is None or found.total < best[0].total:
                best = found, dim
        assert best is not None
        return best[0].codes, best[1]


def place_bits(dim: int) -> float:
    """What a code of so many numbers takes beside its symbols, about."""
    return dim * _NUMBER + _FREQUENCY


def runs(values: Tensor, each: Tensor, dim: int) -> Vectors:
    """Values [n] and their costs [1] or [n] as runs of so many."""
    return Vectors(values.view(-1, dim), each.view(1, 1) if each.numel() == 1 else each.view(-1, dim))


def codebook(values: Tensor, each: Tensor, dim: int, rate: float, table: float, entries: int, key: int) -> Placed:
    """The better of what follows from the best grid's vectors and from k-means.

    Args:
        values: float64 [n], n a multiple of dim.
        each: what an error of one costs, float64 [1] or [n].
        dim: weights of a code.
        rate: λ.
        table: bits that a code takes for itself.
        entries: codes at most.
        key: of the random numbers.
    """
    vectors = runs(values, each, dim)
    starts = [_of_grid(values, each, dim, rate, entries)]
    if dim > 1:  # on a line the grid is as good a start
        starts.append(_of_means(vectors, rate, entries, key))
    found = [thinned(vectors, settled(vectors, s, rate, table, _ROUNDS), rate, table) for s in starts]
    return min(found, key=lambda f: f.total)


def _of_grid(values: Tensor, each: Tensor, dim: int, rate: float, entries: int) -> Codes:
    """The most frequent runs of the levels that the best grid has."""
    weighed = Weighed.alone(values, each)
    chosen = search(weighed, rate, rate, grouped=False, most=_SCALAR)
    scaled, cost, scale = weighed.scaled(chosen.step, chosen.power)
    levels = chosen.levels
    made = (levels.points[levels.place(scaled, rate / cost)] * scale).view(-1, dim)
    points, counts = torch.unique(made, dim=0, return_counts=True)
    most = counts.argsort(descending=True, stable=True)[:entries]
    return Codes(points[most], code_lengths(counts[most]))


def _of_means(vectors: Vectors, rate: float, entries: int, key: int) -> Codes:
    """k-means, then codes for a price that rises to λ."""
    k = max(1, min(entries, len(vectors.values) // _PER_CODE))
    points, index = cluster(vectors.values.numpy(), k, _LLOYD, key)
    counts = torch.bincount(torch.from_numpy(index), minlength=len(points))
    codes = Codes(torch.from_numpy(points)[counts > 0], code_lengths(counts[counts > 0]))
    for part in _PATH:
        codes = settled(vectors, codes, rate / part, 0.0, _LAST).codes
    return codes
