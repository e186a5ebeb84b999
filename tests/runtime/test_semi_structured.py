"""The compressed layout against PyTorch's own converter, which runs on CPUs, and back."""

from __future__ import annotations

import pytest
import torch
from methods.harness import one
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from gossamer.errors import CompositionError
from gossamer.methods.prune import Magnitude, NofM
from gossamer.runtime.latency_table import latency_table
from gossamer.runtime.semi_structured import to_semi_structured


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (96, 128)], ids=str)
def test_values_and_metadata_are_those_of_torch(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tree = one(Magnitude(structure=NofM(2, 4)), torch.randn(shape))
    found = to_semi_structured(tree, dtype)
    values, metadata = sparse_semi_structured_from_dense_cutlass(tree.to_dense().to(dtype))
    assert torch.equal(found.values, values)
    assert torch.equal(found.metadata, metadata)
    assert found.order is None


def test_a_reordered_weight_comes_with_its_order_and_computes_the_same() -> None:
    torch.manual_seed(1)
    tree = one(Magnitude(structure=NofM(2, 4, permute=True)), torch.randn(32, 32))
    found = to_semi_structured(tree, torch.float16)
    assert found.order is not None
    dense = sparse_semi_structured_to_dense_cutlass(found.values, found.metadata)
    assert torch.equal(dense, tree.to_dense().half()[:, found.order])


def test_kept_zeros_keep_their_place() -> None:
    w = torch.zeros(32, 32)
    w[:, 3] = 1.0
    tree = one(Magnitude(structure=NofM(2, 4)), w)
    found = to_semi_structured(tree)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(found.values, found.metadata), w.half())


def test_what_is_not_two_of_four_is_refused() -> None:
    w = torch.randn(32, 16)
    with pytest.raises(CompositionError, match="expected Masked over NM 2:4"):
        to_semi_structured(one(Magnitude(sparsity=0.5), w))
    with pytest.raises(CompositionError, match="multiples of 32 × 32"):
        to_semi_structured(one(Magnitude(structure=NofM(2, 4)), w[:8]))
    with pytest.raises(CompositionError, match="float16 or bfloat16"):
        to_semi_structured(one(Magnitude(structure=NofM(2, 4)), w), torch.float32)


def test_a_latency_table_has_every_layer_up_to_density_one() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    table = latency_table(net, torch.zeros(2, 16), (0.1, 0.3))
    assert [name for name, _ in table.layers] == ["0.weight", "2.weight"]
    assert all(points[-1][0] == 1.0 and all(ms > 0 for _, ms in points) for _, points in table.layers)
    assert Magnitude(ms=1e6, latency=table).ms == 1e6
