"""`gossamer sensitivity` on real files: table, picture, JSON, recipe; interrupted, gone on with, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import gossamer as gs
from gossamer.cli.main import run
from gossamer.demo.data import load_fashion
from gossamer.demo.networks import lenet_5
from gossamer.drive.recipe_file import load_recipe
from gossamer.sensitivity import Sensitivities

NETWORK = "gossamer.demo.networks:lenet_5"
DATA = """
import time
import torch
from gossamer.demo.data import load_fashion

def labelled():
    found = load_fashion()
    return [(found.test[i : i + 100], found.test_labels[i : i + 100]) for i in (0, 100, 200)]

def fewer():
    return labelled()[:2]

def unlabelled():
    return [images for images, _ in labelled()]

def slow(outputs, targets):
    time.sleep(0.05)
    return torch.nn.functional.cross_entropy(outputs, targets)

def none():
    return []

def fails():
    raise RuntimeError("no such disk")
"""


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """LeNet-5 after a third of an epoch on the packaged images."""
    torch.manual_seed(0)
    net, data = lenet_5(), load_fashion()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for chosen in torch.randperm(len(data.train))[:3000].split(100):
        optimizer.zero_grad()
        F.cross_entropy(net(data.train[chosen]), data.train_labels[chosen]).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[str, torch.Tensor]) -> Path:
    save_file(trained, tmp_path / "net.safetensors")
    (tmp_path / "sensed.py").write_text(DATA, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sensed", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run(["sensitivity", *(str(a) for a in arguments)])
    return int(left.value.code or 0)


def measured(files: Path, *more: object, data: str = "labelled") -> int:
    return call(files / "net.safetensors", "-n", NETWORK, "--data", f"sensed:{data}", "--batches", 2, *more, "-q")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2 and exactly one line on standard error."""
    capsys.readouterr()
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def test_table_picture_and_json_say_the_same(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    levels = ("--levels", "sparsity=0.5,0.9,0.99", "--levels", "bits=8,2", "--levels", "rank=0.25")
    before = (files / "net.safetensors").read_bytes()
    assert measured(files, *levels, "-o", files / "net.svg", "--json", files / "net.json") == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in printed if ".svg" not in line) <= 80
    document = json.loads((files / "net.json").read_text(encoding="utf-8"))
    found = Sensitivities.from_json(document)
    assert document["batches"] == 2
    assert document["file"] == str(files / "net.safetensors")
    assert found.kinds == ("sparsity", "bits", "rank")
    assert [level for level, _ in found.of("bits")[0].points] == [2, 8]
    for kind in found.kinds:
        start = next(i for i, line in enumerate(printed) if line.split()[:1] == [kind])
        names = [line.split()[0] for line in printed[start + 1 : start + 5]]
        assert names == [c.name for c in sorted(found.of(kind), key=lambda c: -c.mean)]
    texts = {"".join(t.itertext()) for t in ElementTree.parse(files / "net.svg").getroot().iter()}
    assert {c.name for c in found.curves} <= texts
    assert sorted(p.name for p in files.iterdir() if not p.name.startswith("__")) == [
        "net.json", "net.safetensors", "net.svg", "sensed.py",
    ]  # fmt: skip
    assert (files / "net.safetensors").read_bytes() == before


def test_a_recipe_by_measured_curves_loses_less_than_a_uniform_one(files: Path) -> None:
    recipe, weights = files / "net.yaml", files / "net.safetensors"
    options = ("--kinds", "sparsity", "--json", files / "net.json", "--batches", 3)
    assert measured(files, *options, "--write-recipe", recipe, "--budget", "sparsity=0.9") == 0
    with pytest.raises(SystemExit) as left:
        run(["compress", str(weights), "-r", str(recipe), "-n", NETWORK, "-o", str(files / "net.gsm")])
    assert not left.value.code
    net = lenet_5()
    net.load_state_dict(load_file(weights))
    uniform = gs.compress(net, [gs.prune.Magnitude(sparsity=0.9)]).dense()
    small = gs.load(files / "net.gsm", into=lenet_5).dense()
    kept = [sum(int(w.count_nonzero()) for w in n.parameters() if w.dim() > 1) for n in (small, uniform)]
    assert kept[0] <= kept[1] + 4
    data = load_fashion()
    with torch.inference_mode():
        lost = [float(F.cross_entropy(n(data.test[300:]), data.test_labels[300:])) for n in (small, uniform)]
    assert lost[0] < lost[1]


def test_the_json_of_an_earlier_run_gives_picture_and_recipes_without_measuring(files: Path) -> None:
    assert measured(files, "--kinds", "bits,rank", "--json", files / "net.json") == 0
    for budget in ("bits=3", "rank=0.5"):
        more = ("--write-recipe", files / "net.yaml", "--budget", budget)
        assert call(files / "net.json", "-o", files / "again.svg", *more) == 0
        assert load_recipe(files / "net.yaml") == list(
            Sensitivities.read(files / "net.json").recipe(budget.split("=")[0], float(budget.split("=")[1]))  # type: ignore[arg-type]
        )
    assert ElementTree.parse(files / "again.svg").getroot().tag.endswith("svg")


