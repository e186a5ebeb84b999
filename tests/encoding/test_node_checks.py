"""Malformed nodes are refused with what was found and what was expected; sharing and size follow from identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.encoding import (
    CP,
    NM,
    Affine,
    Blocks,
    Codebook,
    Concat,
    Constant,
    Dense,
    Encoding,
    Grouping,
    Kept,
    LowRank,
    Mask,
    Masked,
    Monarch,
    NormalLevels,
    PowerLevels,
    Ref,
    Scaled,
    Sum,
    TensorTrain,
    Tucker,
    View,
    link,
    skeleton_of,
)
from gossamer.encoding.patterns import pack_bits, unpack_bits
from gossamer.encoding.serial import flatten, unflatten
from gossamer.errors import CompositionError, FormatError, PlanError


def d(*shape: int) -> Dense:
    return Dense(torch.zeros(shape))


def u8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRank(d(3, 2), d(3, 4)),
        lambda: LowRank(d(3), d(3, 4)),
        lambda: Tucker(d(2, 2), (d(3, 2),)),
        lambda: Tucker(d(2, 2), (d(3, 2), d(3, 3))),
        lambda: CP((d(3, 2),)),
        lambda: CP((d(3, 2), d(3, 1))),
        lambda: TensorTrain(()),
        lambda: TensorTrain((d(1, 2, 2, 2), d(3, 2, 2, 1))),
        lambda: TensorTrain((d(2, 2, 2, 1),)),
        lambda: Monarch(d(2, 3, 4), d(4, 3, 2)),
        lambda: Sum((d(2),)),
        lambda: Sum((d(2), d(3))),
        lambda: Concat(()),
        lambda: Concat((d(2, 3), d(2, 4))),
        lambda: View(d(2, 3), (0, 0)),
        lambda: View(d(2, 3), (0,)),
        lambda: Scaled(d(2, 3), d(2), None),
        lambda: Scaled(d(2, 3), None, d(3)),
        lambda: Kept(d(2), (None, None), (1, 1)),
        lambda: Kept(d(2), (None,), (0,)),
        lambda: Kept(d(2), (Mask.of(torch.ones(2, 2).bool()),), (1,)),
        lambda: Masked(d(2), d(2)),  # type: ignore[arg-type]
        lambda: Masked(Mask.of(torch.ones(2).bool()), LowRank(d(2, 1), d(1, 1))),  # type: ignore[arg-type]
        lambda: Masked(Mask.of(torch.ones(2).bool()), d(1, 2)),
        lambda: Mask(u8(0), (9,)),
        lambda: Mask(torch.zeros(1), (8,)),
        lambda: Blocks(u8(0), (4, 4), (0, 1)),
        lambda: Blocks(u8(0, 0), (4, 4), (2, 2)),
        lambda: NM(torch.zeros(2, dtype=torch.int16), (2, 4), 5, 4),
        lambda: NM(torch.zeros(2, dtype=torch.int16), (2, 6), 2, 4),
        lambda: NM(torch.zeros(3, dtype=torch.int16), (2, 4), 2, 4),
        lambda: NM(torch.zeros(2), (2, 4), 2, 4),
        lambda: Affine(0, 1, u8(1), d(1), 0, 4),
        lambda: Affine(2, 3, u8(1, 1), d(1), 0, 4),
        lambda: Affine(2, 2, u8(1, 1), d(1), 0, 9),
        lambda: Affine(2, 2, u8(1, 1), d(1, 1), 0, 4),
        lambda: Affine(2, 2, u8(1, 1), d(1), u8(1, 1), 4),
        lambda: Affine(2, 2, u8(1, 1), d(1), 256, 4),
        lambda: Affine(2, 2, torch.zeros(2), d(1), 0, 4),
        lambda: NormalLevels(2, 2, torch.zeros(2), d(1)),
        lambda: NormalLevels(2, 2, u8(0, 1), d(1, 1)),
        lambda: NormalLevels(2, 2, u8(0, 1), d(1), 9),
        lambda: NormalLevels(2, 3, u8(0, 1), d(1)),
        lambda: PowerLevels(2, 2, u8(0, 1), torch.zeros(1), 4),
        lambda: PowerLevels(2, 2, u8(0, 1), torch.zeros(1, 1, dtype=torch.int8), 4),
        lambda: PowerLevels(2, 2, torch.zeros(2), torch.zeros(1, dtype=torch.int8), 4),
        lambda: PowerLevels(2, 2, u8(0, 1), torch.zeros(1, dtype=torch.int8), 7),
        lambda: Codebook(2, 2, torch.zeros(2), d(1, 2)),
        lambda: Codebook(2, 2, u8(0, 1), d(2)),
        lambda: Codebook(2, 2, u8(0, 1), d(1, 257)),
        lambda: Codebook(2, 2, u8(0, 1), d(1, 0)),
    ],
)
def test_malformed_structure_is_refused_when_made(make: Callable[[], Encoding]) -> None:
    with pytest.raises(FormatError, match=r"^\w+: found .+, expected .+"):
        make()


@pytest.mark.parametrize(
    "node",
    [
        Mask(u8(0b1), (7,)),
        Blocks(u8(0b1), (2, 3), (1, 1)),
        NM(torch.tensor([6], dtype=torch.int16), (1, 4), 2, 4),
        NM(torch.tensor([-1], dtype=torch.int16), (1, 4), 2, 4),
        Affine(2, 2, u8(1, 16), d(1), 0, 4),
        Codebook(2, 2, u8(0, 2), d(1, 2)),
        NormalLevels(2, 2, u8(0, 4), d(1), 2),
        PowerLevels(2, 2, u8(0, 3), torch.zeros(1, dtype=torch.int8), 2),
        PowerLevels(2, 2, u8(0, 2), torch.full((1,), -91, dtype=torch.int8), 2),
        Masked(Mask.of(torch.ones(3).bool()), d(2)),
        Kept(d(2), (Mask.of(torch.ones(3).bool()),), (1,)),
        Kept(d(2), (Mask.of(torch.ones(2).bool()),), (1 << 50,)),
        Masked(Mask.of(torch.ones(4).bool()), Codebook(2, 2, u8(0, 0, 0, 0), d(3, 1))),
        Masked(Mask.of(torch.ones(4).bool()), Affine(1, 1, u8(0, 0, 0, 0), d(2), 0, 4)),
        Masked(Mask.of(torch.ones(4).bool()), Affine(1 << 70, 1, u8(0, 0, 0, 0), d(2), 0, 4)),
    ],
    ids=lambda n: type(n).__name__,
)
def test_contents_that_the_structure_does_not_allow_are_refused_by_validate(node: Encoding) -> None:
    with pytest.raises(FormatError, match=r"^\w+: found .+, expected .+"):
        node.validate()


@pytest.mark.parametrize("fields", [[[1 << 40], 0.0], [[-1], 0.0], [[2], 1e999], [[2], "0"], [2, 0.0]])
def test_a_constant_stands_for_no_more_than_its_tensor_needs(fields: list[object]) -> None:
    assert unflatten([["Constant", 1]], [[0, [3], 0.5]], {"w": 0}, [], most=3)["w"].to_dense().tolist() == [0.5] * 3
    with pytest.raises(FormatError, match="Constant"):
        unflatten([["Constant", 1]], [[0, *fields]], {"w": 0}, [], most=1 << 20)
    assert Constant((2, 0), 1.0).to_dense().shape == (2, 0)


def test_groups_of_a_value_that_is_not_packed_are_checked_over_its_own_elements() -> None:
    wrong = Codebook(2, 1, u8(0, 0, 0, 0), d(3, 1))
    flat = flatten({"w": wrong, "below": View(wrong, (0,))})
    for roots in ({"w": 1}, {"below": 2}):
        with pytest.raises(FormatError, match="3 groups, expected 1 or 4"):
            unflatten(flat.kinds, flat.nodes, roots, [f.tensor for f in flat.leaves])


@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_a_group_is_a_run_of_columns_within_a_row(rows: int, columns: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, columns))
    grouping = Grouping(columns, size)
    expected, names = [], {}
    for position in range(rows * columns):
        place = (position // columns, position % columns // size)
        expected.append(names.setdefault(place, len(names)))
    assert grouping.of(torch.arange(rows * columns)).tolist() == expected
    assert grouping.count(rows * columns) == len(names)


@given(st.lists(st.booleans(), max_size=70))
def test_packed_bits_are_the_mask(bits: list[bool]) -> None:
    packed = pack_bits(torch.tensor(bits, dtype=torch.bool))
    assert packed.numel() == -(-len(bits) // 8)
    assert unpack_bits(packed, len(bits)).tolist() == bits


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.data())
def test_blocks_are_what_a_loop_says(rows: int, columns: int, height: int, width: int, data: st.DataObject) -> None:
    grid = (-(-rows // height), -(-columns // width))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1])))
    kept = kept.view(grid)
    pattern = Blocks.of(kept, (rows, columns), (height, width))
    expected = [[bool(kept[i // height, j // width]) for j in range(columns)] for i in range(rows)]
    assert pattern.mask().tolist() == expected
    pattern.validate()


@given(st.integers(1, 6), st.data())
def test_n_of_m_restores_every_choice(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, m))
    groups = data.draw(st.lists(st.permutations([True] * n + [False] * (m - n)), min_size=1, max_size=5))
    mask = torch.tensor(groups).view(1, -1)
    pattern = NM.of(mask, n, m)
    pattern.validate()
    assert torch.equal(pattern.mask(), mask)


def test_n_of_m_refuses_a_mask_with_another_count() -> None:
    with pytest.raises(PlanError, match="2:4"):
        NM.of(torch.tensor([[True, True, True, False]]), 2, 4)


def test_a_shared_leaf_counts_once_and_is_written_once() -> None:
    table = Dense(torch.tensor([[0.5, 1.0]]))
    first, second = (Codebook(4, 4, u8(0, 1, 1, 0), table) for _ in range(2))
    both = Sum((first, second))
    assert both.size_bits() == 4 + 4 + 64
    assert len(flatten({"a": first, "b": second}).leaves) == 3


def test_equal_nodes_over_the_same_leaves_are_written_once() -> None:
    array = torch.zeros(3)
    flat = flatten({"a": Dense(array), "b": Dense(array), "c": Dense(array, fixed=True)})
    assert len(flat.nodes) == 2
    assert flat.roots == {"a": 0, "b": 0, "c": 1}


def test_link_refuses_circles_strangers_and_shapes() -> None:
    with pytest.raises(CompositionError, match="circle"):
        link({"a": Ref("b", (2,)), "b": Ref("a", (2,))})
    with pytest.raises(CompositionError, match="'c'"):
        link({"a": Ref("c", (2,))})
    with pytest.raises(CompositionError, match="shape"):
        link({"a": Ref("b", (3,)), "b": d(2)})


def test_paths_that_lead_nowhere_are_refused() -> None:
    tree = LowRank(d(3, 2), d(2, 4))
    with pytest.raises(CompositionError, match="'w'"):
        tree.at("/w")
    with pytest.raises(CompositionError, match="leaf"):
        tree.at("/u/array")
    with pytest.raises(CompositionError, match="leaf"):
        tree.put("/u/array", d(1))


def test_a_skeleton_lists_weights_topmost_first_and_never_the_parts_of_values() -> None:
    tree = Sum((LowRank(d(3, 2), d(2, 4)), Codebook(4, 4, torch.zeros(3, 4, dtype=torch.uint8), d(1, 2))))
    assert list(skeleton_of(tree).weight_paths()) == ["", "/terms.0", "/terms.0/u", "/terms.0/v", "/terms.1"]
    assert str(skeleton_of(tree)) == "Sum(LowRank(Dense, Dense), Codebook(Dense))"


def test_evidence_follows_the_inputs_to_factors_scales_and_kept_columns() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6)
    gram, sq = x.T @ x, x.square().sum(0)  # [6, n] · [n, 6] → [6, 6]
    v = Dense(torch.randn(2, 6))
    seen = x @ v.array.T  # [n, 6] · [6, 2] → [n, 2]
    down = LowRank(Dense(torch.randn(4, 2)), v).hand_down_to("/u", {"gram": gram, "sq": sq})
    torch.testing.assert_close(down["gram"], seen.T @ seen, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(down["sq"], seen.square().sum(0), rtol=1e-4, atol=1e-3)
    scale = Dense(torch.rand(6) + 0.5)
    down = Scaled(d(4, 6), scale, None).hand_down_to("/inner", {"gram": gram, "sq": sq, "odd": sq})
    torch.testing.assert_close(down["sq"], (x * scale.array).square().sum(0), rtol=1e-4, atol=1e-3)
    assert set(down) == {"gram", "sq"}
    keep = Mask.of(torch.tensor([True, False, True]))
    down = Kept(d(4, 4), (None, keep), (1, 2)).hand_down_to("/inner", {"gram": gram, "sq": sq})
    index = [0, 1, 4, 5]
    assert torch.equal(down["sq"], sq[index])
    assert torch.equal(down["gram"], gram[index][:, index])
