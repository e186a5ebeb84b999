"""Streaming gives the bytes of the run in memory, survives kills and full disks, and refuses bad input early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer as gs
from gossamer.coding import Effort
from gossamer.drive.checkpoint import CheckpointSource
from gossamer.drive.estimate import estimate
from gossamer.drive.recipe import Recipe
from gossamer.drive.stream import Streamed, stream
from gossamer.drive.tune import Tune
from gossamer.encoding import Kind
from gossamer.errors import CompositionError, DataError, FormatError, GossamerError, PlanError
from gossamer.methods.factorize import SVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RateDistortion
from gossamer.methods.share import KMeans
from gossamer.methods.shrink import Channels
from gossamer.store import read_container
from gossamer.store.checkpoint import open_checkpoint

RECIPE = (Magnitude(sparsity=0.8, scope="global"), KMeans(bits=3))
YAML = "- prune.Magnitude: {sparsity: 0.8, scope: global}\n- share.KMeans: {bits: 3}\n"


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(5)]
    return nn.Sequential(nn.Embedding(50, width), *layers, nn.Linear(width, 7))


def sharded(model: nn.Module, folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    tensors = list(model.state_dict().items())
    weight_map = {}
    for i in range(count):
        mine = dict(tensors[i * len(tensors) // count : (i + 1) * len(tensors) // count])
        save_file(mine, folder / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(mine, f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """17 MB: above the size from which files are written piece by piece."""
    model = network(920)
    return model, sharded(model, tmp_path_factory.mktemp("large") / "checkpoint")


def run(
    folder: Path,
    out: Path,
    recipe: Recipe = RECIPE,
    model: nn.Module | None = None,
    *,
    resume: bool = False,
    effort: Effort = "best",
) -> Streamed:
    shards = open_checkpoint(folder)
    source = CheckpointSource(shards, model)
    bind = (lambda m: m) if model is None else (lambda m: m.bind(model, None))
    return stream(source, recipe, out, identity=shards.identity(), bind=bind, resume=resume, effort=effort)


def test_a_large_checkpoint_gives_the_bytes_of_the_run_in_memory(large: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = large
    gs.compress(model, RECIPE).save(tmp_path / "memory.gsm")
    run(folder, tmp_path / "streamed.gsm", model=model)
    assert (tmp_path / "streamed.gsm").read_bytes() == (tmp_path / "memory.gsm").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory.gsm", "streamed.gsm"]
    again = gs.load(tmp_path / "streamed.gsm", into=lambda: network(920))
    assert torch.equal(again.dense()[1][0].weight, gs.compress(model, RECIPE).dense()[1][0].weight)
    assert load_file(tmp_path / "streamed.gsm")["gsm.index"].numel() > 0  # any safetensors reader opens it


@pytest.mark.filterwarnings("ignore:.* bytes at the nearest price")
@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        (KMeans(bits=3, network_wide=True),),
        (Channels(sparsity=0.5), Magnitude(sparsity=0.5, scope="lamp")),
        (RateDistortion(target=2600),),
        (SVD(rank=4), Magnitude(sparsity=0.5, scope="global"), KMeans(bits=2)),
    ],
    ids=["prune-share", "one-codebook", "channels-prune", "one-price", "factors-prune-share"],
)
def test_a_small_checkpoint_gives_the_bytes_of_the_run_in_memory(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    folder = sharded(model, tmp_path / "checkpoint", 2)
    gs.compress(model, recipe).save(tmp_path / "memory.gsm")
    done = run(folder, tmp_path / "streamed.gsm", recipe, model)
    assert (tmp_path / "streamed.gsm").read_bytes() == (tmp_path / "memory.gsm").read_bytes()
    assert [p["method"] for p in done.plans] == [type(m).__name__ for m in recipe]


def test_a_codebook_shared_by_all_tensors_is_written_once_also_in_large_files(
    large: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, folder = large
    recipe = [KMeans(bits=2, network_wide=True)]
    gs.compress(model, recipe).save(tmp_path / "memory.gsm")
    run(folder, tmp_path / "streamed.gsm", recipe, model)
    assert (tmp_path / "streamed.gsm").read_bytes() == (tmp_path / "memory.gsm").read_bytes()
    trees = read_container(tmp_path / "streamed.gsm").trees
    tables = {id(t.at("/table")) for n, t in trees.items() if n.endswith("weight") and t.dense_shape()[1:]}
    assert len(tables) == 1


def test_kinds_are_inferred_from_names_and_shapes(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": (9, 4),
        "transformer.wte.weight": (9, 4),
        "layers.0.q_proj.weight": (4, 4),
        "layers.0.q_proj.bias": (4,),
        "layers.0.input_layernorm.weight": (4,),
        "ln_f.weight": (4,),
        "conv.weight": (4, 2, 3),
        "A_log": (4,),
    }
    save_file({n: torch.ones(s) for n, s in shapes.items()} | {"count": torch.tensor(3)}, tmp_path / "a.safetensors")
    found = {s.name: s.kind for s in CheckpointSource(open_checkpoint(tmp_path)).specs()}
    kinds = [Kind.EMBEDDING, Kind.EMBEDDING, Kind.LINEAR, Kind.BIAS, Kind.NORM, Kind.NORM, Kind.CONV, Kind.OTHER]
    assert found == {**dict(zip(shapes, kinds, strict=True)), "count": Kind.BUFFER}


CHILD = """
    import sys
    from pathlib import Path
    from gossamer.cli.main import run
    run(["compress", sys.argv[1], "--recipe", sys.argv[2], "-o", sys.argv[3], "--quiet", *sys.argv[4:]])
