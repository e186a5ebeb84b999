"""An example of every kind of encoding, plain and nested, each with its size in bits worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.encoding import (
    CP,
    NM,
    Affine,
    Blocks,
    Codebook,
    Concat,
    Constant,
    Convolutional,
    Dense,
    Drawn,
    Encoding,
    Hashed,
    Interpolation,
    Kept,
    KernelBasis,
    KernelShapes,
    LowRank,
    Mask,
    Masked,
    Monarch,
    NormalLevels,
    Permuted,
    PowerLevels,
    Rotated,
    Scaled,
    Sum,
    TensorTrain,
    Tucker,
    VectorCodebook,
    View,
)


@dataclass(frozen=True)
class Example:
    """A tree and what is known about it beforehand."""

    tree: Encoding
    shape: tuple[int, ...]
    bits: int


class Maker:
    """Leaves of one dtype from one stream of random numbers."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.width = dtype, dtype.itemsize * 8
        self._random = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(self.dtype)

    def dense(self, *shape: int) -> Dense:
        return Dense(self.floats(*shape))

    def symbols(self, top: int, *shape: int) -> Tensor:
        return torch.randint(top, shape, generator=self._random, dtype=torch.uint8)

    def positive(self, *shape: int) -> Dense:
        return Dense(self.floats(*shape).abs() + 0.25)

    def mask(self, *shape: int) -> Mask:
        return Mask.of(torch.rand(*shape, generator=self._random) < 0.4)

    def live(self, mask: Mask) -> int:
        return int(mask.mask().sum())

    def masked(self, *shape: int) -> tuple[Masked, int]:
        """A pruned weight and its size."""
        where = self.mask(*shape)
        live = self.live(where)
        return Masked(where, self.dense(live)), where.mask().numel() + live * self.width

    def clustered(self, *shape: int) -> tuple[Masked, int]:
        """A pruned and clustered weight, five centroids, and its size."""
        where = self.mask(*shape)
        live, size = self.live(where), where.mask().numel()
        packed = Codebook(size, size, self.symbols(5, live), self.dense(1, 5))
        return Masked(where, packed), size + 3 * live + 5 * self.width


def dense(m: Maker) -> Example:
    return Example(m.dense(5, 7), (5, 7), 35 * m.width)


def dense_fixed(m: Maker) -> Example:
    return Example(Dense(m.floats(5), fixed=True), (5,), 5 * m.width)


def affine_symmetric(m: Maker) -> Example:
    return Example(Affine(35, 35, m.symbols(16, 5, 7), m.positive(1), 8, 4), (5, 7), 35 * 4 + m.width)


def affine_per_channel(m: Maker) -> Example:
    tree = Affine(7, 7, m.symbols(8, 5, 7), m.positive(5), m.symbols(8, 5), 3)
    return Example(tree, (5, 7), 35 * 3 + 5 * m.width + 5 * 8)


def affine_ragged_groups(m: Maker) -> Example:
    tree = Affine(7, 3, m.symbols(4, 5, 7), m.positive(15), m.symbols(4, 15), 2)
    return Example(tree, (5, 7), 35 * 2 + 15 * m.width + 15 * 8)


def codebook(m: Maker) -> Example:
    return Example(Codebook(35, 35, m.symbols(16, 5, 7), m.dense(1, 16)), (5, 7), 35 * 4 + 16 * m.width)


def codebook_of_one(m: Maker) -> Example:
    return Example(Codebook(6, 6, m.symbols(1, 6), m.dense(1, 1)), (6,), 6 + m.width)


def codebook_grouped(m: Maker) -> Example:
    return Example(Codebook(7, 4, m.symbols(5, 5, 7), m.dense(10, 5)), (5, 7), 35 * 3 + 50 * m.width)


def masked(m: Maker) -> Example:
    tree, bits = m.masked(5, 7)
    return Example(tree, (5, 7), bits)


def masked_conv(m: Maker) -> Example:
    tree, bits = m.masked(3, 2, 3, 3)
    return Example(tree, (3, 2, 3, 3), bits)


def masked_all_dead(m: Maker) -> Example:
    where = Mask.of(torch.zeros(3, 4, dtype=torch.bool))
    return Example(Masked(where, m.dense(0)), (3, 4), 12)


def masked_nm(m: Maker) -> Example:
    choice = m.symbols(6, 6).to(torch.int16)
    return Example(Masked(NM(choice, (3, 2, 2, 2), 2, 4), m.dense(12)), (3, 2, 2, 2), 6 * 3 + 12 * m.width)


