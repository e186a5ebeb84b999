"""What every kind of encoding promises, checked on every example in every dtype."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.encoding_examples import (
    MAKERS,
    Example,
    Maker,
    affine_ragged_groups,
    low_rank,
    masked_codebook,
    monarch,
    view_of_masked,
)
from torch import Tensor, nn

from gossamer.coding import Effort
from gossamer.encoding import Delta, Dense, Encoding, External, Leaf, Pattern, Ref, Role, link
from gossamer.encoding.serial import KINDS, flatten, unflatten
from gossamer.errors import CompositionError
from gossamer.network import Attached, attach, attached, harvest, specs
from gossamer.store import read_container, write_container

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cases(*dtypes: torch.dtype) -> Callable[[Any], Any]:
    every = [
        pytest.param(make, dtype, id=f"{make.__name__}-{str(dtype).removeprefix('torch.')}")
        for make in MAKERS
        for dtype in dtypes
    ]
    return pytest.mark.parametrize(("make", "dtype"), every)


all_dtypes = cases(*DTYPES)
float32_only = cases(torch.float32)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().contiguous().reshape(-1), b.detach().contiguous().reshape(-1)
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def same_trees(a: dict[str, Encoding], b: dict[str, Encoding]) -> bool:
    """Same structure, same sharing, same bits."""
    x, y = flatten(a), flatten(b)
    return (
        (x.kinds, x.nodes, x.roots, x.owner) == (y.kinds, y.nodes, y.roots, y.owner)
        and len(x.leaves) == len(y.leaves)
        and all(same_bits(p.tensor, q.tensor) for p, q in zip(x.leaves, y.leaves, strict=True))
    )


def trainable_copy(tree: Encoding) -> Encoding:
    """The tree over fresh leaves, of which exactly the trainable ones ask for a gradient."""
    return tree.map_leaves(lambda f: f.tensor.detach().clone().requires_grad_(f.role is Role.TRAINABLE))


class Holder(nn.Module):
    """A network of one weight of any shape, or of one buffer."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, *, buffer: bool = False) -> None:
        super().__init__()
        zeros = torch.zeros(shape, dtype=dtype)
        if buffer:
            self.register_buffer("w", zeros)
        else:
            self.w = nn.Parameter(zeros)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def held(example: Example, dtype: torch.dtype) -> tuple[Holder, tuple[Any, ...]]:
    fixed = any(isinstance(node, Dense) and node.fixed for _, node in example.tree.nodes())
    model = Holder(example.shape, dtype, buffer=fixed)
    found = specs(model)
    return attach(model, found, {"w": example.tree}), found  # type: ignore[return-value]


def is_attached(model: nn.Module) -> bool:
    return any(isinstance(m, Attached) for m in model.modules())


def test_every_kind_has_an_example() -> None:
    seen = {type(node) for make in MAKERS for _, node in make(Maker(torch.float32)).tree.nodes()}
    # A reference by name stands for nothing by itself; its contract is test_a_reference_... below, and that of
    # differences to another checkpoint in tests/encoding/test_delta.py.
    assert seen | {Ref, Delta, External} == set(KINDS.values())


def test_every_final_subclass_of_encoding_is_in_the_table_of_kinds() -> None:
    def below(kind: type[Encoding]) -> set[type[Encoding]]:
        return {kind} | {k for sub in kind.__subclasses__() for k in below(sub)}

    ours = {k for k in below(Encoding) if k.__module__.startswith("gossamer.")}
    concrete = {k for k in ours if not getattr(k, "__abstractmethods__", None)}
    assert concrete == set(KINDS.values())


