"""What all factorizations have in common: where they may stand in a recipe, and what they cannot factorize."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from gossamer.encoding.skeleton import Skeleton
from gossamer.methods.base import Method, Site

__all__ = ["Factorization", "refuses_convolution", "refuses_matrix"]


@dataclass(frozen=True, kw_only=True)
class Factorization(Method, ABC):
    """A dense weight as several small ones, unless those would not be smaller."""

    leaves_some: ClassVar[bool] = True
    parts: ClassVar[str] = "factors"  # what it calls the small ones

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        order = f"factorize first, then prune or share the {self.parts}"
        return f"A factorized mask or codebook would be dense again: {order}"


def refuses_matrix(site: Site) -> str:
    """Why a site is not one matrix [out, rest]; empty: it is."""
    return _refuses(site, 2, "a matrix")


def refuses_convolution(site: Site) -> str:
    """Why a site is not one convolution that factors can be found for; empty: it is."""
    return _refuses(site, 3, "a convolution")


def _refuses(site: Site, dimensions: int, what: str) -> str:
    if len(site.shape) < dimensions:
        return f"found shape {site.shape}, expected {what}"
    if site.spec.groups != 1:
        return f"found a convolution of {site.spec.groups} groups, expected 1"
    return ""