def masked_ragged_blocks(m: Maker) -> Example:
    kept = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
    # blocks of 2 × 3 on 5 × 7: 3 × 3 blocks, the last row of them one high, the last column one wide
    live = 6 + 2 + 2 + 3 + 3
    return Example(Masked(Blocks.of(kept, (5, 7), (2, 3)), m.dense(live)), (5, 7), 9 + live * m.width)


def masked_rows(m: Maker) -> Example:
    where = Blocks.of(torch.tensor([[True], [False], [True]]), (3, 2, 2), (1, 4))
    return Example(Masked(where, m.dense(8)), (3, 2, 2), 3 + 8 * m.width)


def masked_kernel_shapes(m: Maker) -> Example:
    shapes = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    choice = torch.tensor([0, 2, 1, 1, 0, 0], dtype=torch.uint8)  # five kernels of two weights, one is gone
    where = KernelShapes(choice, shapes, (3, 2, 2, 2))
    return Example(Masked(where, m.dense(10)), (3, 2, 2, 2), 6 * 2 + 12 + 10 * m.width)


def permuted(m: Maker) -> Example:
    choice = m.symbols(6, 6).to(torch.int16)
    inner = Masked(NM(choice, (3, 8), 2, 4), m.dense(12))
    tree = Permuted.of(inner, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]))
    return Example(tree, (3, 8), 6 * 3 + 12 * m.width + 8 * 3)


def permuted_clustered_conv(m: Maker) -> Example:
    inner, bits = m.clustered(2, 3, 2)
    return Example(Permuted.of(inner, torch.tensor([5, 0, 4, 1, 3, 2])), (2, 3, 2), bits + 6 * 3)


def masked_affine_grouped(m: Maker) -> Example:
    where = m.mask(5, 7)
    live = m.live(where)
    tree = Masked(where, Affine(7, 3, m.symbols(16, live), m.positive(15), m.symbols(16, 15), 4))
    return Example(tree, (5, 7), 35 + 4 * live + 15 * m.width + 15 * 8)


def masked_codebook(m: Maker) -> Example:
    tree, bits = m.clustered(5, 7)
    return Example(tree, (5, 7), bits)


def masked_codebook_grouped(m: Maker) -> Example:
    where = m.mask(5, 7)
    live = m.live(where)
    tree = Masked(where, Codebook(7, 4, m.symbols(4, live), m.dense(10, 4)))
    return Example(tree, (5, 7), 35 + 2 * live + 40 * m.width)


def constant(m: Maker) -> Example:
    return Example(Constant((4, 3), 0.75), (4, 3), 0)


def normal_levels(m: Maker) -> Example:
    return Example(NormalLevels(35, 35, m.symbols(8, 5, 7), m.positive(1), 3), (5, 7), 35 * 3 + m.width)


def normal_levels_ragged_groups(m: Maker) -> Example:
    tree = NormalLevels(7, 4, m.symbols(16, 5, 7), m.positive(10))
    return Example(tree, (5, 7), 35 * 4 + 10 * m.width)


def power_levels(m: Maker) -> Example:
    exponent = torch.tensor([-3, 0, 1, 2, -1], dtype=torch.int8)
    return Example(PowerLevels(7, 7, m.symbols(15, 5, 7), exponent), (5, 7), 35 * 4 + 5 * 8)


def masked_levels(m: Maker) -> Example:
    where = m.mask(5, 7)
    live = m.live(where)
    tree = Masked(where, NormalLevels(7, 4, m.symbols(4, live), m.positive(10), 2))
    return Example(tree, (5, 7), 35 + 2 * live + 10 * m.width)


def masked_power_levels(m: Maker) -> Example:
    where = m.mask(5, 7)
    live = m.live(where)
    tree = Masked(where, PowerLevels(35, 35, m.symbols(7, live), torch.tensor([1], dtype=torch.int8), 3))
    return Example(tree, (5, 7), 35 + 3 * live + 8)


def low_rank(m: Maker) -> Example:
    return Example(LowRank(m.dense(5, 2), m.dense(2, 3, 2, 2)), (5, 3, 2, 2), (10 + 24) * m.width)


def low_rank_of_clustered(m: Maker) -> Example:
    (u, u_bits), (v, v_bits) = m.clustered(5, 3), m.clustered(3, 8)
    return Example(LowRank(u, v), (5, 8), u_bits + v_bits)


def interpolated(m: Maker) -> Example:
    rows = Mask.of(torch.tensor([False, True, False, True, False]))
    return Example(LowRank(Interpolation(m.dense(3, 2), rows), m.dense(2, 7)), (5, 7), (6 + 14) * m.width + 5)


