"""A checkpoint larger than it need be in memory: streamed against the same recipe in memory, and killed and resumed.

``python -m benchmarks.streaming --json FILE [--gb 6] [--quick] [--sparsity 0.9] [--bits 4] [--folder DIR]``. Makes a
synthetic checkpoint of 12 shards (normal float32 weights in the shapes of a language model, the largest of 128 MiB),
compresses it with a global magnitude threshold, k-means and entropy coding, each way in a process of its own, and
compares the files. Memory is the peak resident size of the process (VmHWM) less what it had after its imports.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.rows import cpu_name

SHARDS = 12
WIDTH = 2048
VOCABULARY = 16384  # times 2048 float32 values: 128 MiB
LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * 3 * WIDTH + 2 * WIDTH


class Layer(nn.Module):
    """Weights of a decoder layer with a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.input_norm, self.output_norm = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)


class Model(nn.Module):
    """An embedding and as many layers as the environment variable STREAMING_LAYERS says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(int(os.environ["STREAMING_LAYERS"])))


def make_checkpoint(folder: Path) -> int:
    """Write the shards and their index; returns bytes of weights."""
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Model().named_parameters()}
    total = sum(torch.Size(s).numel() for s in shapes.values())
    generator, weight_map, number, shard, filled = torch.Generator().manual_seed(0), {}, 1, {}, 0
    for i, (name, shape) in enumerate(shapes.items()):
        tensor = torch.randn(shape, generator=generator).mul_(0.02)
        shard[name] = tensor.add_(1) if len(shape) == 1 else tensor
        filled += tensor.numel()
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        weight_map[name] = file
        if filled >= total * number / SHARDS or i == len(shapes) - 1:
            save_file(shard, folder / file)
            number, shard = number + 1, {}
    index = {"metadata": {"total_size": 4 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return 4 * total


def streamed(folder: Path, recipe: Path, out: Path, network: bool, resume: bool) -> dict[str, Any]:
    from gossamer.drive.checkpoint import CheckpointSource
    from gossamer.drive.recipe_file import load_recipe
    from gossamer.drive.stream import stream
    from gossamer.store.checkpoint import open_checkpoint

    before = peak()
    begin, cpu = time.perf_counter(), time.process_time()
    shards = open_checkpoint(folder)
    with torch.device("meta"):
        model = Model() if network else None
    source = CheckpointSource(shards, model)
    done = stream(source, load_recipe(recipe), out, identity=shards.identity(), resume=resume)
    return _measured(begin, cpu, before, done.file_bytes) | {"resumed": done.resumed}


def in_memory(folder: Path, recipe: Path, out: Path) -> dict[str, Any]:
    import gossamer as gs
    from gossamer.drive.recipe_file import load_recipe
    from gossamer.store.checkpoint import open_checkpoint

    before = peak()
    begin, cpu = time.perf_counter(), time.process_time()
    shards = open_checkpoint(folder)
    with torch.device("meta"):
        model = Model()
    model.load_state_dict({name: shards.read(name) for name in shards.arrays}, assign=True)
    written = gs.compress(model, load_recipe(recipe)).save(out)
    return _measured(begin, cpu, before, written)


def _measured(begin: float, cpu: float, before: int, written: int) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb_above_import": round((peak() - before) / 1024, 1),
        "import_mb": round(before / 1024, 1),
        "file_bytes": written,
    }


def peak() -> int:
    """KiB, peak resident size of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def child(mode: str, folder: Path, recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--child", mode, str(folder), str(recipe), str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def kill_and_resume(folder: Path, recipe: Path, out: Path, share: float, tensors: int) -> dict[str, Any]:
    """Kill a run once it has finished a share of the tensors, then let another go on."""
    journal = out.with_name(out.name + ".journal")
    process = child("streamed", folder, recipe, out)
    while process.poll() is None and _lines(journal) < 2 + share * tensors:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = out.exists()
    resumed = finished(child("resumed", folder, recipe, out))
    return {**resumed, "killed_by": process.returncode, "final_name_before": had}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def busy() -> Iterator[str]:
    yield from (f"{x:.2f}" for x in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--gb", type=float, default=6.0, help="size of the checkpoint in 10⁹ bytes")
    parser.add_argument("--quick", action="store_true", help="0.5 GB")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to make it; a temporary folder")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        mode, *paths = given.child
        folder, recipe, out = map(Path, paths)
        found = (
            in_memory(folder, recipe, out)
            if mode == "memory"
            else streamed(folder, recipe, out, network=mode == "network", resume=mode == "resumed")
        )
        print(json.dumps(found))
        return
    size = 0.5e9 if given.quick else given.gb * 1e9
    os.environ["STREAMING_LAYERS"] = str(max(1, round((size / 4 - VOCABULARY * WIDTH) / LAYER)))
    root = Path(tempfile.mkdtemp(prefix="streaming.", dir=given.folder))
    try:
        document = run(root, given.sparsity, given.bits)
    finally:
        shutil.rmtree(root)
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def run(root: Path, sparsity: float, bits: int) -> dict[str, Any]:
    folder, recipe = root / "checkpoint", root / "recipe.yaml"
    folder.mkdir()
    recipe.write_text(f"- prune.Magnitude: {{sparsity: {sparsity}, scope: global}}\n- share.KMeans: {{bits: {bits}}}\n")
    weights = make_checkpoint(folder)
    before = list(busy())
    one = finished(child("streamed", folder, recipe, root / "streamed.gsm"))
    memory = finished(child("memory", folder, recipe, root / "memory.gsm"))
    with_network = finished(child("network", folder, recipe, root / "network.gsm"))
    tensors = 1 + 9 * int(os.environ["STREAMING_LAYERS"])
    resumed = kill_and_resume(folder, recipe, root / "resumed.gsm", 0.5, tensors)

    def same(one: str, other: str) -> bool:
        return filecmp.cmp(root / f"{one}.gsm", root / f"{other}.gsm", shallow=False)

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": before,
        "load_after": list(busy()),
        "checkpoint_bytes": weights,
        "tensors": tensors,
        "sparsity": sparsity,
        "bits": bits,
        "streamed": one,
        "in_memory": memory,
        "with_network": with_network,
        "resumed": resumed,
        "speed_of_in_memory": round(memory["seconds"] / with_network["seconds"], 3),
        "same_bytes_as_in_memory": same("network", "memory"),  # the same order of tensors: the network's
        "same_bytes_resumed": same("streamed", "resumed"),
    }


if __name__ == "__main__":
    main()
