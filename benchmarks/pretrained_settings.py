"""Recipes of `benchmarks.pretrained`: per network the plain baseline, the methods of the field, and the best here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import gossamer as gs
from gossamer.drive.recipe import Recipe
from gossamer.methods.base import Method

__all__ = ["SETTINGS", "Setting", "quick_settings"]

_BLOCKS = ("layers.*",)  # of a language model: embedding and output layer stay as they are
_SPEECH = ("encoder.layers.*", "decoder.layers.*")
_HALF = "50% unstructured"
_RANKS = "-20% of linear weights"
_WINDOWS = 64


@dataclass(frozen=True)
class Setting:
    """One way to compress one network.

    Args:
        network: of `PRETRAINED`.
        method: how the field calls it; "best" is ours.
        setting: bits, groups or sparsity.
        recipe: how.
        samples: of calibration, or of healing too where the recipe trains; 0: the weights suffice.
    """

    network: str
    method: str
    setting: str
    recipe: Recipe
    samples: int = 0

    @property
    def key(self) -> str:
        """Name of the kept row."""
        return "-".join((self.network, self.method, self.setting)).replace(" ", "_").replace("%", "pct")

    @property
    def stamp(self) -> str:
        """Of everything that the row depends on beside code: a kept row outlives changes of other settings."""
        return hashlib.sha256(repr((self.recipe, self.samples)).encode()).hexdigest()[:8]


def _plain(*methods: Method) -> Recipe:
    return methods


def _blocks(*methods: Method) -> Recipe:
    """Block by block, each fed what the compressed ones before it put out."""
    return (gs.BlockByBlock(methods=methods),)


def _gptq(bits: int, group: Any = 128, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> gs.quantize.GPTQ:
    return gs.quantize.GPTQ(bits=bits, group=group, scale_dtype="float16", only=only, skip=skip)


def _rtn(
    bits: int, group: Any = 128, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> gs.quantize.RoundToNearest:
    return gs.quantize.RoundToNearest(
        bits=bits, group=group, symmetric=False, scale_dtype="float16", only=only, skip=skip
    )


_BEST_HALF = _blocks(
    gs.prune.SparseGPT(sparsity=0.5, scope="global", weighted="loss", only=_BLOCKS), gs.prune.Reconstruct(only=_BLOCKS)
)
"""Sparsities by one threshold over all layers on what each weight costs the loss; survivors by least squares."""


_ROTATED = tuple(
    setting
    for bits in (4, 3)
    for setting in (
        Setting("smollm2-rotated", "rtn", f"{bits}-bit g128", _plain(_rtn(bits, only=_BLOCKS))),
        Setting("smollm2-rotated", "gptq", f"{bits}-bit g128", _blocks(_gptq(bits, only=_BLOCKS)), _WINDOWS),
    )
)
_SPARSE = (
    Setting("smollm2", "magnitude", _HALF, _plain(gs.prune.Magnitude(sparsity=0.5, only=_BLOCKS))),
    Setting("smollm2", "wanda", _HALF, _blocks(gs.prune.Wanda(sparsity=0.5, only=_BLOCKS)), _WINDOWS),
    Setting("smollm2", "sparsegpt", _HALF, _blocks(gs.prune.SparseGPT(sparsity=0.5, only=_BLOCKS)), _WINDOWS),
    Setting("smollm2", "best", _HALF, _BEST_HALF, _WINDOWS),
)
_EIGHTY = tuple(  # rank · (out + in) = 0.8 · out · in
    gs.factorize.SVD(rank=rank, only=tuple(f"layers.*.{name}.weight" for name in names))
    for rank, names in (
        (230, ("attention.query", "attention.output")),
        (115, ("attention.key", "attention.value")),
        (335, ("mlp.gate", "mlp.up", "mlp.down")),
    )
)
_LOW_RANK = (
    Setting("smollm2", "svd", _RANKS, _plain(*_EIGHTY)),
    Setting(
        "smollm2",
        "whitened-svd",
        _RANKS,
        _plain(gs.factorize.WhitenedSVD(density=0.8, scope="uniform", identity=False, only=_BLOCKS)),
        _WINDOWS,
    ),
    Setting(
        "smollm2",
        "best",
        _RANKS,
        _plain(gs.factorize.WhitenedSVD(density=0.8, outputs="fisher", only=_BLOCKS)),
        _WINDOWS,
    ),
)
_LAYERS = {f"encoder.layer.{i}": f"encoder.layer.{i}" for i in range(6)}
_TAUGHT = gs.Tune(
    epochs=1,
    lr=5e-4,
    clip=1.0,
    warmup=0.05,
    hidden=_LAYERS,
    skip="embeddings.word_embeddings.*",
    precision="bfloat16",
    distil=1.0,
    taught_by="outputs",
)
_MINILM_HEALED = (
    # What this takes away gives the first gradients to rank by.
    gs.prune.Magnitude(sparsity=0.2, only="encoder.*.weight", skip="*LayerNorm*"),
    gs.Gradual(
        methods=(gs.prune.Taylor(sparsity=0.8, form="fisher", scope="global", only="encoder.*"),),
        tune=replace(_TAUGHT, products="live"),
        updates=20,
        ramp=0.4,
    ),
    gs.quantize.NormalFloat(bits=4, group=64, only="embeddings.*.weight", skip="*LayerNorm*"),
    gs.quantize.RoundToNearest(bits=8, group="channel", only="encoder.*.weight", skip="*LayerNorm*"),
)
"""Towards the dense embeddings of mails and every layer's outputs, without labels; which layers lose most is one
threshold's decision. Every passage is seen
once, so that the loss in training is one on unseen text."""

_MINILM_SHRUNK = (
    gs.shrink.Blocks(sparsity=1 / 3),
    gs.shrink.Channels(sparsity=0.5, score="reconstruction"),  # no labels, so no gradients
    _TAUGHT,
    gs.quantize.NormalFloat(bits=4, group=64, only="embeddings.*.weight", skip="*LayerNorm*"),
    gs.quantize.RoundToNearest(bits=8, group="channel", only="encoder.*.weight", skip="*LayerNorm*"),
)
"""A dense network of fewer layers and neurons, taught as the sparse one is."""

_G2P_HEALED = (
    gs.shrink.NarrowEmbedding(),  # 29 letters and 74 phonemes, 256 columns each
    gs.QuantizationAware(
        methods=(
            gs.quantize.LearnedStep(bits=4, scale_dtype="float16", only="*.weight_hh_l0"),
            gs.quantize.LearnedStep(bits=5, scale_dtype="float16", only=("*.weight_ih_l0", "fc.weight")),
        ),
        tune=gs.Tune(epochs=1, lr=5e-4, clip=1.0),
    ),
    gs.quantize.RoundToNearest(
        bits=8, group="tensor", symmetric=False, only=("*.bias", "*.bias_ih_l0", "*.bias_hh_l0")
    ),
)
"""On words that no metric sees. Tables of letters and phonemes lose more per bit than what multiplies the state."""

_HEALED = (  # all samples heal; MiniLM's targets are what its dense network says meanwhile
    Setting(
        "minilm",
        "best",
        "layers 80% sparse, 8-bit, embeddings 4-bit, healed on 10400 passages",
        _MINILM_HEALED,
        10_400,
    ),
    Setting(
        "minilm",
        "shrink",
        "2 of 6 attentions and half of the neurons gone, 8-bit, embeddings 4-bit, distilled on 10400 passages",
        _MINILM_SHRUNK,
        10_400,
    ),
    Setting("g2p", "best", "narrow embeddings, 4-bit, tables 5-bit, healed on 102400 words", _G2P_HEALED, 102_400),
)
_OTHERS = (
    # channels that are nearly dead have scales below float16's smallest
    Setting("lite0", "rtn", "4-bit channel", _plain(replace(_rtn(4, "channel"), scale_dtype="float32"))),
    Setting("lite0", "gptq", "4-bit channel", _blocks(replace(_gptq(4, "channel"), scale_dtype="float32")), 128),
    Setting("whisper", "rtn", "4-bit g64", _plain(_rtn(4, 64, only=_SPEECH))),
    Setting("whisper", "gptq", "4-bit g64", _blocks(_gptq(4, 64, only=_SPEECH)), 32),
    Setting(
        "whisper",
        "sparsegpt + gptq",
        "50% unstructured, 4-bit g64",
        _blocks(gs.prune.SparseGPT(sparsity=0.5, only=_SPEECH), _gptq(4, 64, only=_SPEECH)),
        32,
    ),
    Setting("minilm", "rtn", "4-bit g64", _plain(_rtn(4, 64))),
    Setting("minilm", "gptq", "4-bit g64", _blocks(_gptq(4, 64)), 128),
    Setting("g2p", "rtn", "4-bit channel", _plain(_rtn(4, "channel"))),
    Setting("g2p", "gptq", "4-bit channel", _blocks(_gptq(4, "channel")), 512),
    Setting("silero", "rtn", "4-bit channel", _plain(_rtn(4, "channel"))),
    Setting("silero", "gptq", "4-bit channel", _blocks(_gptq(4, "channel")), 64),
)

_PRACTICE = (  # whole files, embeddings too: for whoever wants to see no difference, or hardly one
    *(
        Setting(network, "rtn", "8-bit channel, everything", _plain(replace(_rtn(8, "channel"), scale_dtype="float32")))
        for network in ("lite0", "whisper", "minilm", "g2p", "silero", "smollm2")
    ),
    Setting(
        "smollm2",
        "gptq",
        "4-bit g128, embeddings 4-bit g64",
        (gs.quantize.NormalFloat(bits=4, group=64, only="embedding*"), *_blocks(_gptq(4, only=_BLOCKS))),
        _WINDOWS,
    ),
)

SETTINGS: tuple[Setting, ...] = (*_ROTATED, *_SPARSE, *_LOW_RANK, *_OTHERS, *_HEALED, *_PRACTICE)
"""What matters most first."""


def quick_settings() -> tuple[Setting, ...]:
    """The small networks, which take seconds."""
    return tuple(s for s in SETTINGS if s.network in ("g2p", "silero"))