@all_dtypes
def test_dense_shape_is_the_shape_of_to_dense(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    assert example.tree.dense_shape() == example.shape == tuple(example.tree.to_dense().shape)


@all_dtypes
def test_to_dense_is_deterministic_and_finite(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    first, second = make(Maker(dtype)).tree, make(Maker(dtype)).tree
    assert same_bits(first.to_dense(), first.to_dense())
    assert same_bits(first.to_dense(), second.to_dense())
    assert bool(first.to_dense().isfinite().all())


@all_dtypes
def test_gradients_reach_exactly_the_trainable_leaves(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = trainable_copy(make(Maker(dtype)).tree)
    leaves = list(tree.leaves())
    trainable = [f for f in leaves if f.role is Role.TRAINABLE]
    dense = tree.to_dense()
    assert dense.requires_grad == bool(trainable)
    if trainable:
        weights = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1))
        (dense.float() * weights).sum().backward()
    for f in leaves:
        assert (f.tensor.grad is not None) == (f.role is Role.TRAINABLE), f.path


@cases(torch.float64)
def test_gradients_agree_with_finite_differences(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = trainable_copy(make(Maker(dtype)).tree)
    distinct = {id(f.tensor): f.tensor for f in tree.leaves() if f.role is Role.TRAINABLE}
    order, inputs = list(distinct), tuple(distinct.values())

    def dense(*leaves: Tensor) -> Tensor:
        new = dict(zip(order, leaves, strict=True))
        return tree.map_leaves(lambda f: new.get(id(f.tensor), f.tensor)).to_dense()

    assert not inputs or torch.autograd.gradcheck(dense, inputs)


def test_indices_zero_points_and_buffers_never_train() -> None:
    roles = {
        (type(f.owner).__name__, f.field): f.role
        for make in MAKERS
        for f in make(Maker(torch.float32)).tree.leaves()
        if not (isinstance(f.owner, Dense) and not f.owner.fixed)
    }
    assert roles == {
        ("Dense", "array"): Role.FIXED,
        ("Affine", "q"): Role.INDEX,
        ("Affine", "zero_point"): Role.FIXED,
        ("Codebook", "index"): Role.INDEX,
        ("VectorCodebook", "index"): Role.INDEX,
        ("Drawn", "index"): Role.INDEX,
        ("NormalLevels", "index"): Role.INDEX,
        ("PowerLevels", "index"): Role.INDEX,
        ("PowerLevels", "exponent"): Role.FIXED,
        ("Mask", "bits_packed"): Role.INDEX,
        ("Blocks", "bits_packed"): Role.INDEX,
        ("NM", "choice"): Role.INDEX,
        ("KernelShapes", "choice"): Role.INDEX,
        ("KernelShapes", "shapes"): Role.INDEX,
        ("Permuted", "order"): Role.INDEX,
    }


@all_dtypes
def test_json_and_arrays_restore_the_tree_bit_for_bit(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = make(Maker(dtype)).tree
    flat = flatten({"w": tree})
    text = json.dumps([flat.kinds, flat.nodes, flat.roots], allow_nan=False)
    kinds, nodes, roots = json.loads(text)
    again = unflatten(kinds, nodes, roots, [f.tensor.clone() for f in flat.leaves])
    assert same_trees({"w": tree}, again)
    assert same_bits(tree.to_dense(), again["w"].to_dense())


@all_dtypes
def test_size_bits_is_the_formula(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    assert example.tree.size_bits() == example.bits


@float32_only
def test_every_example_is_valid_and_children_come_before_parents(
    make: Callable[[Maker], Example], dtype: torch.dtype
) -> None:
    tree = make(Maker(dtype)).tree
    flat = flatten({"w": tree})
    for i, (_, *fields) in enumerate(flat.nodes):
        assert all(1 <= back <= i for value in fields for back in _references(value))
    assert unflatten(
        flat.kinds, flat.nodes, flat.roots, [f.tensor for f in flat.leaves], most=tree.to_dense().numel() * 8
    )


def _references(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [value["n"]] if "n" in value else []
    return [n for v in value for n in _references(v)] if isinstance(value, list) else []


@float32_only
def test_identity_keeps_every_object(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = make(Maker(dtype)).tree
    assert tree.map_leaves(lambda f: f.tensor) is tree


@float32_only
def test_mapping_calls_once_per_leaf_and_keeps_sharing(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = make(Maker(dtype)).tree
    calls: list[int] = []

    def copy_leaf(f: Leaf) -> Tensor:
        calls.append(id(f.tensor))
        return f.tensor.clone()

    copied = tree.map_leaves(copy_leaf)
    assert len(calls) == len(set(calls)) == len({id(f.tensor) for f in tree.leaves()})
    assert same_trees({"w": tree}, {"w": copied})
    assert not {id(f.tensor) for f in copied.leaves()} & set(calls)


@float32_only
def test_at_and_put_are_inverse_at_every_node(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    tree = make(Maker(dtype)).tree
    for path, node in tree.nodes():
        assert tree.at(path) is node
        assert tree.put(path, node) is tree
        if isinstance(node, Dense):
            new = Dense(node.array + 1, node.fixed)
            assert tree.put(path, new).at(path) is new
            assert tree.at(path) is node


@all_dtypes
def test_attach_and_harvest_are_inverse(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    model, found = held(example, dtype)
    again = harvest(model, found, {"w": example.tree})
    assert same_trees({"w": example.tree}, again)
    mine, theirs = ({id(f.tensor) for f in t.leaves() if f.role is Role.TRAINABLE} for t in (example.tree, again["w"]))
    assert not mine & theirs


@all_dtypes
def test_attached_weight_is_the_dense_weight_in_its_dtype(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    model, _ = held(example, dtype)
    if model.w.shape == example.shape:  # otherwise channels were removed: checked with the methods that do so
        assert same_bits(model.w, example.tree.to_dense().to(dtype))
    assert model.w.dtype == dtype


@float32_only
def test_the_optimizer_sees_exactly_the_trainable_leaves(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    model, _ = held(example, dtype)
    if not is_attached(model):
        return
    small = attached(model)["w"].tree
    expected = {id(f.tensor) for f in small.leaves() if f.role is Role.TRAINABLE}
    assert {id(p) for p in model.parameters()} == expected
    assert sum(p.numel() for p in model.parameters()) == sum(
        {id(f.tensor): f.tensor.numel() for f in small.leaves() if f.role is Role.TRAINABLE}.values()
    )


@float32_only
def test_deepcopy_keeps_sharing_and_separates_networks(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    model, found = held(example, dtype)
    twin = copy.deepcopy(model)
    like = {"w": example.tree}
    assert same_trees(harvest(model, found, like), harvest(twin, found, like))
    before = model.w.detach().clone()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert same_bits(model.w, before)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}


@float32_only
def test_state_dict_carries_values_and_topology(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    target, found = held(make(Maker(dtype, seed=0)), dtype)
    example = make(Maker(dtype, seed=1))  # other masks, so other numbers of live values
    source, _ = held(example, dtype)
    like = {"w": example.tree}
    target.w.detach()  # fill the caches of positions
    target.load_state_dict(source.state_dict())
    assert same_bits(target.w, source.w)
    assert same_trees(harvest(target, found, like), harvest(source, found, like))


@float32_only
def test_half_and_double_reach_the_weight(make: Callable[[Maker], Example], dtype: torch.dtype) -> None:
    example = make(Maker(dtype))
    model, _ = held(example, dtype)
    reference = model.w.detach().clone()
    model.half()
    assert model.w.dtype == torch.float16
    assert {p.dtype for p in model.parameters()} <= {torch.float16}
    torch.testing.assert_close(model.w.float(), reference, rtol=0.02, atol=0.05)
    model.double()
    assert model.w.dtype == torch.float64
    assert {p.dtype for p in model.parameters()} <= {torch.float64}


@pytest.mark.parametrize(
    "make", [masked_codebook, low_rank, affine_ragged_groups, view_of_masked, monarch], ids=lambda m: m.__name__
)
def test_torch_export_traces_the_attached_weight(make: Callable[[Maker], Example]) -> None:
    model, _ = held(make(Maker(torch.float32)), torch.float32)
    x = torch.ones_like(model.w)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


@all_dtypes
@pytest.mark.parametrize("effort", ["best", "fast"])
def test_container_restores_the_tree_bit_for_bit(
    make: Callable[[Maker], Example], dtype: torch.dtype, effort: Effort, tmp_path: Path
) -> None:
    example = make(Maker(dtype))
    found = specs(Holder(example.shape, dtype))
    written = write_container(tmp_path / "w.gsm", found, {"w": example.tree}, effort=effort)
    container = read_container(tmp_path / "w.gsm", found)
    assert same_trees({"w": example.tree}, dict(container.trees))
    assert container.specs == found
    assert written == container.file_bytes == (tmp_path / "w.gsm").stat().st_size
    coded = sum(r.table + r.payload for r in container.records)
    assert coded + container.header_bytes + container.index_bytes == written


def test_patterns_speak_of_the_same_positions_in_every_form() -> None:
    for make in MAKERS:
        for _, node in make(Maker(torch.float32)).tree.nodes():
            if isinstance(node, Pattern):
                positions = node.positions()
                assert positions.dtype == torch.int32
                assert positions.tolist() == sorted(set(positions.tolist()))
                assert node.mask().reshape(-1).nonzero().squeeze(1).tolist() == positions.tolist()
                assert torch.equal(node.to_dense(), node.mask())


def test_a_reference_stands_for_nothing_until_linked_and_is_the_object_itself_then() -> None:
    m = Maker(torch.float32)
    first = m.dense(2, 3)
    trees: dict[str, Encoding] = {"b": Ref("a", (2, 3)), "a": first}
    with pytest.raises(CompositionError, match="'a'"):
        trees["b"].to_dense()
    linked = link(trees)
    assert linked["a"] is linked["b"] is first
    flat = flatten(trees)
    assert same_trees(trees, unflatten(flat.kinds, flat.nodes, flat.roots, [f.tensor for f in flat.leaves]))
