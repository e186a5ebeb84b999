"""What the examples that changed look like: images with their saliency, or words in their context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.report.exemplars import key_of
from gossamer.report.learned import Names, class_name
from gossamer.report.png import data_uri, grey_png, png, tinted_png

__all__ = ["image_sights", "word_sights"]

_SIDE = 64
_INK = (196, 90, 20)
_BEFORE, _AFTER = 14, 4


def image_sights(
    rows: Sequence[Mapping[str, Any]], pixels: Tensor, dense: Tensor | None, compressed: Tensor | None
) -> dict[str, Any]:
    """Pictures of rows.

    Args:
        rows: of `gossamer.measure.changed`.
        pixels: [n, channels, height, width] from 0 to 1, one per row.
        dense: input gradients of the dense network, of the same shape, or None.
        compressed: of the compressed one, or None.
    """
    found: dict[str, Any] = {}
    for i, row in enumerate(rows):
        seen = {"image": picture(pixels[i])}
        for name, saliency in (("dense", dense), ("compressed", compressed)):
            if saliency is not None:
                seen[name] = _traces(saliency[i])
        found[key_of(row)] = seen
    return found


def picture(pixels: Tensor) -> dict[str, Any]:
    """An image as a PNG of at most 64 pixels along a side: grey, in colour, or the mean of its channels.

    Args:
        pixels: [channels, height, width], 0 to 1.
    """
    small = _small(pixels)
    if small.shape[0] not in (1, 3):
        small = small.mean(0, keepdim=True)
    array = (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    content = png(np.ascontiguousarray(array)) if array.shape[2] == 3 else grey_png(array[:, :, 0])
    return {"height": array.shape[0], "width": array.shape[1], "uri": data_uri(content)}


def _traces(gradient: Tensor) -> dict[str, Any]:
    """How strongly each pixel sways the answer, the strongest in full ink."""
    strength = _small(gradient.abs().amax(0, keepdim=True))[0]
    top = float(torch.nan_to_num(strength).max())
    shares = (strength / top if top > 0 else strength).cpu().numpy()
    return {"height": shares.shape[0], "width": shares.shape[1], "uri": data_uri(tinted_png(shares, _INK))}


def _small(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    longest = max(height, width)
    if longest <= _SIDE:
        return pixels.detach().float()
    size = (max(1, height * _SIDE // longest), max(1, width * _SIDE // longest))
    return F.adaptive_avg_pool2d(pixels.detach().float(), size)


def word_sights(rows: Sequence[Mapping[str, Any]], inputs: Tensor, words: Names) -> dict[str, Any]:
    """Words before the one in question, that one, and some after it.

    Args:
        rows: of `gossamer.measure.changed` with positions; the label at a position is the token after it.
        inputs: int64 [n, positions], token numbers.
        words: by number; numbers are shown where there are none.

    Example:
        >>> rows = [{"index": 0, "position": 1, "true": 2}]
        >>> word_sights(rows, torch.tensor([[0, 1, 2, 3]]), [" a", " b", " c", " d"])["0:1"]
        {'before': ' a b', 'word': ' c', 'after': ' d'}
    """
    found: dict[str, Any] = {}
    for row in rows:
        tokens = inputs[int(row["index"])].tolist()
        at = int(row["position"])
        before = tokens[max(0, at + 1 - _BEFORE) : at + 1]
        after = tokens[at + 2 : at + 2 + _AFTER]
        found[key_of(row)] = {
            "before": ("…" if at + 1 > _BEFORE else "") + _joined(before, words),
            "word": _word(int(row["true"]), words),
            "after": _joined(after, words),
        }
    return found


def _joined(tokens: Sequence[int], words: Names) -> str:
    return "".join(_word(token, words) for token in tokens)


def _word(token: int, words: Names) -> str:
    name = class_name(token, words)
    return f" {name}" if name == str(token) else name
