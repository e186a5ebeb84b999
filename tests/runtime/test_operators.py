"""Small operators compute what the dense rebuild computes, in all directions, and behave like any other module."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.encoding import CP, Dense, Encoding, LowRank, Mask, Masked, Monarch, Role, Sum, TensorTrain, Tucker
from gossamer.runtime.operators import MonarchLinear, TensorTrainLinear, factorized, name_of, operator_of


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dense:
    random = torch.Generator().manual_seed(seed + 31 * sum(shape))
    return Dense(torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype))


def sparse(*shape: int) -> Masked:
    w = numbers(*shape).array
    where = Mask.of(w > 0.8)
    return Masked(where, Dense(w.view(-1)[where.positions().long()]))


MATRICES: dict[str, Callable[[], Encoding]] = {
    "low rank": lambda: LowRank(numbers(12, 3), numbers(3, 20)),
    "tucker": lambda: Tucker(numbers(4, 5), (numbers(12, 4), numbers(20, 5))),
    "tucker, outputs only": lambda: Tucker(numbers(4, 20), (numbers(12, 4), None)),
    "tucker, inputs only": lambda: Tucker(numbers(12, 5), (None, numbers(20, 5))),
    "cp": lambda: CP((numbers(12, 3), numbers(20, 3))),
    "tensor train": lambda: TensorTrain((numbers(1, 2, 5, 3), numbers(3, 3, 2, 4), numbers(4, 2, 2, 1))),
    "tensor train of one": lambda: TensorTrain((numbers(1, 12, 20, 1),)),
    "tensor train, wide middle": lambda: TensorTrain((numbers(1, 1, 4, 3), numbers(3, 12, 1, 2), numbers(2, 1, 5, 1))),
    "monarch": lambda: Monarch(numbers(4, 3, 5), numbers(5, 4, 4)),
    "sum": lambda: Sum((LowRank(numbers(12, 3), numbers(3, 20)), sparse(12, 20))),
    "sum, sparse first": lambda: Sum((sparse(12, 20), Monarch(numbers(4, 3, 5), numbers(5, 4, 4)))),
}
ROWS = {k: v for k, v in MATRICES.items() if not k.startswith(("tucker", "cp"))}


def linear(tree: Encoding, *, bias: bool = True) -> nn.Linear:
    out, into = tree.dense_shape()
    layer = nn.Linear(into, out, bias=bias, dtype=torch.float64)
    layer.weight = nn.Parameter(tree.to_dense().detach())
    return layer


def made(tree: Encoding, layer: nn.Module) -> nn.Module:
    operator = operator_of(tree, layer)
    assert operator is not None
    return operator


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * (largest + 1))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("outer", [(), (0,), (1,), (7,), (2, 3)])
def test_linear_operators_equal_the_dense_layer(name: str, outer: tuple[int, ...]) -> None:
    for bias in (True, False):
        layer = linear(MATRICES[name](), bias=bias)
        x = torch.randn(*outer, 20, dtype=torch.float64)
        same(made(MATRICES[name](), layer)(x), layer(x))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_trains_of_any_shape_equal_the_dense_layer(links: list[tuple[int, int, int]], batch: int) -> None:
    ranks = [1, *(r for _, _, r in links[:-1]), 1]
    tree = TensorTrain(tuple(numbers(ranks[i], m, n, ranks[i + 1], seed=i) for i, (m, n, _) in enumerate(links)))
    layer = linear(tree)
    x = torch.randn(batch, layer.in_features, dtype=torch.float64)
    same(made(tree, layer)(x), layer(x))
    table = nn.Embedding(*tree.dense_shape(), dtype=torch.float64, _weight=tree.to_dense())
    index = torch.arange(table.num_embeddings)
    same(made(tree, table)(index), tree.to_dense())


@given(
    kind=st.sampled_from(["low rank", "tucker", "tucker, one side", "cp", "sum"]),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    batch=st.integers(0, 2),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=30, deadline=None)
def test_convolutions_equal_the_dense_layer(
    kind: str,
    kernel: list[int],
    stride: int,
    padding: int | str,
    dilation: int,
    bias: bool,
    batch: int,
    dtype: torch.dtype,
) -> None:
    if padding == "same":  # with even kernels torch warns of a slow copy, dense or not
        kernel, stride = [k | 1 for k in kernel], 1
    trees: dict[str, Encoding] = {
        "low rank": LowRank(numbers(6, 3), numbers(3, 5, *kernel)),
        "tucker": Tucker(numbers(4, 2, *kernel), (numbers(6, 4), numbers(5, 2), *[None] * len(kernel))),
        "tucker, one side": Tucker(numbers(4, 5, *kernel), (numbers(6, 4), *[None] * (len(kernel) + 1))),
        "cp": CP((numbers(6, 3), numbers(5, 3), *(numbers(k, 3, seed=i) for i, k in enumerate(kernel)))),
        "sum": Sum((LowRank(numbers(6, 3), numbers(3, 5, *kernel)), sparse(6, 5, *kernel))),
    }
    tree = trees[kind]
    convolution = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    layer = convolution(5, 6, tuple(kernel), stride, padding, dilation, bias=bias, dtype=dtype)  # type: ignore[arg-type]
    layer.weight = nn.Parameter(tree.to_dense().detach().to(dtype))
    x = torch.randn(batch, 5, *[7] * len(kernel), dtype=dtype)
    same(made(tree, layer)(x), layer(x), 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_embeddings_look_rows_up(name: str) -> None:
    tree = ROWS[name]()
    table = nn.Embedding(12, 20, dtype=torch.float64, _weight=tree.to_dense().detach())
    operator = made(tree, table)
    for index in (torch.arange(12), torch.tensor([[3, 3], [0, 11]]), torch.tensor(5), torch.empty(0, dtype=torch.long)):
        same(operator(index), table(index))
    same(operator(torch.tensor([3, 4], dtype=torch.int32)), table(torch.tensor([3, 4])))
    for bad in (12, -1, 50):
        with pytest.raises((IndexError, RuntimeError)):
            operator(torch.tensor([bad]))


def test_tucker_factors_on_the_kernel_too() -> None:
    tree = Tucker(numbers(3, 2, 2, 1), (numbers(6, 3), numbers(5, 2), numbers(3, 2), numbers(3, 1)))
    layer = nn.Conv2d(5, 6, 3, dtype=torch.float64)
    layer.weight = nn.Parameter(tree.to_dense())
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    same(made(tree, layer)(x), layer(x))


def trainable(tree: Encoding) -> Encoding:
    return tree.map_leaves(lambda f: nn.Parameter(f.tensor.clone()) if f.role is Role.TRAINABLE else f.tensor)


def by_size(tensors: list[Tensor]) -> list[Tensor]:
    return sorted((t.flatten().sort().values for t in tensors), key=lambda t: (len(t), float(t.abs().sum())))


@pytest.mark.parametrize("name", [n for n in MATRICES if not n.startswith("sum")])
def test_gradients_are_those_of_the_dense_rebuild(name: str) -> None:
    tree = trainable(MATRICES[name]())
    layer = linear(tree)
    operator = made(tree, layer)
    x, y = (torch.randn(4, 20, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    bias = layer.bias.detach().clone().requires_grad_()
    target = torch.randn(4, 12, dtype=torch.float64)
    ((nn.functional.linear(x, tree.to_dense(), bias) - target) ** 2).sum().backward()
    ((operator(y) - target) ** 2).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    same(y.grad, x.grad)
    # Some factors lie transposed in the operator: the same numbers in another order.
    expected = by_size([f.tensor.grad for f in tree.leaves() if f.tensor.grad is not None] + [bias.grad])  # type: ignore[list-item]
    found = by_size([p.grad for p in operator.parameters() if p.grad is not None])
    assert len(found) == len(expected) == len(list(operator.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("name", ["tucker", "cp"])
def test_gradients_of_convolutions_are_those_of_the_dense_rebuild(name: str) -> None:
    factors = (numbers(6, 3), numbers(5, 3), numbers(3, 3), numbers(2, 3))
    tree = trainable(CP(factors) if name == "cp" else Tucker(numbers(3, 3, 3, 2), (*factors[:2], None, None)))
    layer = nn.Conv2d(5, 6, (3, 2), stride=(2, 1), padding=1, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(tree.to_dense().detach())
    operator = made(tree, layer)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    nn.functional.conv2d(x, tree.to_dense(), None, (2, 1), 1).square().sum().backward()
    operator(x).square().sum().backward()
    expected = by_size([f.tensor.grad for f in tree.leaves() if f.tensor.grad is not None])
    found = by_size([p.grad for p in operator.parameters() if p.grad is not None])
    assert len(found) == len(expected) == len(list(tree.leaves()))
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("name", ["tensor train", "monarch"])
def test_gradients_of_embeddings_are_those_of_the_dense_rebuild(name: str) -> None:
    tree = trainable(ROWS[name]())
    operator = made(tree, nn.Embedding(12, 20, dtype=torch.float64))
    index = torch.tensor([1, 5, 5, 11])
    nn.functional.embedding(index, tree.to_dense()).square().sum().backward()
    operator(index).square().sum().backward()
    for leaf, parameter in zip(tree.leaves(), operator.parameters(), strict=True):
        assert leaf.tensor.grad is not None
        assert parameter.grad is not None
        same(parameter.grad, leaf.tensor.grad)


@pytest.mark.parametrize("name", MATRICES)
def test_operators_export_with_any_batch(name: str) -> None:
    operator = made(MATRICES[name](), linear(MATRICES[name]()))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(operator, (torch.randn(3, 20, dtype=torch.float64),), dynamic_shapes=({0: batch},))
    x = torch.randn(9, 20, dtype=torch.float64)
    same(program.module()(x), operator(x))


@pytest.mark.parametrize("name", ["tensor train", "monarch"])
def test_lookups_export(name: str) -> None:
    operator = made(ROWS[name](), nn.Embedding(12, 20, dtype=torch.float64))
    index = torch.tensor([[1, 2, 11]])
    same(torch.export.export(operator, (index,)).module()(index), operator(index))


@pytest.mark.parametrize("name", MATRICES)
def test_copies_are_independent_and_states_load(name: str) -> None:
    operator = made(MATRICES[name](), linear(MATRICES[name]()))
    x = torch.randn(3, 20, dtype=torch.float64)
    before = operator(x).detach()
    copied = copy.deepcopy(operator)
    with torch.no_grad():
        for p in copied.parameters():
            p.add_(1.0)
    same(operator(x), before)
    assert not torch.allclose(copied(x), before)
    copied.load_state_dict(operator.state_dict())
    same(copied(x), before)
    assert {n for n, _ in operator.named_parameters()} == set(operator.state_dict())


def test_an_operator_owns_its_factors_and_draws_no_random_numbers() -> None:
    tree = MATRICES["low rank"]()
    layer = linear(tree)
    state = torch.random.get_rng_state()
    operator = made(tree, layer)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        for p in operator.parameters():
            p.zero_()
    assert bool(tree.to_dense().any())
    assert bool(layer.bias.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operators_run_in_the_layers_own_dtype(dtype: torch.dtype) -> None:
    for tree in (MATRICES["tensor train"](), MATRICES["monarch"]()):
        layer = linear(tree).to(dtype)
        x = torch.randn(3, 20).to(dtype)
        with torch.no_grad():
            found, expected = made(tree, layer)(x), layer(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_the_order_of_a_train_is_the_cheapest_of_all() -> None:
    shapes = [(1, 7, 2, 5), (5, 1, 9, 3), (3, 4, 1, 6), (6, 2, 5, 1)]
    layer = TensorTrainLinear([torch.zeros(s) for s in shapes], None)

    def macs(order: tuple[int, ...]) -> int:
        """Every index is a letter; a step costs the product of all letters that it touches."""
        sizes, held, total = {}, {f"n{k}" for k in range(4)}, 0
        for k, (r, m, n, s) in enumerate(shapes):
            sizes |= {f"b{k}": r, f"m{k}": m, f"n{k}": n, f"b{k + 1}": s}
        for k in order:
            core = {f"b{k}", f"m{k}", f"n{k}", f"b{k + 1}"}
            product = 1
            for letter in held | core:
                product *= sizes[letter]
            total += product
            held ^= core
        return total

    assert layer.macs == macs(layer.order) == min(macs(o) for o in itertools.permutations(range(4)))
    assert layer.order not in ((0, 1, 2, 3), (3, 2, 1, 0))


def test_a_chain_too_long_to_compare_orders_runs_from_the_left() -> None:
    tree = TensorTrain(tuple(numbers(1 if k == 0 else 2, 1 + k % 2, 2, 1 if k == 10 else 2, seed=k) for k in range(11)))
    layer = linear(tree)
    operator = made(tree, layer)
    assert isinstance(operator, TensorTrainLinear)
    assert operator.order == tuple(range(11))
    x = torch.randn(2, 2048, dtype=torch.float64)
    same(operator(x), layer(x))


def test_whole_weights_and_layers_of_other_kinds_have_no_operator() -> None:
    tree = MATRICES["low rank"]()
    assert name_of(numbers(12, 20)) is None
    assert not factorized(sparse(12, 20))
    assert not factorized(Sum((sparse(12, 20), numbers(12, 20))))
    assert operator_of(numbers(12, 20), linear(tree)) is None
    assert operator_of(tree, nn.Bilinear(12, 20, 2)) is None
    filters = LowRank(numbers(6, 3), numbers(3, 5, 3))
    assert operator_of(filters, nn.Conv1d(5, 6, 3, padding=1, padding_mode="circular")) is None
    assert operator_of(filters, nn.Conv1d(10, 6, 3, groups=2)) is None
    assert operator_of(tree, nn.Embedding(12, 20, max_norm=1.0)) is None


def test_a_monarch_layer_holds_only_its_blocks() -> None:
    layer = made(MATRICES["monarch"](), linear(MATRICES["monarch"]()))
    assert isinstance(layer, MonarchLinear)
    assert sum(p.numel() for p in layer.parameters()) == 12 * 5 + 20 * 4 + 12
