"""What can be caught around any call of the library."""

from __future__ import annotations

import inspect

import pytest
import torch

import gossamer as gs
from gossamer import errors


def test_all_errors_and_what_they_have_in_common_are_at_the_top() -> None:
    for name in errors.__all__:
        assert getattr(gs, name) is getattr(errors, name)
        assert name in gs.__all__
        assert issubclass(getattr(gs, name), gs.GossamerError)
    assert {name for name, _ in inspect.getmembers(errors, inspect.isclass)} == set(errors.__all__)
    assert issubclass(gs.GossamerError, ValueError)


def test_one_clause_catches_whatever_is_refused() -> None:
    for recipe in ([gs.factorize.SVD(rank=99)], [torch.nn.Identity()]):
        with pytest.raises(gs.GossamerError):
            gs.compress(torch.nn.Linear(4, 4), recipe)  # type: ignore[arg-type]
