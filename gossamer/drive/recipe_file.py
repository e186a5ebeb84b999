"""Recipes as YAML, one to one with Python: `- share.KMeans: {bits: 4}` is `gs.share.KMeans(bits=4)`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from gossamer.drive.adversarial import Adversarial
from gossamer.drive.gradual import Gradual
from gossamer.drive.norms import ReestimateNorms
from gossamer.drive.quantization_aware import QuantizationAware
from gossamer.drive.recipe import Recipe
from gossamer.drive.relative_entropy import RelativeEntropy
from gossamer.drive.sequential import BlockByBlock
from gossamer.drive.tune import Tune
from gossamer.errors import GossamerError, PlanError
from gossamer.methods.base import is_derived
from gossamer.methods.code import Delta
from gossamer.methods.factorize import CP, SVD, LowRankPlusSparse, Monarch, TensorTrain, Tucker2, WhitenedSVD
from gossamer.methods.prune import (
    SNIP,
    Block,
    Columns,
    GraSP,
    HardThreshold,
    KernelPattern,
    LatencyTable,
    Magnitude,
    Movement,
    NofM,
    OptimalBrain,
    PerTensor,
    Random,
    Reconstruct,
    Rows,
    Sensitivity,
    SparseGPT,
    SynFlow,
    Taylor,
    Unstructured,
    Wanda,
    WoodFisher,
)
from gossamer.methods.quantize import (
    AWQ,
    GPTQ,
    HQQ,
    Cast,
    FoldBatchNorm,
    LearnedRate,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    RateDistortion,
    Rotate,
    RoundToNearest,
    SmoothQuant,
    Ternary,
    VectorRateDistortion,
)
from gossamer.methods.share import Denil, Hashing, KMeans, ProductQuantization, Tie, Translation
from gossamer.methods.shrink import Blocks, Channels, Heads, NarrowEmbedding

__all__ = ["ENTRIES", "dump_recipe", "load_recipe", "parse_recipe"]

# Everything a recipe file may name. Closed: a file cannot make anything else.
ENTRIES: Mapping[str, type[Any]] = types.MappingProxyType(
    {
        "prune.Magnitude": Magnitude,
        "prune.Random": Random,
        "prune.Taylor": Taylor,
        "prune.Movement": Movement,
        "prune.SNIP": SNIP,
        "prune.GraSP": GraSP,
        "prune.SynFlow": SynFlow,
        "prune.HardThreshold": HardThreshold,
        "prune.Wanda": Wanda,
        "prune.SparseGPT": SparseGPT,
        "prune.OptimalBrain": OptimalBrain,
        "prune.Reconstruct": Reconstruct,
        "prune.WoodFisher": WoodFisher,
        "prune.Unstructured": Unstructured,
        "prune.Rows": Rows,
        "prune.Columns": Columns,
        "prune.Block": Block,
        "prune.NofM": NofM,
        "code.Delta": Delta,
        "prune.KernelPattern": KernelPattern,
        "prune.Sensitivity": Sensitivity,
        "prune.PerTensor": PerTensor,
        "prune.LatencyTable": LatencyTable,
        "share.KMeans": KMeans,
        "share.ProductQuantization": ProductQuantization,
        "share.Hashing": Hashing,
        "share.Tie": Tie,
        "share.Denil": Denil,
        "share.Translation": Translation,
        "quantize.RoundToNearest": RoundToNearest,
        "quantize.GPTQ": GPTQ,
        "quantize.AWQ": AWQ,
        "quantize.SmoothQuant": SmoothQuant,
        "quantize.HQQ": HQQ,
        "quantize.Rotate": Rotate,
        "quantize.Ternary": Ternary,
        "quantize.PowerOfTwo": PowerOfTwo,
        "quantize.NormalFloat": NormalFloat,
        "quantize.LearnedStep": LearnedStep,
        "quantize.LearnedRate": LearnedRate,
        "quantize.MixedBits": MixedBits,
        "quantize.RateDistortion": RateDistortion,
        "quantize.VectorRateDistortion": VectorRateDistortion,
        "quantize.Cast": Cast,
        "quantize.FoldBatchNorm": FoldBatchNorm,
        "factorize.SVD": SVD,
        "factorize.WhitenedSVD": WhitenedSVD,
        "factorize.Tucker2": Tucker2,
        "factorize.CP": CP,
        "factorize.TensorTrain": TensorTrain,
        "factorize.Monarch": Monarch,
        "factorize.LowRankPlusSparse": LowRankPlusSparse,
        "shrink.Channels": Channels,
        "shrink.Heads": Heads,
        "shrink.Blocks": Blocks,
        "shrink.NarrowEmbedding": NarrowEmbedding,
        "Gradual": Gradual,
        "BlockByBlock": BlockByBlock,
        "ReestimateNorms": ReestimateNorms,
        "QuantizationAware": QuantizationAware,
        "RelativeEntropy": RelativeEntropy,
        "Tune": Tune,
        "Adversarial": Adversarial,
    }
)
_NAMES: Mapping[type[Any], str] = types.MappingProxyType({kind: name for name, kind in ENTRIES.items()})
_PARTS = (Unstructured, Rows, Columns, Block, NofM, KernelPattern, Sensitivity, PerTensor, LatencyTable, Adversarial)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        PlanError: no such file, not YAML, or an entry that is not understood; names file, entry, found and expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except OSError as error:
        raise PlanError(f"{path}: recipe cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: found no YAML: {' '.join(str(error).split())[:160]}") from error
    try:
        return parse_recipe(found)
    except GossamerError as error:
        raise PlanError(f"{path}: {error}") from error


def parse_recipe(found: object) -> Recipe:
    """Build a recipe from plain lists and dicts.

    Example:
        >>> parse_recipe([{"share.KMeans": {"bits": 4}}])[0].bits
        4
    """
    if isinstance(found, dict) and set(found) == {"recipe"}:
        found = found["recipe"]
    if not isinstance(found, list) or not found:
        raise PlanError(f"recipe: found {type(found).__name__}, expected a list of entries, at least one")
    recipe = [_build(entry, f"entry {i}") for i, entry in enumerate(found, 1)]
    for i, made in enumerate(recipe, 1):
        if isinstance(made, _PARTS):
            raise PlanError(f"entry {i}: found {type(made).__name__} on its own, expected a method, Gradual or Tune")
    return recipe


def _build(entry: object, where: str) -> Any:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not (isinstance(entry, dict) and len(entry) == 1):
        raise PlanError(f"{where}: found {str(entry)[:60]!r}, expected one name with its settings")
    name, settings = next(iter(entry.items()))
    kind = ENTRIES.get(str(name))
    if kind is None:
        raise PlanError(f"{where}: found {str(name)[:60]!r}, expected one of {', '.join(ENTRIES)}")
    settings = {} if settings is None else settings
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if not is_derived(f)]
    if not isinstance(settings, dict) or not set(settings) <= set(known):
        found = sorted(map(str, set(settings) - set(known))) if isinstance(settings, dict) else settings
        raise PlanError(f"{where} ({name}): found {found}, expected settings {known}")
    values = {k: _value(v, hints[k], f"{where} ({name}), {k}") for k, v in settings.items()}
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name in known
        and f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise PlanError(f"{where} ({name}): found no {missing[0]!r}, expected a value")
    try:
        return kind(**values)
    except GossamerError as error:
        raise PlanError(f"{where}: {error}") from error


def _value(found: object, hint: Any, where: str) -> Any:
    if hint is Tune:
        return _build({"Tune": found}, where)
    if isinstance(found, (str, dict)) and _named(found) and hint is not str:
        return _build(found, where)
    if isinstance(found, list):
        if any(_named(x) for x in found) or "Method" in str(hint):
            return tuple(_build(x, where) for x in found)
        found = _tuples(found)
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(found, strict=True)
    except ValidationError as error:
        wanted = str(hint).replace("typing.", "")
        raise PlanError(f"{where}: found {str(found)[:60]!r}, expected {wanted}") from error


def _tuples(found: object) -> object:
    return tuple(_tuples(member) for member in found) if isinstance(found, list) else found


def _named(found: object) -> bool:
    if isinstance(found, str):
        return found in ENTRIES
    return isinstance(found, dict) and len(found) == 1 and next(iter(found)) in ENTRIES


def dump_recipe(recipe: Recipe) -> str:
    """The YAML of a recipe; `load_recipe` gives the same recipe back.

    Example:
        >>> print(dump_recipe([KMeans(bits=4)]), end="")
        - share.KMeans:
            bits: 4
    """
    return yaml.safe_dump([_plain(entry) for entry in recipe], sort_keys=False)


def _plain(value: Any) -> Any:
    if type(value) in _NAMES:
        settings = {}
        for f in dataclasses.fields(value):
            mine = getattr(value, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if not is_derived(f) and mine != default:
                settings[f.name] = _settings(mine) if isinstance(mine, Tune) else _plain(mine)
        return {_NAMES[type(value)]: settings}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value


def _settings(tune: Tune) -> dict[str, Any]:
    plain: dict[str, Any] = next(iter(_plain(tune).values()))
    return plain
