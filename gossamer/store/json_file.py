"""One JSON document, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.store.atomic import write_atomically

__all__ = ["write_json"]


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write a document; nowhere if ``path`` is None. NaN and infinity become null."""
    if path is not None:
        text = json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"
        # Halves of surrogate pairs, as in names of files that are no UTF-8, are \uXXXX escapes, as JSON writes them.
        write_atomically(path, [text.encode("utf-8", "backslashreplace")])


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