def test_a_budget_that_cannot_be_met_costs_no_measurement(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--kinds", "bits", "--levels", "4,8", "--json", files / "net.json", "--data", "sensed:labelled")
    budget = ("--write-recipe", files / "net.yaml", "--budget", "bits=3")
    assert "at least 4" in refused(capsys, files / "net.safetensors", "-n", NETWORK, *options, *budget, "-q")
    assert Sensitivities.read(files / "net.json").kinds == ("bits",)
    assert not (files / "net.yaml").exists()
    assert not (files / "net.json.journal").exists()


def test_without_targets_the_distance_to_the_dense_outputs_is_measured(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for distance, metric, title in (("auto", "squares", "squared error"), ("kl", "kl", "KL divergence")):
        options = ("--kinds", "bits", "--levels", "2,8", "--distance", distance, "--json", files / "net.json")
        assert measured(files, *options, data="unlabelled") == 0
        assert title in capsys.readouterr().out
        found = Sensitivities.read(files / "net.json")
        assert found.metric == metric
        assert all(c.points[0][1] > c.points[1][1] >= 0 for c in found.curves)


def test_an_interrupted_run_leaves_its_finished_layers_and_goes_on_to_the_same_result(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--kinds", "bits,sparsity", "--loss", "sensed:slow", "--json", files / "net.json")
    arguments = ["net.safetensors", "-n", NETWORK, "--data", "sensed:labelled", *(str(o) for o in options), "-q"]
    journal = files / "net.json.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "gossamer.cli.main", "sensitivity", *arguments, "--batches", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=files,
        env={**os.environ, "PYTHONPATH": str(Path(gs.__file__).parents[1])},
    )  # fmt: skip
    began = time.monotonic()
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3) and time.monotonic() - began < 120:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (files / "net.json").exists()
    assert not list(files.glob(".*.part"))
    again = (files / "net.safetensors", "-n", NETWORK, "--data", "sensed:labelled", *options, "-q")
    assert "--resume" in refused(capsys, *again, "--batches", 2)
    assert "another settings" in refused(capsys, *again, "--batches", 1, "--resume")
    fewer = [o if o != "sensed:labelled" else "sensed:fewer" for o in again]
    assert "another data" in refused(capsys, *fewer, "--batches", 2, "--resume")
    assert "another settings" in refused(capsys, *again, "--batches", 2, "--resume", "--levels", "bits=3,4")
    weights = load_file(files / "net.safetensors")
    save_file({**weights, "fc2.bias": weights["fc2.bias"] + 1}, files / "net.safetensors")
    assert "another weights" in refused(capsys, *again, "--batches", 2, "--resume")
    save_file(weights, files / "net.safetensors")
    assert call(*again, "--batches", 2, "--resume") == 0
    assert "finished before" in capsys.readouterr().out
    resumed = json.loads((files / "net.json").read_text(encoding="utf-8"))
    assert resumed["resumed"] >= 2
    assert not journal.exists()
    assert call(*again, "--batches", 2) == 0
    whole = json.loads((files / "net.json").read_text(encoding="utf-8"))
    changing = {"seconds", "resumed"}
    assert {k: v for k, v in resumed.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }


def test_a_damaged_journal_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "net.json.journal").write_text("00000000 {}\n00000000 {}\n", encoding="utf-8")
    options = ("-n", NETWORK, "--data", "sensed:labelled", "--json", files / "net.json", "--resume")
    assert "net.json.journal" in refused(capsys, files / "net.safetensors", *options)


def test_what_cannot_be_measured_is_refused_in_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, base = files / "net.safetensors", ("-n", NETWORK, "--data", "sensed:labelled", "-q")
    assert "neither" in refused(capsys, net, "-n", NETWORK)
    assert "both of --data and --calib" in refused(capsys, net, *base, "--calib", "x")
    assert "--network" in refused(capsys, net, "--data", "sensed:labelled")
    assert "no batches" in refused(capsys, net, "-n", NETWORK, "--data", "sensed:none")
    assert "no such disk" in refused(capsys, net, "-n", NETWORK, "--data", "sensed:fails")
    assert "'widths'" in refused(capsys, net, *base, "--kinds", "widths")
    assert "--kinds" in refused(capsys, net, *base, "--kinds", ",")
    assert "a kind before it" in refused(capsys, net, *base, "--levels", "0.5")
    assert "'x'" in refused(capsys, net, *base, "--levels", "bits=2,x")
    assert "found rank" in refused(capsys, net, *base, "--kinds", "bits", "--levels", "rank=0.5")
    assert "2 to 8" in refused(capsys, net, *base, "--levels", "bits=2.5,4")
    assert "above 0" in refused(capsys, net, *base, "--levels", "sparsity=0.5,-1")
    assert "group" in refused(capsys, net, *base, "--group", "row")
    assert "--batches" in refused(capsys, net, *base, "--batches", "0")
    assert "--fitted" in refused(capsys, net, *base, "--fitted", "0")
    assert "--rows" in refused(capsys, net, *base, "--rows", "0")
    assert "--distance" in refused(capsys, net, *base, "--distance", "cosine")
    assert "'conv9*'" in refused(capsys, net, *base, "--only", "conv9*")
    assert "input file" in refused(capsys, net, *base, "-o", net)
    assert "twice" in refused(capsys, net, *base, "-o", files / "x", "--json", files / "x")
    assert "no folder" in refused(capsys, net, *base, "-o", files / "nowhere" / "x.svg")
    assert "--write-recipe alone" in refused(capsys, net, *base, "--write-recipe", files / "x.yaml")
    more = ("--write-recipe", files / "x.yaml", "--kinds", "bits", "--budget", "rank=0.5")
    assert "--budget" in refused(capsys, net, *base, *more)
    assert "--output" in refused(capsys, net, *base, "--resume")
    assert "no.json" in refused(capsys, files / "no.json")
    assert "no.json" in refused(capsys, files / "no.json", *base)
    assert "no.pt" in refused(capsys, files / "no.pt", *base)
    assert "--network" in refused(capsys, files, *base)
    assert not [p for p in files.iterdir() if p.suffix in (".svg", ".yaml", ".json", ".journal")]
