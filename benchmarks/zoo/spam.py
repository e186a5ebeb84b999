"""SpamAssassin mails as tokens, and how well a linear probe on embeddings tells spam from ham."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import DataError

__all__ = ["LONGEST", "Mails", "Packed", "embed", "load_mails", "load_passages", "pieces", "probe_accuracy"]

LONGEST = 128
_PASSAGE = 450
"""Characters, of which 128 tokens hold a little more."""
_PASSAGES = 10
"""Of one mail at most."""


@dataclass(frozen=True)
class Mails:
    """Tokenised mails in a random order that is the same everywhere.

    Args:
        tokens: int32 [n, 2, 128], ids and mask (1 = a real token, all of them at the front).
        spam: bool [n].
    """

    tokens: Tensor
    spam: Tensor

    def __getitem__(self, part: slice) -> Mails:
        return Mails(self.tokens[part], self.spam[part])

    def __len__(self) -> int:
        return len(self.spam)


class Packed:
    """Batches (tokens, targets) in a new order every epoch, each cut to its longest mail.

    Args:
        tokens: int32 [n, 2, t].
        targets: float [n, ...].
        batch: mails per batch; what is left over of an epoch is left out.
        seed: for the orders.
    """

    def __init__(self, tokens: Tensor, targets: Tensor, batch: int, seed: int) -> None:
        self._tokens, self._targets, self._batch = tokens, targets, batch
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, len(self._tokens) // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._tokens), generator=self._generator)
        for i in range(len(self)):
            chosen = order[i * self._batch : (i + 1) * self._batch]
            yield _trimmed(self._tokens[chosen]), self._targets[chosen]


def load_mails(folder: Path, tokenizer: Path, kept: Path) -> Mails:
    """Read and tokenise all mails: subject and the first 1,500 characters of the body without tags.

    Args:
        folder: with one .txt per mail in folders, those of spam called spam-….
        tokenizer: tokenizer.json.
        kept: file to keep the tokens in; read instead when it is there.

    Raises:
        DataError: no mails.
    """
    if not kept.is_file():
        files = _files(folder)
        tokens = _padded([_passages(f)[0] for f in files], tokenizer)
        spam = torch.tensor(["spam" in f.parent.name for f in files])
        _keep({"tokens": tokens, "spam": spam}, kept)
    read = load_file(kept)
    return Mails(read["tokens"], read["spam"])


def load_passages(folder: Path, tokenizer: Path, kept: Path, begin: int) -> Tensor:
    """Further passages of mails, as much text again as an epoch has: each behind its mail's subject, in random order.

    Args:
        folder: as for `load_mails`.
        tokenizer: tokenizer.json.
        kept: file to keep the tokens in; read instead when it is there.
        begin: the first mail, in the order of `load_mails`, whose passages are meant.

    Returns:
        int32 [n, 2, 128], ids and mask.
    """
    if not kept.is_file():
        texts = [text for file in _files(folder)[begin:] for text in _passages(file)[1:]]
        random.Random(1).shuffle(texts)
        _keep({"tokens": _padded(texts, tokenizer)}, kept)
    return load_file(kept)["tokens"]


def pieces(tokens: Tensor, length: int, seed: int) -> Tensor:
    """Short stretches of texts, drawn at random, between the tokens that begin and end each text.

    Attention over short ones costs less, and a batch of as many tokens comes from more places.

    Args:
        tokens: int32 [n, 2, t], ids and mask.
        length: of the pieces, both tokens included; t / length of them come from each text.
        seed: of the draw.

    Returns:
        int32 [n · (t // length), 2, length].
    """
    generator, each = torch.Generator().manual_seed(seed), tokens.shape[2] // length
    made = torch.zeros(len(tokens), each, 2, length, dtype=tokens.dtype)
    for row, out in zip(tokens, made, strict=True):
        ids = row[0, : int(row[1].sum())]
        starts = torch.randint(max(1, len(ids) - length + 1), (each,), generator=generator).tolist()
        for piece, start in zip(out, starts, strict=True):
            found = torch.cat([ids[:1], ids[1:-1][start : start + length - 2], ids[-1:]])
            piece[0, : len(found)], piece[1, : len(found)] = found, 1
    return made.flatten(0, 1)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*/*.txt"))
    if not files:
        raise DataError(f"{folder}: found no mails, expected folders with .txt files")
    random.Random(0).shuffle(files)
    return files


def _keep(tensors: dict[str, Tensor], kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    save_file(tensors, part)
    part.replace(kept)


def _passages(path: Path) -> list[str]:
    """The beginning of a mail, and parts of what follows, each of more characters than 128 tokens mostly have."""
    head, _, body = path.read_text(encoding="utf-8", errors="ignore").partition("\n\n")
    subject = re.search(r"^Subject: (.*)$", head, re.MULTILINE)
    plain = re.sub(r"<[^>]+>|\s+", " ", body)
    last = min(len(plain) - 100, _PASSAGE * _PASSAGES)  # what is shorter than 100 characters says little
    parts = [plain[:1500], *(plain[i : i + 1000] for i in range(_PASSAGE, last, _PASSAGE))]
    return [f"{subject.group(1) if subject else ''} . {part}" for part in parts]


def _padded(texts: list[str], tokenizer: Path) -> Tensor:
    tokens = torch.zeros(len(texts), 2, LONGEST, dtype=torch.int32)
    for row, found in zip(tokens, _tokenised(texts, tokenizer), strict=True):
        row[0, : len(found)] = torch.tensor(found)
        row[1, : len(found)] = 1
    return tokens


def _tokenised(texts: list[str], tokenizer: Path) -> list[list[int]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError("MiniLM: found no package tokenizers, expected pip install 'gossamer[bench]'") from error
    made = Tokenizer.from_file(str(tokenizer))
    made.enable_truncation(LONGEST)
    made.no_padding()
    return [encoded.ids for encoded in made.encode_batch(texts)]


def _trimmed(tokens: Tensor) -> Tensor:
    return tokens[:, :, : int(tokens[:, 1].sum(1).max())]


def embed(model: nn.Module, tokens: Tensor, batch: int = 64) -> Tensor:
    """Embeddings [n, width] of tokens [n, 2, t]; mails of like length run together, which spares padding."""
    order = tokens[:, 1].sum(1).argsort(stable=True)
    with torch.inference_mode():
        parts = [model(_trimmed(tokens[order[i : i + batch]])) for i in range(0, len(order), batch)]
    found = torch.cat(parts)
    # not a tensor of inference mode, so that it can be trained on
    return torch.from_numpy(found[order.argsort()].numpy().astype(np.float32, copy=True))


def probe_accuracy(model: nn.Module, train: Mails, test: Mails) -> float:
    """Fit a logistic regression on the embeddings of some mails, and count its right answers on others.

    The loss is the mean binary cross-entropy of w · 8e + b plus 10⁻³ ‖w‖².

    Args:
        model: tokens [n, 2, t] → embeddings of length one.
        train: mails to fit on.
        test: mails to count on.

    Returns:
        Share of right answers.
    """
    fit, check = (F.pad(8 * embed(model, part.tokens), (0, 1), value=1.0) for part in (train, test))
    weights = torch.zeros(fit.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    targets = train.spam.float()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(fit @ weights, targets) + 1e-3 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float(((check @ weights > 0) == test.spam).float().mean())
