"""`gossamer report` on real files: a page and its JSON, and one line for what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gossamer as gs
from gossamer.cli.main import run
from gossamer.demo.networks import lenet_300_100

NETWORK = "gossamer.demo.networks:lenet_300_100"
DATA = """
import torch
from gossamer.demo.data import load_fashion

def test():
    found = load_fashion()
    return [(found.test[i : i + 30], found.test_labels[i : i + 30]) for i in (0, 30, 60)]

def train():
    found = load_fashion()
    return [(found.train[:60], found.train_labels[:60])]

def none():
    return []

def fails():
    raise RuntimeError("no such disk")

def fails_later():
    yield from test()
    raise OSError("disk went away")

def nothing():
    return None

def number():
    return 5

def single():
    return [(torch.tensor(1.0), torch.tensor(1))]

def mixed():
    return [(x, y if i else y[:, None]) for i, (x, y) in enumerate(test())]

def small():
    return [(x[:, :, :20, :20], y) for x, y in test()]

def integers():
    return [((255 * x).to(torch.uint8), y) for x, y in test()]

def unknown():
    return [(x, y + 5) for x, y in test()]

def below():
    return [(x, y.clamp(max=0) - 1) for x, y in test()]

def blank():
    return [(x * float("nan"), y) for x, y in test()]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    net = lenet_300_100()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    gs.compress(net, [gs.prune.Magnitude(sparsity=0.9)]).save(tmp_path / "a.gsm")
    gs.compress(net, [gs.share.KMeans(bits=3)]).save(tmp_path / "b.gsm")
    (tmp_path / "looked.py").write_text(DATA, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "looked", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run(["report", *(str(a) for a in arguments)])
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2 and exactly one line on standard error."""
    capsys.readouterr()
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def test_page_and_json_of_two_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = files / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(10)), encoding="utf-8")
    data = ("-n", NETWORK, "--data", "looked:test", "--train-data", "looked:train", "--dense", "net.safetensors")
    more = ("--classes", names, "--examples", 60, "--no-attacks", "--title", "<Two>", "-q", "--json", "out.json")
    before = {p.name: p.read_bytes() for p in files.iterdir() if p.suffix in (".gsm", ".safetensors")}
    assert call("a.gsm", "b.gsm", *data, *more, "-o", "out.html") == 0
    document = json.loads((files / "out.json").read_text(encoding="utf-8"))
    assert [f["name"] for f in document["files"]] == ["dense", "a", "b"]
    assert document["data"]["classes"][3] == "class 3"
    assert document["data"]["examples"] == 60
    page = (files / "out.html").read_text(encoding="utf-8")
    assert "&lt;Two&gt;" in page
    assert "class 3" in page
    printed = " ".join(capsys.readouterr().out.split())
    assert "× smaller" in printed
    assert "out.html" in printed
    assert {name: (files / name).read_bytes() for name in before} == before
    assert not list(files.glob("*.part"))


def test_data_that_do_not_fit_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, what in (
        ("fails_later", "disk went away"),
        ("nothing", "found NoneType, expected batches"),
        ("number", "found int, expected batches"),
        ("single", "single numbers"),
        ("mixed", "targets of different shapes"),
        ("small", "found inputs torch.float32 of shape [n, 1, 20, 20], expected such as the network takes"),
        ("integers", "found inputs torch.uint8 of shape [n, 1, 28, 28], expected such as the network takes"),
        ("unknown", "found target 14, expected 0 to 9"),
        ("below", "found target -1, expected 0 to 9"),
        ("blank", "--data looked:blank: inputs: found 70560 of 70560 values that are not finite, the first at [0, 0"),
    ):
        told = refused(capsys, "a.gsm", "-o", "out.html", "-n", NETWORK, "--data", f"looked:{name}", "--no-attacks")
        assert what in told, name
    assert "names.txt" in refused(capsys, "a.gsm", "-o", "out.html", "--classes", "names.txt")
    assert not (files / "out.html").exists()


def test_a_terminal_is_told_nothing_that_it_would_obey(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = files / "\x1b]0;title\x07\u202e.gsm"
    (files / "a.gsm").rename(evil)
    assert call(evil, "-o", "out.html") == 0
    printed = capsys.readouterr().out
    assert "title" in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)


def test_names_that_are_no_utf8_have_a_page_and_json(files: Path) -> None:
    odd = files / "\udcff.gsm"
    (files / "a.gsm").rename(odd)
    assert call(odd, "-o", "out.html", "--json", "out.json") == 0
    document = json.loads((files / "out.json").read_text(encoding="utf-8"))
    assert document["files"][0]["path_name"] == "\udcff.gsm"


def test_a_file_alone_needs_nothing_else(files: Path) -> None:
    assert call("a.gsm", "-o", "out.html") == 0
    assert "fc1.weight" in (files / "out.html").read_text(encoding="utf-8")


def test_what_cannot_be_is_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("-o", files / "out.html")
    network = ("-n", NETWORK)
    assert "none.gsm" in refused(capsys, "none.gsm", *out)
    assert "--network" in refused(capsys, "a.gsm", *out, "--data", "looked:test")
    assert "--data" in refused(capsys, "a.gsm", *out, *network, "--train-data", "looked:train")
    assert "never overwritten" in refused(capsys, "a.gsm", "-o", "a.gsm")
    assert "same name twice" in refused(capsys, "a.gsm", *out, "--json", files / "out.html")
    assert "no folder" in refused(capsys, "a.gsm", "-o", files / "nowhere" / "out.html")
    assert "no such disk" in refused(capsys, "a.gsm", *out, *network, "--data", "looked:fails")
    assert "no batches" in refused(capsys, "a.gsm", *out, *network, "--data", "looked:none")
    assert "conv1" in refused(capsys, "a.gsm", *out, "-n", "gossamer.demo.networks:lenet_5")
    assert "--calib" in refused(capsys, "a.gsm", *out, "--calib", "texts")
    assert "examples" in refused(capsys, "a.gsm", *out, "--examples", 0)
    (files / "bad.gsm").write_bytes((files / "a.gsm").read_bytes()[:100])
    assert "bad.gsm" in refused(capsys, "bad.gsm", *out)
    assert not (files / "out.html").exists()