"""
FULL = """
    import resource, signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
"""


def child(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_without_redoing_what_is_finished(
    blow: signal.Signals, large: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    _, folder = large
    run(folder, tmp_path / "whole.gsm")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out.gsm"
    recipe.write_text(YAML)
    journal, part = tmp_path / "out.gsm.journal", tmp_path / "out.gsm.part"
    with child(textwrap.dedent(CHILD), folder, recipe, out) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
            time.sleep(0.001)
        process.send_signal(blow)
        process.communicate(timeout=120)
    assert process.returncode != 0
    assert not out.exists()
    assert part.exists()
    before = journal.read_bytes()
    with pytest.raises(PlanError, match="unfinished run, expected none: add --resume"):
        run(folder, out)
    assert journal.read_bytes() == before
    done = run(folder, out, resume=True)
    assert done.resumed >= before.count(b'"piece"') - 1 >= 1
    assert out.read_bytes() == (tmp_path / "whole.gsm").read_bytes()
    assert not journal.exists()
    assert not part.exists()


def test_a_full_disk_leaves_what_is_finished_and_the_run_goes_on(large: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = large
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out.gsm"
    recipe.write_text(YAML)
    with child(textwrap.dedent(FULL) + textwrap.dedent(CHILD), folder, recipe, out) as process:
        said = process.communicate()[1]
    assert process.returncode == 2
    assert "make room and add --resume" in said
    assert not out.exists()
    assert run(folder, out, resume=True).resumed >= 1
    run(folder, tmp_path / "whole.gsm")
    assert out.read_bytes() == (tmp_path / "whole.gsm").read_bytes()


def stopped(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails after three tensors."""
    from gossamer.store.writer import PieceWriter

    add, count = PieceWriter.add, []

    def failing(self: PieceWriter, piece: object) -> object:
        count.append(1)
        if len(count) > 3:
            raise KeyboardInterrupt
        return add(self, piece)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PieceWriter, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)


def test_a_run_that_stops_while_arrays_are_moved_up_leaves_the_old_file_and_what_is_finished(
    large: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.store.writer import PieceWriter

    _, folder = large
    out = tmp_path / "out.gsm"
    out.write_bytes(b"old")

    def half(self: PieceWriter, file: BinaryIO) -> int:
        assert self.blank
        file.seek(self.blank)
        file.write(b"half of it")
        file.truncate()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PieceWriter, "close_room", half)
        with pytest.raises(KeyboardInterrupt):
            run(folder, out)
    assert out.read_bytes() == b"old"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out.gsm", "out.gsm.journal", "out.gsm.part"]
    specs = CheckpointSource(open_checkpoint(folder), None).specs()
    assert run(folder, out, resume=True).resumed == len(specs)
    run(folder, tmp_path / "whole.gsm")
    assert out.read_bytes() == (tmp_path / "whole.gsm").read_bytes()


