"""How English words are spoken: a GRU encoder-decoder from letters to phonemes, with CMUdict."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.filled import filled

__all__ = ["G2P", "Spelled", "edit_distance", "g2p", "load_g2p", "load_words", "phoneme_error", "spoken_loss"]

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
# The checkpoint's order: sorted, with one vowel that has no stress.
_SOUNDS = sorted([*_CONSONANTS.split(), "UW", *(vowel + stress for vowel in _VOWELS for stress in "012")])
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *_SOUNDS)
_PAD, _END, _BEGIN, _STOP = 0, 2, 2, 3  # end of a word's letters; begin and end of its phonemes
_LONGEST = 20
_IGNORED = -100


class G2P(nn.Module):
    """An encoder GRU reads the letters, its last state starts a decoder GRU that says the phonemes one by one.

    Args:
        width: of embeddings and states.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.enc_emb = nn.Embedding(len(LETTERS), width)
        self.enc = nn.GRU(width, width, batch_first=True)
        self.dec_emb = nn.Embedding(len(PHONEMES), width)
        self.dec = nn.GRU(width, width, batch_first=True)
        self.fc = nn.Linear(width, len(PHONEMES))

    def forward(self, spelled: Tensor) -> Tensor:
        """Scores of the phonemes.

        Args:
            spelled: int64 [n, t], letters with </s>, padded with 0: decoded greedily for 20 steps. Or int64
                [n, 2, t], letters and, from <s> on, the right phonemes so far, both padded: teacher-forced.

        Returns:
            [n, steps, phonemes].
        """
        if spelled.dim() == 3:
            said, _ = self.dec(self.dec_emb(spelled[:, 1]), self._encode(spelled[:, 0]))
            return self.fc(said)
        state = self._encode(spelled)
        last = torch.full((len(spelled), 1), _BEGIN)
        steps = []
        for _ in range(_LONGEST):
            said, state = self.dec(self.dec_emb(last), state)
            steps.append(self.fc(said))  # [n, 1, phonemes]
            last = steps[-1].argmax(-1)
        return torch.cat(steps, 1)

    def _encode(self, letters: Tensor) -> Tensor:
        states, _ = self.enc(self.enc_emb(letters))  # [n, t, width]
        ends = (letters != _PAD).sum(1) - 1
        return states[torch.arange(len(letters)), ends].unsqueeze(0)  # [1, n, width]


def g2p() -> nn.Module:
    """29 letters and 74 phonemes, width 256: 834,890 parameters."""
    return G2P()


def load_g2p(path: Path) -> nn.Module:
    """The network of the g2p_en package, in eval mode.

    Args:
        path: checkpoint20.npz.

    Raises:
        DataError: names or shapes differ.
    """
    model = g2p()
    with np.load(path, allow_pickle=False) as arrays:
        found = {_renamed(name): torch.from_numpy(arrays[name]) for name in arrays.files}
    return filled(model, found, path, "G2P")


def _renamed(name: str) -> str:
    """enc_w_ih → enc.weight_ih_l0, fc_b → fc.bias, enc_emb → enc_emb.weight."""
    part, _, rest = name.partition("_")
    if rest == "emb":
        return f"{name}.weight"
    kind, _, gates = rest.partition("_")
    full = {"w": "weight", "b": "bias"}[kind]
    return f"{part}.{full}_{gates}_l0" if gates else f"{part}.{full}"


def load_words(path: Path) -> dict[str, list[list[str]]]:
    """Every word of plain letters with its pronunciations.

    Args:
        path: cmudict.dict.
    """
    words: dict[str, list[list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = line.split("#")[0].split()
        if not entry:
            continue
        word = re.sub(r"\(\d\)$", "", entry[0])
        if re.fullmatch("[a-z]+", word):
            words.setdefault(word, []).append(entry[1:])
    return words


def shuffled(words: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """The words in the random order of which the first 2,000 are the test."""
    order = sorted(words)
    random.Random(0).shuffle(order)
    return order


def letters_of(words: Sequence[str]) -> Tensor:
    """Words as int64 [n, longest + 1], with </s> and padding."""
    spelled = torch.zeros(len(words), max(map(len, words)) + 1, dtype=torch.int64)
    for row, word in zip(spelled, words, strict=True):
        row[: len(word) + 1] = torch.tensor([*(LETTERS.index(c) for c in word), _END])
    return spelled


def edit_distance(one: Sequence[str], two: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions (Levenshtein)."""
    row = list(range(len(two) + 1))
    for i, x in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(two, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def phoneme_error(model: nn.Module, words: Sequence[str], spoken: Mapping[str, Sequence[Sequence[str]]]) -> float:
    """Edits to the nearest pronunciation, summed over the words, per phoneme of their first pronunciations."""
    with torch.inference_mode():
        best = model(letters_of(words)).argmax(-1).tolist()
    edits = 0
    for word, row in zip(words, best, strict=True):
        said = [PHONEMES[p] for p in (row[: row.index(_STOP)] if _STOP in row else row)]
        edits += min(edit_distance(said, right) for right in spoken[word])
    return edits / sum(len(spoken[word][0]) for word in words)


class Spelled:
    """Teacher-forced batches: int64 [n, 2, t] letters and phonemes from <s> on; int64 [n, t] phonemes with </s>.

    t is that of the longest word or pronunciation of a batch, its end included.

    Args:
        words: to learn.
        spoken: word → pronunciations, of which the first is learned.
        batch: words per batch; what is left over of an epoch is left out.
        seed: for the orders, new every epoch.
    """

    def __init__(
        self, words: Sequence[str], spoken: Mapping[str, Sequence[Sequence[str]]], batch: int, seed: int
    ) -> None:
        number = {phoneme: i for i, phoneme in enumerate(PHONEMES)}
        right = [[number[p] for p in spoken[word][0]] for word in words]
        longest = 1 + max(*map(len, words), *map(len, right))
        letters = letters_of(words)
        self._inputs = torch.zeros(len(words), 2, longest, dtype=torch.int64)
        self._inputs[:, 0, : letters.shape[1]] = letters
        self._targets = torch.full((len(words), longest), _IGNORED)
        for inputs, targets, said in zip(self._inputs, self._targets, right, strict=True):
            inputs[1, : len(said) + 1] = torch.tensor([_BEGIN, *said])
            targets[: len(said) + 1] = torch.tensor([*said, _STOP])
        self._batch = batch
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, len(self._inputs) // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._inputs), generator=self._generator)
        for i in range(len(self)):
            chosen = order[i * self._batch : (i + 1) * self._batch]
            inputs, targets = self._inputs[chosen], self._targets[chosen]
            longest = int((inputs != _PAD).any(0).any(0).sum())  # what is padding for all costs steps of both GRUs
            yield inputs[..., :longest].clone(), targets[:, :longest].clone()


def spoken_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the phonemes that are not padding; scores [n, t, phonemes], targets [n, t]."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
