"""Choosing among recipes by what their files bring."""

from gossamer.search.minimum_description import Candidate, Choice, by_description_length

__all__ = ["Candidate", "Choice", "by_description_length"]
