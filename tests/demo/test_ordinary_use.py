"""What people do with a library on an ordinary day, and what must not surprise them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.methods.base import Method
from gossamer.store import read_container, write_container


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)


class Counted:
    """Batches that count how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(4):
            self.taken += 1
            yield torch.randn(8, 64), torch.randint(0, 10, (8,))


def test_training_the_original_further_does_not_change_what_was_compressed() -> None:
    model = mlp()
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5, only="0.weight")])
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    small.state_dict()["2.bias"].zero_()
    assert torch.equal(small.state_dict()["2.bias"], before["2.bias"])


def test_frozen_layers_stay_frozen() -> None:
    model = mlp()
    model[0].requires_grad_(False)  # type: ignore[index]
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5)])
    trains = {n: p.requires_grad for n, p in small.trainable().named_parameters()}
    assert not any(flag for name, flag in trains.items() if name.startswith("0."))
    assert all(flag for name, flag in trains.items() if name.startswith("2."))
    assert not small.dense()[0].weight.requires_grad  # type: ignore[index]
    old = small.dense()[0].weight.detach().clone()  # type: ignore[index]
    tuned = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5), gs.Tune(lr=0.1)], data=Counted())
    assert torch.equal(tuned.dense()[0].weight, old)  # type: ignore[index]


def test_a_pattern_for_a_part_of_the_network_leaves_its_norms_and_biases_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5, only=("0.*", "1.*"))])
    zeros = {n: float((v == 0).float().mean()) for n, v in small.state_dict().items() if v.is_floating_point()}
    assert zeros["0.weight"] == 0.5
    assert zeros["1.weight"] == zeros["0.bias"] == zeros["2.weight"] == 0.0
    named = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5, only=("*.bias", "1.weight"))]).state_dict()
    assert float((named["0.bias"] == 0).float().mean()) == 0.5
    assert float((named["1.weight"] == 0).float().mean()) == 0.5


@pytest.mark.parametrize(
    "recipe",
    [
        [gs.prune.Magnitude(sparsity=0.5), gs.Tune(), gs.share.KMeans(bits=4), gs.prune.Magnitude(sparsity=0.7)],
        [gs.Tune(), gs.prune.Magnitude(sparsity=0.5, only="layer7.*")],
        [gs.Gradual(methods=(gs.prune.Magnitude(sparsity=0.5),), updates=2), gs.factorize.SVD(rank=4)],
    ],
    ids=["order", "name", "after gradual"],
)
def test_a_recipe_that_cannot_work_is_refused_before_any_training(recipe: list[Method]) -> None:
    data = Counted()
    with pytest.raises(gs.CompositionError, match=r"recipe entry \d"):
        gs.compress(mlp(), recipe, data=data)
    assert data.taken == 0


def test_things_that_are_no_methods_are_refused_by_name() -> None:
    with pytest.raises(gs.PlanError, match="found 'prune'"):
        gs.compress(mlp(), ["prune"])  # type: ignore[list-item]
    with pytest.raises(gs.PlanError, match="structure"):
        gs.prune.Magnitude(sparsity=0.5, structure="rows")  # type: ignore[arg-type]
    with pytest.raises(gs.PlanError, match="degrees"):
        gs.Gradual(methods=(gs.share.KMeans(bits=4),))


def test_layers_of_an_unknown_kind_are_listed_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Bilinear(8, 8, 8))
    skipped = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5)]).skipped
    assert "kind of layer is not known" in skipped["1.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
def test_low_rank_layers_lower_in_every_dtype(dtype: torch.dtype) -> None:
    made = gs.compress(mlp(dtype), [gs.factorize.SVD(rank=4)])
    inputs = torch.randn(3, 64, dtype=dtype)
    expected = made.dense()(inputs)
    assert torch.allclose(made.lower(inputs)(inputs), expected, atol=3e-2 if dtype is torch.bfloat16 else 1e-8)


def test_a_parent_that_reads_its_layers_weights_still_runs_after_lowering() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    made = gs.compress(layer, [gs.prune.Magnitude(sparsity=0.97, only="linear*")])
    inputs = torch.randn(2, 5, 64)
    with torch.inference_mode():
        expected = made.dense()(inputs)
    fast = made.lower(inputs)
    assert torch.allclose(fast(inputs), expected, atol=1e-5)
    assert {c.layer for c in fast.explain()} >= {"linear1", "linear2"}


def test_a_layer_that_is_used_twice_is_lowered_in_both_places() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(256, 256)
    made = gs.compress(nn.Sequential(shared, nn.ReLU(), shared), [gs.prune.Magnitude(sparsity=0.97)])
    fast = made.lower(torch.randn(64, 256))
    assert type(fast.network[0]) is type(fast.network[2])  # type: ignore[index]
    inputs = torch.randn(3, 256)
    assert torch.allclose(fast(inputs), made.dense()(inputs), atol=1e-5)


def test_lowering_a_trainable_network_says_to_harvest_first() -> None:
    small = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.9)])
    with pytest.raises(gs.CompositionError, match="harvest"):
        gs.lower(small.trainable(), torch.randn(2, 64))  # type: ignore[operator]


def test_ragged_blocks_count_as_many_weights_as_they_have() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 70), nn.Linear(70, 10))
    for size, scope in ((4, "global"), (4, "lamp"), (16, "lamp")):
        block = gs.prune.Block(height=size, width=size)
        small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5, structure=block, scope=scope)])  # type: ignore[arg-type]
        live = sum(int((small.state_dict()[f"{i}.weight"] != 0).sum()) for i in range(3))
        assert abs(live - 2850) <= 2 * size * size


def test_the_ledger_of_a_loaded_file_is_that_files(tmp_path: Path) -> None:
    small = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.5)])
    written = small.save(tmp_path / "a.gsm", plan=True)
    assert gs.load(tmp_path / "a.gsm").ledger().file_bytes == written
    assert small.save(tmp_path / "b.gsm") < written


def test_forged_notes_are_a_format_error(tmp_path: Path) -> None:
    small = gs.compress(mlp(), [gs.prune.Magnitude(sparsity=0.5)])
    for notes in ({"skipped": [1]}, {"skipped": {"a": 1}}):
        write_container(tmp_path / "a.gsm", small.specs, small.trees, notes)
        with pytest.raises(gs.FormatError, match="notes"):
            read_container(tmp_path / "a.gsm")


def test_a_causal_mask_with_minus_infinity_is_no_reason_to_refuse() -> None:
    model = mlp()
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5)])
    assert torch.equal(small.dense().mask, model.mask)