def interpolated_convolution_of_clustered(m: Maker) -> Example:
    rest, bits = m.clustered(2, 3)
    rows = Mask.of(torch.tensor([True, False, True, True, False]))
    v = m.dense(3, 2, 2)
    return Example(LowRank(Interpolation(rest, rows), v), (5, 2, 2), bits + 12 * m.width + 5)


def interpolated_at_full_rank(m: Maker) -> Example:
    rows = Mask.of(torch.ones(3, dtype=torch.bool))
    return Example(LowRank(Interpolation(m.dense(0, 3), rows), m.dense(3, 4)), (3, 4), 12 * m.width + 3)


def sum_of_low_rank_and_sparse(m: Maker) -> Example:
    sparse, bits = m.masked(5, 7)
    return Example(Sum((LowRank(m.dense(5, 2), m.dense(2, 7)), sparse)), (5, 7), 24 * m.width + bits)


def view_of_masked(m: Maker) -> Example:
    inner, bits = m.masked(4, 3, 2)
    return Example(View(inner, (1, 0, 2)), (3, 4, 2), bits)


def concat(m: Maker) -> Example:
    part, bits = m.masked(2, 3)
    return Example(Concat((part, m.dense(4, 3), part)), (8, 3), bits + 12 * m.width)


def kept_rows_and_pixels(m: Maker) -> Example:
    rows = Mask.of(torch.tensor([True, False, True, False]))
    channels = Mask.of(torch.tensor([False, True, True]))
    inner, bits = m.clustered(2, 4)  # 2 of 4 rows; 2 of 3 channels of 2 pixels each
    return Example(Kept(inner, (rows, channels), (1, 2)), (4, 6), bits + 4 + 3)


def kept_filled(m: Maker) -> Example:
    keep = Mask.of(torch.tensor([True, False, True]))
    return Example(Kept(Dense(m.floats(2), fixed=True), (keep,), (1,), 1.0), (3,), 2 * m.width + 3)


def scaled(m: Maker) -> Example:
    inner = Affine(6, 6, m.symbols(16, 4, 3, 2), m.positive(4), 8, 4)
    tree = Scaled(inner, m.positive(6), m.positive(4))
    return Example(tree, (4, 3, 2), 24 * 4 + 4 * m.width + 10 * m.width)


def scaled_one_side(m: Maker) -> Example:
    return Example(Scaled(m.dense(4, 3), None, m.positive(4)), (4, 3), 16 * m.width)


def rotated(m: Maker) -> Example:
    inner = Affine(12, 5, m.symbols(16, 4, 12), m.positive(12), m.symbols(16, 12), 4)
    return Example(Rotated(inner, 4, 0xFFFF_FFFF_FFFF_FFFF), (4, 12), 48 * 4 + 12 * m.width + 12 * 8)


def rotated_conv(m: Maker) -> Example:
    return Example(Rotated(m.dense(3, 2, 2, 2), 8, 5), (3, 2, 2, 2), 24 * m.width)


def tucker_two(m: Maker) -> Example:
    tree = Tucker(m.dense(2, 3, 2, 2), (m.dense(5, 2), m.dense(4, 3), None, None))
    return Example(tree, (5, 4, 2, 2), (24 + 10 + 12) * m.width)


def cp(m: Maker) -> Example:
    return Example(CP((m.dense(4, 2), m.dense(3, 2), m.dense(2, 2))), (4, 3, 2), 18 * m.width)


def tensor_train(m: Maker) -> Example:
    return Example(TensorTrain((m.dense(1, 2, 3, 2), m.dense(2, 3, 2, 1))), (6, 6), 24 * m.width)


def monarch(m: Maker) -> Example:
    return Example(Monarch(m.dense(2, 3, 4), m.dense(4, 2, 2)), (6, 8), 40 * m.width)


def vector_codebook(m: Maker) -> Example:
    return Example(VectorCodebook(m.symbols(5, 4, 3), m.dense(1, 5, 2), (6,)), (4, 6), 12 * 3 + 10 * m.width)


def vector_codebook_of_kernels(m: Maker) -> Example:
    tree = VectorCodebook(m.symbols(6, 3, 2), m.dense(2, 6, 4), (2, 2, 2))  # one codebook per input channel
    return Example(tree, (3, 2, 2, 2), 6 * 3 + 48 * m.width)


def hashed(m: Maker) -> Example:
    return Example(Hashed(m.dense(7), (4, 3, 2), 0xFFFF_FFFF_FFFF_FFFF), (4, 3, 2), 7 * m.width)


