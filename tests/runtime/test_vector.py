"""Sparse matrix × few vectors agrees with float64 at every instruction set, in every format."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.exactness import error
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, Processor, host, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.kernels import VECTORS, VectorKernels, load
from gossamer.runtime.threads import OpenMP, openmp
from gossamer.runtime.vector import Positions, VectorLinear, VectorProduct
from gossamer.runtime.vector_packing import choose_split, pack_slices
from gossamer.runtime.vector_values import Storage, StoredValues, store_values

LEVELS = levels()
FORMS = [(level, held) for level in LEVELS for held in Positions if held is Positions.INDEX or host(level).lanes == 16]
FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.SILU: F.silu,
    Activation.RELU6: F.relu6,
}


def compiled(level: Level) -> VectorKernels:
    return load(VectorKernels, host(level), None)  # once per level: kept in memory


def random_weight(rows: int, columns: int, density: float, seed: int, levels: int = 0) -> Tensor:
    """Random places; with ``levels`` no more than so many different values."""
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=draw) < density
    if levels:
        return torch.randn(levels, generator=draw)[torch.randint(levels, (rows, columns), generator=draw)] * kept
    return torch.randn(rows, columns, generator=draw) * kept


def stored(weight: Tensor, kind: Storage) -> tuple[np.ndarray, StoredValues, Tensor]:
    """Positions, values as stored, and the float64 weight that these stand for."""
    flat = weight.flatten()
    positions = flat.nonzero().flatten().numpy()
    row = positions // max(1, weight.shape[1])
    made = store_values(flat.numpy()[positions], row, len(weight), kind)
    numbers = {
        Storage.FLOAT32: lambda: made.codes,
        Storage.BFLOAT16: lambda: (made.codes.astype(np.uint32) << 16).view(np.float32),
        Storage.INT8: lambda: made.codes.astype(np.float64) * made.scale[row],
        Storage.CODEBOOK8: lambda: made.table[made.codes],
        Storage.CODEBOOK4: lambda: made.table[made.codes],
    }[kind]()
    exact = torch.zeros(weight.numel(), dtype=torch.float64)
    exact[positions] = torch.from_numpy(numbers.astype(np.float64))
    return positions, made, exact.view(weight.shape)


def packed(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    level: Level = "native",
    held: Positions = Positions.INDEX,
    kind: Storage = Storage.FLOAT32,
    activation: Activation = Activation.NONE,
    openmp: OpenMP = openmp(),  # noqa: B008  # one per process
    team_from: int = 0,
) -> VectorProduct:
    positions, values, _ = stored(weight, kind)
    return VectorProduct(
        (weight.shape[0], weight.shape[1]),
        positions,
        values,
        None if bias is None else bias.numpy(),
        held=held,
        activation=activation,
        kernels=compiled(level),
        openmp=openmp,
        team_from=team_from,
    )


@pytest.mark.parametrize(("level", "held"), FORMS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 90),
    tokens=st.one_of(st.integers(0, 8), st.integers(9, 40)),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    biased=st.booleans(),
    activation=st.sampled_from(Activation),
    kind=st.sampled_from(Storage),
    seed=st.integers(0, 1000),
)
def test_products_of_any_shape_agree_with_float64(
    level: Level,
    held: Positions,
    rows: int,
    columns: int,
    tokens: int,
    density: float,
    biased: bool,
    activation: Activation,
    kind: Storage,
    seed: int,
) -> None:
    many = {Storage.CODEBOOK8: 200, Storage.CODEBOOK4: 15}.get(kind, 0)
    weight = random_weight(rows, columns, density, seed, many)
    bias = torch.linspace(-1, 1, rows) if biased else None
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    y = packed(weight, bias, level=level, held=held, kind=kind, activation=activation)(x)
    _, _, exact = stored(weight, kind)
    linear = x.double() @ exact.T + (0 if bias is None else bias.double())
    assert y.shape == linear.shape
    scale = float(linear.abs().max()) if linear.numel() else 1.0
    assert error(y, FUNCTIONS[activation](linear)) <= 1e-5 or float(
        (y - FUNCTIONS[activation](linear)).abs().max()
    ) <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize(("level", "held"), FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 70])
def test_larger_products_agree_with_float64_on_one_and_two_threads(
    level: Level, held: Positions, tokens: int, threads: int
) -> None:
    weight, bias = random_weight(301, 517, 0.1, 3), torch.randn(301)
    x = torch.randn(tokens, 517)
    product = packed(weight, bias, activation=Activation.RELU, level=level, held=held)
    assert product.threads(tokens) == threads
    assert error(product(x), (x.double() @ weight.double().T + bias).relu()) <= 1e-5


@pytest.mark.parametrize(("level", "held"), FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 33])
def test_the_number_of_threads_does_not_change_a_bit(level: Level, held: Positions, tokens: int) -> None:
    weight, x = random_weight(333, 700, 0.15, 5), torch.randn(tokens, 700)
    product = packed(weight, level=level, held=held)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(product(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(("level", "held"), FORMS)
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_columns_beyond_65536_are_reached(level: Level, held: Positions, tokens: int) -> None:
    weight = random_weight(21, 140_001, 0.01, 1)
    x = torch.randn(tokens, 140_001)
    assert error(packed(weight, level=level, held=held)(x), x.double() @ weight.double().T) <= 1e-5


@pytest.mark.parametrize(("level", "held"), FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_rows_of_very_unequal_length_agree_with_float64(level: Level, held: Positions, tokens: int) -> None:
    weight = random_weight(50, 400, 1.0, 2) * (torch.rand(50, 400) < torch.logspace(-3, 0, 50)[:, None])
    weight[7] = 0
    x = torch.randn(tokens, 400)
    assert error(packed(weight, level=level, held=held)(x), x.double() @ weight.double().T) <= 1e-5


@pytest.mark.parametrize("kind", Storage)
@pytest.mark.parametrize(("level", "held"), FORMS)
@pytest.mark.parametrize("poison", [math.inf, math.nan])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_nan_and_infinity_reach_exactly_the_outputs_of_live_weights(
    level: Level, held: Positions, poison: float, tokens: int, kind: Storage
) -> None:
    weight = random_weight(37, 53, 0.3, 8, 15)
    weight[:, 11] *= torch.arange(37) % 3 == 0  # column 11 feeds at most every third row
    weight[4] = 0
    x = torch.randn(tokens, 53)
    x[tokens // 2, 11] = poison
    y = packed(weight, level=level, held=held, kind=kind)(x)
    _, _, exact = stored(weight, kind)
    touched = torch.zeros(tokens, 37, dtype=torch.bool)
    touched[tokens // 2] = weight[:, 11] != 0
    clean = torch.where(x.isfinite(), x, 0.0).double() @ exact.T
    assert touched.any() and error(torch.where(touched, 0.0, y), torch.where(touched, 0.0, clean)) <= 1e-5
    assert not y[touched].isfinite().any()


@pytest.mark.parametrize(("level", "held"), FORMS)
def test_every_input_being_infinite_leaves_empty_rows_alone(level: Level, held: Positions) -> None:
    weight = torch.zeros(40, 30)
    weight[3, 5] = weight[39, 29] = 1.0
    for tokens in (1, 4):
        y = packed(weight, level=level, held=held)(torch.full((tokens, 30), math.inf))
        assert torch.equal(y, torch.where(weight.any(dim=1), math.inf, 0.0).expand(tokens, 40))


def test_codebooks_and_bfloat16_are_exact_where_the_values_fit() -> None:
    row = np.arange(4)
    few = np.float32([0.1, -0.2, 0.1, 0.3])
    for kind in (Storage.CODEBOOK8, Storage.CODEBOOK4):
        made = store_values(few, row, 4, kind)
        assert np.array_equal(made.table[made.codes], few)
    halves = np.float32([1.5, -2.0, 0.0078125, np.inf])
    made = store_values(halves, row, 4, Storage.BFLOAT16)
    assert np.array_equal((made.codes.astype(np.uint32) << 16).view(np.float32), halves)


def test_bfloat16_rounds_to_nearest_as_pytorch_does() -> None:
    values = torch.cat([torch.randn(5000), torch.tensor([math.nan, math.inf, -math.inf, 3.4e38, 1e-40])])
    made = store_values(values.numpy(), np.zeros(len(values), np.int64), 1, Storage.BFLOAT16)
    found = torch.from_numpy((made.codes.astype(np.uint32) << 16).view(np.float32).copy())
    torch.testing.assert_close(found, values.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_int8_is_off_by_half_a_step_of_its_row() -> None:
    weight = random_weight(20, 50, 0.4, 0) * torch.logspace(-3, 3, 20)[:, None]
    _, values, exact = stored(weight, Storage.INT8)
    assert bool(((exact - weight).abs() <= 0.501 * torch.from_numpy(values.scale)[:, None]).all())


def test_too_many_values_for_a_codebook_are_refused() -> None:
    values = np.arange(1, 18, dtype=np.float32)
    with pytest.raises(PlanError, match="found 17 different values, expected at most 16"):
        store_values(values, np.zeros(17, np.int64), 1, Storage.CODEBOOK4)


def test_rows_that_lie_apart_are_read_in_place() -> None:
    weight, wide = random_weight(30, 20, 0.3, 2), torch.randn(7, 64)
    x = wide[:, 8:28]
    assert error(packed(weight)(x), x.double() @ weight.double().T) <= 1e-5


def test_a_tenth_of_the_weights_takes_little_memory() -> None:
    weight = random_weight(512, 2048, 0.1, 0, 15)
    dense = 4 * weight.numel()
    assert packed(weight).resident_bytes <= 0.16 * dense
    assert packed(weight, kind=Storage.INT8).resident_bytes <= 0.085 * dense
    assert packed(weight, kind=Storage.CODEBOOK4).resident_bytes <= 0.07 * dense


def test_few_rows_take_several_lanes_each() -> None:
    assert choose_split(np.full(3, 400), 16) == 16 and choose_split(np.full(1, 400), 16) == 16
    assert choose_split(np.full(400, 100), 16) == 1 and choose_split(np.zeros(0, np.int64), 8) == 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 80),
    density=st.sampled_from([0.0, 0.1, 0.6]),
    seed=st.integers(0, 99),
)
def test_every_non_zero_has_a_place_of_its_own(rows: int, columns: int, density: float, seed: int) -> None:
    row, column = random_weight(rows, columns, density, seed).nonzero(as_tuple=True)
    made = pack_slices(row.numpy(), column.numpy(), rows, columns, 16)
    assert len(set(made.place.tolist())) == len(row)
    assert np.array_equal(made.index[made.place], column.numpy())
    assert int(made.steps[..., 1].sum()) * 16 == len(made.index)


def pair(kind: Storage = Storage.FLOAT32) -> tuple[nn.Linear, VectorLinear]:
    dense = nn.Linear(50, 30)
    with torch.no_grad():
        dense.weight *= torch.rand(30, 50) < 0.2
    return dense, VectorLinear(dense.weight, dense.bias, stored=kind)


@pytest.mark.parametrize("shape", [(50,), (1, 50), (7, 50), (1, 1, 50), (2, 3, 50), (2, 0, 50), (0, 50), (100, 50)])
def test_inputs_of_any_rank_give_what_the_dense_layer_gives(shape: tuple[int, ...]) -> None:
    dense, sparse = pair()
    x = torch.randn(shape)
    y = sparse(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, dense(x).detach(), rtol=1e-5, atol=1e-5)


def test_inputs_with_any_strides_give_what_the_dense_layer_gives() -> None:
    dense, sparse = pair()
    for x in (
        torch.randn(50, 1).T,
        torch.randn(50, 9).T,
        torch.randn(1, 100)[:, ::2],
        torch.randn(100)[::2],
        torch.randn(18, 50)[::2],
        torch.randn(1).expand(50),
        torch.randn(50).expand(9, 50),
        torch.randn(9, 1, 50)[:, 0],
    ):
        torch.testing.assert_close(sparse(x), dense(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 50, dtype=torch.float64),
        torch.zeros(1, 49),
        torch.zeros(50, 1),
        torch.zeros(49),
        torch.zeros(()),
        torch.zeros(1, 50, device="meta"),
    ],
)
def test_other_inputs_are_refused_with_what_was_found(x: Tensor) -> None:
    _, sparse = pair()
    with pytest.raises(RuntimeError, match=r"expected \[\.\.\., 50\] torch\.float32 on cpu"):
        sparse(x)


def test_gradients_are_refused_only_where_they_are_asked_for() -> None:
    dense, sparse = pair()
    x = torch.randn(1, 50, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"\.trainable\(\)"):
        sparse(x)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), rtol=1e-5, atol=1e-5)


def test_outputs_are_new_tensors() -> None:
    _, sparse = pair()
    x = torch.randn(1, 50)
    first = sparse(x)
    kept = first.clone()
    sparse(torch.randn(1, 50))
    assert torch.equal(first, kept)


def test_copies_share_the_weight_and_nothing_is_pickled() -> None:
    _, sparse = pair()
    twin = copy.deepcopy(nn.Sequential(sparse))[0]
    assert twin is not sparse and twin.product is sparse.product
    with pytest.raises(TypeError, match="lower it again"):
        pickle.dumps(sparse.product)
    other = sparse.product.with_activation(Activation.RELU)
    x = torch.randn(1, 50)
    assert torch.equal(other(x), sparse(x).relu()) and sparse.product.activation is Activation.NONE


def test_it_has_no_parameters_and_says_what_it_holds() -> None:
    _, sparse = pair(Storage.INT8)
    assert not list(sparse.parameters()) and not sparse.state_dict()
    assert sparse.resident_bytes == sparse.product.resident_bytes > 0
    assert "in_features=50, out_features=30, sparsity=0." in repr(sparse) and "index, int8, none" in repr(sparse)


def test_two_python_threads_may_use_one_product(threads: int) -> None:
    weight = random_weight(200, 300, 0.1, 6)
    product = packed(weight)
    errors: list[float] = []

    def work(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for i in range(30):
            x = torch.randn(1 + i % 9, 300, generator=draw)
            errors.append(error(product(x), x.double() @ weight.double().T))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert threads and len(errors) == 60 and max(errors) <= 1e-5


def test_bitmaps_need_avx512() -> None:
    with pytest.raises(PlanError, match="expected AVX-512"):
        packed(random_weight(4, 5, 0.5, 0), level="generic", held=Positions.BITMAP)


def test_arm_code_consists_of_vector_instructions() -> None:
    text = assembly(Processor.neon(), VECTORS)
    assert "by_index:" in text and "by_bitmap:" not in text
    assert "fmla\tv" in text
