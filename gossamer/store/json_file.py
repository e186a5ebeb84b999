"""One JSON document, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.store.atomic import write_atomically

__all__ = ["finite", "write_json"]


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write a document; nowhere if ``path`` is None. NaN and infinity become null."""
    if path is not None:
        text = json.dumps(finite(document), indent=1, ensure_ascii=False) + "\n"
        # Halves of surrogate pairs, as in names of files that are no UTF-8, are \uXXXX escapes, as JSON writes them.
        write_atomically(path, [text.encode("utf-8", "backslashreplace")])


def finite(value: Any, digits: int | None = None) -> Any:
    """A document without NaN and infinity, which JSON does not have: they become None.

    Args:
        value: numbers, strings, None, and mappings, lists and tuples of them.
        digits: significant ones of floats; None: all.

    Example:
        >>> finite({"a": (float("nan"), 2 / 3)}, digits=3)
        {'a': [None, 0.667]}
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {k: finite(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v, digits) for v in value]
    return value
