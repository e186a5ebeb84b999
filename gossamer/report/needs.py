"""What only the report needs, with one clear line where it is missing."""

from __future__ import annotations

from gossamer.errors import DataError

try:
    from jinja2 import Environment, StrictUndefined, Template
    from markupsafe import Markup, escape
except ImportError as error:
    raise DataError("found no jinja2, expected pip install 'gossamer[report]' for reports") from error

__all__ = ["Environment", "Markup", "StrictUndefined", "Template", "escape"]