def test_another_input_recipe_or_damaged_part_is_not_resumed(
    large: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = large
    out = tmp_path / "out.gsm"
    stopped(folder, out, monkeypatch)
    with pytest.raises(PlanError, match="another recipe"):
        run(folder, out, [KMeans(bits=3)], resume=True)
    with pytest.raises(PlanError, match="another effort"):
        run(folder, out, resume=True, effort="fast")
    shard = folder / "model-1.safetensors"
    was = shard.stat()
    os.utime(shard, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    with pytest.raises(PlanError, match=r"another checkpoint: found .*model-1\.safetensors"):
        run(folder, out, resume=True)
    os.utime(shard, ns=(was.st_atime_ns, was.st_mtime_ns))
    part = tmp_path / "out.gsm.part"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(PlanError, match=r"out\.gsm\.part: tensor .* found checksum"):
        run(folder, out, resume=True)
    data[-1] ^= 1
    part.write_bytes(data + b"torn")  # written, but not in the journal yet
    journal = tmp_path / "out.gsm.journal"
    journal.write_bytes(journal.read_bytes() + b"00000000 {torn")
    assert run(folder, out, resume=True).resumed == 3
    run(folder, tmp_path / "whole.gsm")
    assert out.read_bytes() == (tmp_path / "whole.gsm").read_bytes()


def broken_missing(folder: Path) -> None:
    (folder / "model-1.safetensors").unlink()


def broken_truncated(folder: Path) -> None:
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def broken_shape(folder: Path) -> None:
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"[6,6]", b"[6,7]", 1))


def broken_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"1.0.weight": "model-0', '"1.0.weight": "model-1'))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (broken_missing, DataError, "model-1.safetensors: found no such shard"),
        (broken_truncated, FormatError, "model-1.safetensors: found .* bytes of arrays"),
        (broken_shape, FormatError, "model-1.safetensors: array '.*': found 144 bytes, its shape expected 168"),
        (broken_index, DataError, "found tensor '1.0.weight', model.safetensors.index.json expected it in model-1"),
    ],
)
def test_a_bad_shard_is_named_before_anything_is_written(
    damage: object, error: type[GossamerError], message: str, tmp_path: Path
) -> None:
    folder = sharded(network(6), tmp_path / "checkpoint")
    assert callable(damage)
    damage(folder)
    with pytest.raises(error, match=message):
        run(folder, tmp_path / "out.gsm")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_weights_that_do_not_fit_the_network_or_are_not_finite_are_named(tmp_path: Path) -> None:
    model = network(6)
    folder = sharded(model, tmp_path / "checkpoint")
    with pytest.raises(DataError, match=r"model-\d\.safetensors: tensor '0.weight': found shape \(50, 6\), expected"):
        run(folder, tmp_path / "out.gsm", model=network(5))
    with pytest.raises(DataError, match="found no tensor"):
        run(folder, tmp_path / "out.gsm", model=nn.Sequential(*network(6), nn.Linear(1, 1)))
    with torch.no_grad():
        model[1][0].weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"tensor '1.0.weight': found 1 NaN"):
        run(sharded(model, tmp_path / "nan"), tmp_path / "out.gsm")


def test_recipes_that_train_or_match_nothing_are_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    folder = sharded(network(6), tmp_path / "checkpoint")
    with pytest.raises(PlanError, match="entry that trains"):
        run(folder, tmp_path / "out.gsm", [Tune(epochs=1)])
    with pytest.raises(CompositionError, match="recipe entry 2"):
        run(folder, tmp_path / "out.gsm", [KMeans(bits=1), Magnitude(sparsity=0.5)])


def test_a_dry_run_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded(network(6), tmp_path / "checkpoint")
    source = CheckpointSource(open_checkpoint(folder))

    def refused(self: object, name: str) -> Tensor:
        raise AssertionError(name)

    monkeypatch.setattr(CheckpointSource, "read", refused)
    found = estimate(source, RECIPE, lambda m: m)
    assert [s.name for s in found.stages] == ["Magnitude", "KMeans", "coding"]
    assert [s.passes for s in found.stages] == [3, 1, 1]
    assert found.seconds > 0
    assert found.memory_bytes > 0
    assert list(tmp_path.iterdir()) == [folder]