def drawn(m: Maker) -> Example:
    index = torch.tensor([1023, 0, 517], dtype=torch.int32)
    return Example(Drawn(index, m.positive(1), (5, 7), 0xFFFF_FFFF_FFFF_FFFF, "w", 10), (5, 7), 30 + m.width)


def drawn_of_one(m: Maker) -> Example:
    return Example(Drawn(torch.tensor([1], dtype=torch.int32), m.positive(1), (), 0, "", 1), (), 1 + m.width)


def masked_drawn(m: Maker) -> Example:
    where = Mask.of(torch.arange(35).view(5, 7) % 3 == 0)  # how many are drawn is no part of a state_dict
    index = torch.arange(12, dtype=torch.int32) * 4093  # every number a block of its own
    return Example(Masked(where, Drawn(index, m.positive(1), (12,), 3, "w", 24)), (5, 7), 35 + 24 * 12 + m.width)


def hashed_drawn(m: Maker) -> Example:
    table = Drawn(torch.tensor([9, 4], dtype=torch.int32), m.positive(1), (7,), 3, "w#/table", 4)
    return Example(Hashed(table, (4, 3, 2), 5), (4, 3, 2), 8 + m.width)


def predicted(m: Maker) -> Example:
    groups = tuple(LowRank(m.dense(2, 6), KernelBasis(6, (1, 4, 5), (0.0, 1.5, 2), 0.01, i, (20,))) for i in (3, 4))
    return Example(Concat(groups), (4, 20), 24 * m.width)


def predicted_convolution(m: Maker) -> Example:
    values, bits = m.masked(3, 5)
    return Example(LowRank(values, KernelBasis(5, (2, 2, 2), (0, 1.0, 1.0), 1e-4, 9, (2, 2, 2))), (3, 2, 2, 2), bits)


def toeplitz(m: Maker) -> Example:
    return Example(Convolutional(m.dense(1, 1, 1, 8), (1, 5), (1, 4), offset=(0, -4)), (5, 4), 8 * m.width)


def convolutional_strided(m: Maker) -> Example:
    kernel, bits = m.clustered(2, 3, 3, 2)
    return Example(Convolutional(kernel, (2, 3), (4, 5), (2, 2), (-1, 0)), (12, 60), bits)


def convolutional_in_tiles(m: Maker) -> Example:
    tree = Convolutional(m.dense(8, 1, 2, 2), (3, 4), (4, 5), tiles=(2, 2))
    return Example(tree, (24, 20), 32 * m.width)


def shared_codebook(m: Maker) -> Example:
    table = m.dense(1, 4)
    parts = tuple(Codebook(6, 6, m.symbols(4, 2, 3), table) for _ in range(2))
    return Example(Concat(parts), (4, 3), 12 * 2 + 4 * m.width)


def everything_at_once(m: Maker) -> Example:
    (u, u_bits), (sparse, s_bits) = m.clustered(4, 2), m.masked(4, 6)
    inner = Sum((LowRank(u, m.dense(2, 6)), sparse))
    keep = Mask.of(torch.tensor([True, True, False, True, True]))
    tree = View(Kept(Scaled(inner, None, m.positive(4)), (keep, None), (1, 1)), (1, 0))
    return Example(tree, (6, 5), u_bits + s_bits + 12 * m.width + 4 * m.width + 5)


MAKERS: tuple[Callable[[Maker], Example], ...] = (
    *(dense, dense_fixed, affine_symmetric, affine_per_channel, affine_ragged_groups),
    *(codebook, codebook_of_one, codebook_grouped, masked, masked_conv, masked_all_dead, masked_nm),
    *(masked_ragged_blocks, masked_rows, masked_affine_grouped, masked_codebook, masked_codebook_grouped),
    *(low_rank, low_rank_of_clustered, sum_of_low_rank_and_sparse, view_of_masked, concat, kept_rows_and_pixels),
    *(kept_filled, scaled, scaled_one_side, tucker_two, cp, tensor_train, monarch, shared_codebook),
    *(drawn, drawn_of_one, masked_drawn, hashed_drawn),
    *(vector_codebook, vector_codebook_of_kernels, hashed, predicted, predicted_convolution),
    *(toeplitz, convolutional_strided, convolutional_in_tiles),
    *(constant, normal_levels, normal_levels_ragged_groups, power_levels, masked_levels, masked_power_levels),
    *(masked_kernel_shapes, permuted, permuted_clustered_conv, rotated, rotated_conv),
    *(interpolated, interpolated_convolution_of_clustered, interpolated_at_full_rank),
    everything_at_once,
)
