"""Files saved in a hurry: the same weights, little more bytes; in memory and streamed the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gossamer as gs
from gossamer.coding import Coder, Effort
from gossamer.drive.checkpoint import CheckpointSource
from gossamer.drive.recipe import Recipe
from gossamer.drive.stream import stream
from gossamer.errors import PlanError
from gossamer.store.checkpoint import open_checkpoint
from gossamer.store.layout import JOINT
from gossamer.store.pieces import code_tensor

EFFORTS: tuple[Effort, ...] = ("fast", "best")
SPARSE: Recipe = (gs.prune.Magnitude(sparsity=0.8), gs.quantize.RoundToNearest(bits=8, group="tensor"))
GROUPED: Recipe = (gs.quantize.RoundToNearest(bits=4, group=32),)


def network(width: int = 200, scale: float = 5.0) -> nn.Module:
    """Rows of very different size, so that classes pay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 30), nn.Conv2d(1, 4, 3))
    with torch.no_grad():
        model[0].weight *= torch.exp2(scale * torch.rand(width, 1))
    return model


@pytest.mark.parametrize("recipe", [SPARSE, GROUPED, (gs.share.KMeans(bits=3),)], ids=["sparse", "grouped", "shared"])
def test_the_weights_are_the_same_and_the_file_is_little_larger(recipe: Recipe, tmp_path: Path) -> None:
    made = gs.compress(network(), recipe)
    best, fast = made.save(tmp_path / "best.gsm"), made.save(tmp_path / "fast.gsm", effort="fast")
    assert best <= fast <= 1.25 * best
    one, other = (gs.load(tmp_path / f"{name}.gsm").state_dict() for name in ("best", "fast"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    gs.load(tmp_path / "fast.gsm").save(tmp_path / "again.gsm")  # what is read can be written as small as ever
    assert (tmp_path / "again.gsm").read_bytes() == (tmp_path / "best.gsm").read_bytes()


def test_classes_and_masks_with_their_values_are_left_out() -> None:
    tree = gs.compress(network(scale=1.5), SPARSE).trees["0.weight"]
    coders = {effort: [p.entry[2] for p in code_tensor("0.weight", tree, {}, effort).parts] for effort in EFFORTS}
    assert JOINT in coders["best"]
    assert Coder.SHORT in coders["fast"]
    assert JOINT not in coders["fast"]


@pytest.mark.parametrize("width", [200, 2000], ids=["small", "large"])
def test_streaming_gives_the_file_of_the_run_in_memory(width: int, tmp_path: Path) -> None:
    model = network(width)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    gs.compress(model, SPARSE).save(tmp_path / "memory.gsm", effort="fast")
    shards = open_checkpoint(tmp_path / "weights.safetensors")
    source = CheckpointSource(shards, model)
    stream(source, SPARSE, tmp_path / "streamed.gsm", identity=shards.identity(), effort="fast")
    assert (tmp_path / "streamed.gsm").read_bytes() == (tmp_path / "memory.gsm").read_bytes()


def test_another_effort_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = gs.compress(network(20), GROUPED)
    with pytest.raises(PlanError, match="effort: found 'slow'"):
        made.save(tmp_path / "a.gsm", effort="slow")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
