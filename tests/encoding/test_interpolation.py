"""Rows of the identity beside stored ones: what is refused, and what children are told."""

from __future__ import annotations

import pytest
import torch

from gossamer.encoding import Dense, Interpolation, LowRank, Mask
from gossamer.errors import FormatError

ROWS = Mask.of(torch.tensor([False, True, False, True, False]))


def d(*shape: int) -> Dense:
    return Dense(torch.arange(float(torch.Size(shape).numel())).view(shape))


def test_rows_of_the_identity_and_stored_ones_are_in_place() -> None:
    found = Interpolation(d(3, 2), ROWS)
    assert found.dense_shape() == (5, 2)
    assert found.to_dense().tolist() == [[0, 1], [1, 0], [2, 3], [0, 1], [4, 5]]
    assert found.others().tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("rest", "rows"),
    [((4, 2), ROWS), ((3, 3), ROWS), ((3,), ROWS), ((3, 2), Mask.of(torch.ones(1, 5, dtype=torch.bool)))],
)
def test_sizes_that_do_not_fit_are_refused(rest: tuple[int, ...], rows: Mask) -> None:
    with pytest.raises(FormatError, match="Interpolation"):
        Interpolation(d(*rest), rows)


def test_a_mask_with_another_number_of_rows_is_refused_when_contents_are_checked() -> None:
    other = Mask.of(torch.tensor([False, True, True, True, False]))
    with pytest.raises(FormatError, match="found 3 rows of the identity, expected 2"):
        Interpolation(d(3, 2), other).validate()


def test_a_rank_beyond_the_inputs_is_refused_as_its_dense_form_could_be_huge() -> None:
    with pytest.raises(FormatError, match="found rank 2, expected at most 1"):
        LowRank(Interpolation(d(3, 2), ROWS), d(2, 1))


def test_the_stored_rows_are_handed_their_rows_of_gradients_and_all_of_the_inputs() -> None:
    u = Interpolation(d(3, 2), ROWS)
    grad, gram = torch.randn(5, 2), torch.randn(2, 2)
    handed = u.hand_down("rest", {"grad": grad, "gram": gram, "count": torch.tensor([3.0])})
    assert torch.equal(handed["grad"], grad[[0, 2, 4]])
    assert torch.equal(handed["gram"], gram)
    assert u.hand_down("rows", {"gram": gram}) == {}
