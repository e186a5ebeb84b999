"""The four ways in which a request can be refused.

Every message names the tensor or the file, what was found and what was expected, on one line,
so that the command line can print it as it is and exit with code 2.
"""

from __future__ import annotations

__all__ = ["CompositionError", "DataError", "FormatError", "GossamerError", "PlanError"]


class GossamerError(ValueError):
    """A request that Gossamer refuses; the four concrete kinds below say why."""


class CompositionError(GossamerError):
    """A method does not accept what the methods before it left, or finds nothing to work on."""


class PlanError(GossamerError):
    """A method's settings or its plan make no sense for these tensors."""


class FormatError(GossamerError):
    """A file or its content is damaged, hostile, or of an unknown kind or version."""


class DataError(GossamerError):
    """Weights, images or labels are missing, not finite, or of the wrong shape."""
