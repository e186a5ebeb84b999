"""Quantization that spends bits where they lower the error most: one price of a bit decides levels, zeros and steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Pattern, computable
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Codebook, Dense, whole
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import (
    DENSE,
    MASKED,
    Ask,
    Entry,
    Evidence,
    Rule,
    Shared,
    Site,
    Summary,
    live_values,
)
from gossamer.methods.quantize.groups import (
    Group,
    Groups,
    ScaleType,
    blank_grid,
    check_scale_dtype,
    grouping_of,
    no_mask,
    stored_scale,
)
from gossamer.methods.quantize.rate_levels import Levels, cheapest, code_lengths, settled
from gossamer.methods.quantize.rate_search import LARGEST, Weighed, completed, search
from gossamer.methods.quantize.rate_size import coded_bytes
from gossamer.methods.quantize.rate_sweep import Inputs, swept
from gossamer.methods.quantize.rate_target import Priced, curve_of
from gossamer.methods.quantize.rtn import AFFINE

__all__ = ["RateDistortion"]

_SHORTEST_MANTISSA = 7  # bfloat16's
CODEBOOK = Skeleton(Codebook, (("table", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class RateDistortion(Priced):
    """w ≈ Δ · k, or one of a few centroids, that minimises error + λ · bits: entropy-constrained scalar quantization.

    bits = −log2 of the share that a symbol has among all of its tensor: what the file's static coder takes. The error
    is the share of a tensor's energy that is lost, Σ (w − ŵ)² / Σ w². With data it is that of the layer's outputs:
    tr(E·G·Eᵀ) / tr(W·G·Wᵀ), E = W − Ŵ and G = Σ x·xᵀ over the inputs, or the diagonal of G alone. Zero is a level like
    any other and the most frequent one, so the fewer bits there are, the more weights are zero. The step Δ is searched
    per tensor for every λ; choice and counts are repeated until neither changes the sum. With "gram" the columns still
    to come make up for the error of each one, as in `GPTQ`, if that lowers the sum.

    One λ holds for all tensors. With a target it is found such that the whole file, as coded, has that size: first from
    curves of each tensor (a sample at 21 prices), then by trying, at most six times.

    Args:
        rate: λ, lost share of a tensor's energy per bit, above 0; 10⁻⁹ to 10⁻⁵ for tensors of 10⁵ weights; or
        target: size of the file: "8x", of its tensors as they came, or bytes. Counts everything in it, also tensors
            that are not touched; round biases before, not after.
        values: "grid" (uniform, one step per group) or "centroids" (a codebook that starts from the grid; zero stays).
        group: of a grid: "tensor", "channel" (per output row), or weights per step along a row. Steps of a tensor are
            Δ · (root mean square of the group)^a with one Δ and a of 0, ½ or 1, then anew by least squares. Where
            errors cost more in some groups than in others, Δ · size^a · (mean cost)^(−b/2), b ½ or 1, is tried too.
        inputs: what errors are measured by: "equal", or with data "sq" (squares of inputs) or "gram".
        weighted: "output", as above, or, with data, "loss": errors are what they cost the loss to second order, summed
            over the batches: those of output i of a layer times Σ_t (dL/dy_ti)². That makes layers comparable, and
            λ is loss per bit. It needs targets and a backward pass per batch; batches should be small, since gradients
            are squared per batch.
        zeros: "level", or "mask": zeros leave the values and become a mask, which runs as a sparse weight.
        entries: centroids at most, 2 to 256.
        scale_dtype: of steps and centroids at rest.
        step_bits: bits of the mantissas of a grid's steps, if it has several, 0 to 7; None: all. Two leave steps within
            an eighth of what they should be, which costs next to nothing, since choices are made on the steps as
            stored; and it saves five bits per step in bfloat16. They are then not fitted by least squares.
        damp: of G, as in `GPTQ`.

    Cost: about 20 sorts of a tensor; with "gram" 4 · rows · n² multiplications; with a target that up to seven times.

    Exact: every choice is the best for its step and bits; steps and bits are a local optimum.

    Example:
        >>> RateDistortion(target="8x").values
        'grid'

    Source: Chou, Lookabaugh, Gray 1989, IEEE Trans. ASSP 37(1), section III (choices and lengths in turn); Sullivan
    1996, IEEE Trans. Information Theory 42(5) (uniform levels with wide zeros); errors made up for: Frantar et al.
    2022, GPTQ, arXiv 2210.17323. No trellis, no states: every symbol is chosen by itself.
    """

    values: Literal["grid", "centroids"] = "grid"
    group: Group = "tensor"
    inputs: Literal["equal", "sq", "gram"] = "equal"
    weighted: Literal["output", "loss"] = "output"
    zeros: Literal["level", "mask"] = "level"
    entries: int = 32
    scale_dtype: ScaleType = "float32"
    step_bits: int | None = None
    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("values", ("grid", "centroids")),
            ("inputs", ("equal", "sq", "gram")),
            ("weighted", ("output", "loss")),
            ("zeros", ("level", "mask")),
        ):
            if getattr(self, name) not in known:
                raise PlanError(f"RateDistortion: {name}: found {getattr(self, name)!r}, expected one of {known}")
        if not (self.group in ("tensor", "channel") or (isinstance(self.group, int) and self.group >= 1)):
            raise PlanError(f"RateDistortion: group: found {self.group!r}, expected 'tensor', 'channel' or a size ≥ 1")
        if self.values == "centroids" and self.group != "tensor":
            raise PlanError(f"RateDistortion: group: found {self.group!r} beside centroids, expected 'tensor'")
        if not 2 <= self.entries <= 256:
            raise PlanError(f"RateDistortion: entries: found {self.entries}, expected 2 to 256")
        if not 0 <= self.damp <= 1:
            raise PlanError(f"RateDistortion: damp: found {self.damp}, expected 0 to 1")
        check_scale_dtype(self, self.scale_dtype)
        if self.step_bits is not None and not 0 <= self.step_bits <= _SHORTEST_MANTISSA:
            raise PlanError(f"RateDistortion: step_bits: found {self.step_bits}, expected 0 to {_SHORTEST_MANTISSA}")

    @property
    def needs(self) -> frozenset[str]:
        """What the errors are measured by."""
        of_inputs = {"sq": frozenset({"sq"}), "gram": frozenset({"gram", "sq", "count"})}.get(self.inputs, frozenset())
        return of_inputs | (frozenset({"grad_sq"}) if self.weighted == "loss" else frozenset())

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become values, or a mask over values; masked ones keep their mask or get a smaller one."""
        made = AFFINE if self.values == "grid" else CODEBOOK
        free = Skeleton(Mask)

        def masked(where: Skeleton) -> Skeleton:
            return Skeleton(Masked, (("where", where), ("value", made)))

        if self.zeros == "mask":
            return Rule(DENSE, lambda _: masked(free)), Rule(MASKED, lambda _: masked(free))
        return Rule(DENSE, lambda _: made), Rule(MASKED, lambda s: masked(s.at("/where")))

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Values that are quantized or shared already cannot be quantized again"

    def refuses(self, site: Site) -> str:
        """Vectors, whose gradients are not gathered."""
        vector = self.weighted == "loss" and len(site.shape) < 2
        return "it is a vector, weighted='loss' wants weights of two dimensions or more" if vector else ""

    def blank(self, site: Site, weight: Encoding) -> Encoding:
        """Symbols that are all the same take no bytes."""
        sparse = self.zeros == "mask" or isinstance(weight, Masked)
        if self.values == "grid":
            return blank_grid(site, weight, self.group, self.scale_dtype, sparse=sparse)
        grouping = whole(site.shape)
        index = torch.zeros(0 if sparse else site.shape, dtype=torch.uint8)
        table = Dense(torch.zeros(1, 8, dtype=getattr(torch, self.scale_dtype)))
        value = Codebook(grouping.columns, grouping.size, index, table)
        return Masked(no_mask(site.shape), value) if sparse else value

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """First bytes at several prices by a sample; then as coded at the price that is asked for."""
        if ask is not None:
            made, _ = self._encoded(site, weight, ask.state, evidence)
            return {"bytes": coded_bytes(made)}
        positions, _ = live_values(weight)
        grouped = grouping_of(self.group, site.shape).count(prod(site.shape)) > 1
        rest = coded_bytes(self.blank(site, weight)) + (0 if positions is None else _pattern_bytes(weight))
        return curve_of(self._weighed(site, weight, evidence), rest, grouped=grouped)

    # -- one tensor --------------------------------------------------------------------------------------------------

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Quantize at the plan's price."""
        del shared
        made, live = self._encoded(site, weight, entry, evidence)
        if not live and bool(weight.to_dense().count_nonzero()):
            raise PlanError(
                f"RateDistortion: {site.key}: found a price of {entry['rate']:.3g} per bit, where all its weights are "
                f"zero, expected a lower rate, a larger target, or skip={site.spec.name!r}"
            )
        return made

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """New choices on the same levels, at the bits that the old ones had; with a rate, where inputs count alike."""
        if self.rate is None or self.inputs != "equal":
            return None
        positions, found = live_values(weight)
        values = found.double().reshape(-1)
        old = grid.value if isinstance(grid, Masked) else grid
        assert isinstance(old, (Affine, Codebook))
        scale = torch.ones(1, dtype=torch.float64)
        if isinstance(old, Affine):
            symbols, points = old.q, torch.arange(1 << old.bits, dtype=torch.float64) - old.zero_point
            spread = Groups.of(self.group, site.shape, positions).spread(computable(old.scale.to_dense().detach()))
            scale = spread.double()
        else:
            symbols, points = old.index, computable(old.table.to_dense().detach())[0].double()
        counts = torch.bincount(symbols.reshape(-1).int(), minlength=len(points))
        counts[points == 0] += len(values) - symbols.numel()  # those that a mask tells
        energy = float(values.square().sum()) or 1.0
        index = cheapest(values / scale, self.rate * energy / scale.square(), points, code_lengths(counts, 0.5))
        where, packed = self._placed(site, weight, index.to(torch.uint8), points[index] != 0)
        value = replace(old, q=packed) if isinstance(old, Affine) else replace(old, index=packed)
        return value if where is None else Masked(where, value)

    def _inputs(self, site: Site, evidence: Evidence) -> Inputs:
        by_loss = self.weighted == "loss"
        return Inputs.of(f"RateDistortion: {site.key}", site, evidence, self.inputs, self.damp, by_loss=by_loss)

    def _weighed(self, site: Site, weight: Encoding, evidence: Evidence) -> Weighed:
        """What an error of one in each live value costs, as a share of the energy."""
        positions, found = live_values(weight)
        values = found.double().reshape(-1)
        costs = self._inputs(site, evidence)
        return Weighed.of(
            values, costs.weights(weight, positions, values), Groups.of(self.group, site.shape, positions)
        )

    def _encoded(self, site: Site, weight: Encoding, entry: Entry, evidence: Evidence) -> tuple[Encoding, int]:
        """The encoding at a price of bits, with steps as for another if the entry has one; how many are not zero."""
        rate = float(entry["rate"])
        positions, found = live_values(weight)
        values = found.double().reshape(-1)
        groups = Groups.of(self.group, site.shape, positions)
        costs = self._inputs(site, evidence)
        weighed = Weighed.of(values, costs.weights(weight, positions, values), groups)
        free = self.entries if self.values == "centroids" else 0
        steps_for = float(entry.get("steps", rate))
        chosen = search(weighed, rate, steps_for, grouped=groups.count > 1, free=free)
        scaled, each, scale = weighed.scaled(chosen.step, chosen.power)
        levels, index = chosen.levels, torch.zeros(0, dtype=torch.int64)
        short = self.step_bits is not None and not free and scale.numel() > 1
        if short:
            reached = groups.spread(groups.largest(values.abs())) / LARGEST
            scale = _shortened(scale, reached, self.step_bits or 0)
            scaled, each = weighed.values / scale, weighed.weight * scale.square()
            levels = completed(levels, scaled)
        if len(values):
            levels, index, _ = settled(scaled, each, rate, levels, free=bool(free), most=4)
            levels, index = swept(costs, weight, rate, levels, index, scale)
        steps = levels.points[index]
        if free:
            return self._codebook(site, weight, levels, index, chosen.step)
        mean = weighed.weight * scale * steps
        own = groups.total((mean * values).double()) if len(values) else torch.zeros(groups.count).double()
        power = groups.total(mean * scale * steps) if len(values) else torch.zeros(groups.count).double()
        before = _per_group(groups, scale, chosen.step)
        better = torch.where(power > 0, before * own / power.clamp_min(1e-300), before)
        good = (better > before / 2) & (better < before * 2) & (not costs.gram_known and not short)
        stored = stored_scale(self, torch.where(good, better, before), self.scale_dtype, site.key)
        return self._affine(site, weight, steps.long(), stored)

    def _affine(self, site: Site, weight: Encoding, steps: Tensor, scale: Tensor) -> tuple[Encoding, int]:
        grouping = grouping_of(self.group, site.shape)
        reach = int(steps.abs().max()) if len(steps) else 0
        bits = max(2, reach.bit_length() + 1)
        middle = 1 << (bits - 1)
        q = (steps + middle).to(torch.uint8)
        live = int((steps != 0).sum())
        where, q = self._placed(site, weight, q, steps != 0)
        value = Affine(grouping.columns, grouping.size, q, Dense(scale), middle, bits)
        return (value if where is None else Masked(where, value)), live

    def _codebook(
        self, site: Site, weight: Encoding, levels: Levels, index: Tensor, unit: float
    ) -> tuple[Encoding, int]:
        grouping = whole(site.shape)
        table = (levels.points * unit).to(getattr(torch, self.scale_dtype))
        live = levels.points[index] != 0
        where, packed = self._placed(site, weight, index.to(torch.uint8), live)
        value = Codebook(grouping.columns, grouping.size, packed, Dense(table[None].contiguous()))
        return (value if where is None else Masked(where, value)), int(live.sum())

    def _placed(self, site: Site, weight: Encoding, symbols: Tensor, live: Tensor) -> tuple[Pattern | None, Tensor]:
        """The pattern, if there is one, and the symbols in their shape."""
        if self.zeros == "mask":
            mask = torch.zeros(prod(site.shape), dtype=torch.bool)
            if isinstance(weight, Masked):
                mask[weight.where.positions().long()] = live
            else:
                mask[:] = live
            return Mask.of(mask.view(site.shape)), symbols[live]
        if isinstance(weight, Masked):
            return weight.where, symbols
        return None, symbols.view(site.shape)


def _per_group(groups: Groups, scale: Tensor, step: float) -> Tensor:
    """The scale of each group, float64 [count]; of an empty one the step."""
    if scale.numel() == 1:
        return torch.full((groups.count,), float(scale), dtype=torch.float64)
    found = torch.full((groups.count,), step, dtype=torch.float64)
    found[groups.members()] = scale
    return found


def _shortened(scale: Tensor, least: Tensor, bits: int) -> Tensor:
    """To the nearest number that is large enough, with so many bits after the first one of its mantissa."""
    mantissa, exponent = torch.frexp(scale)
    nearest = torch.ldexp((mantissa * (2 << bits)).round() / (2 << bits), exponent)
    mantissa, exponent = torch.frexp(least)
    enough = torch.ldexp((mantissa * (2 << bits)).ceil() / (2 << bits), exponent)
    return torch.maximum(nearest, enough)


def _pattern_bytes(weight: Encoding) -> int:
    """Of a pattern that stays."""
    assert isinstance(weight, Masked)
    return coded_bytes(weight.where)
