"""The command line on real files: what it prints, what it writes, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gossamer as gs
from gossamer.cli.main import run

NETWORK = "gossamer.demo.networks:lenet_300_100"
RECIPE = """
- prune.Magnitude: {sparsity: 0.9}
- share.KMeans: {bits: 4}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    from gossamer.demo.networks import lenet_300_100

    torch.manual_seed(0)
    save_file(lenet_300_100().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run([str(a) for a in arguments])
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2 and exactly one line on standard error."""
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def compress(files: Path, *more: object) -> int:
    return call(
        "compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK, "-o", files / "out.gsm",
        *more,
    )  # fmt: skip


def test_compress_inspect_decompress_give_back_the_same_weights(files: Path) -> None:
    assert compress(files, "--json", files / "made.json") == 0
    made = json.loads((files / "made.json").read_text(encoding="utf-8"))
    assert made["file_bytes"] == (files / "out.gsm").stat().st_size
    assert made["ratio"] > 15
    assert call("inspect", files / "out.gsm", "--json", files / "ledger.json") == 0
    ledger = json.loads((files / "ledger.json").read_text(encoding="utf-8"))
    assert sum(ledger["categories"].values()) == ledger["file_bytes"] == made["file_bytes"]
    assert ledger["dense_bytes"] == (files / "weights.safetensors").stat().st_size
    assert call("decompress", files / "out.gsm", "-o", files / "dense.safetensors") == 0
    again, expected = load_file(files / "dense.safetensors"), gs.load(files / "out.gsm").state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_effort_is_that_of_the_library(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for effort in ("best", "fast"):
        assert compress(files, "--effort", effort) == 0
        sizes[effort] = (files / "out.gsm").stat().st_size
        gs.load(files / "out.gsm").save(files / "again.gsm", effort=effort)
        assert (files / "again.gsm").read_bytes() == (files / "out.gsm").read_bytes()
    assert sizes["best"] < sizes["fast"]
    capsys.readouterr()
    assert "slow" in refused(capsys, "compress", files / "weights.safetensors", "--effort", "slow")


def test_dry_run_prints_the_plan_and_writes_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(files.iterdir())
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK, "--dry-run")
    assert call(*arguments) == 0
    assert "Magnitude" in capsys.readouterr().out
    assert sorted(files.iterdir()) == before


def test_bench_measures_all_contenders_and_their_memory(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(files) == 0
    peers = files / "peers"  # none is installed there
    peers.mkdir()
    arguments = ("--shape", "1,28,28", "-b", "4", "-b", "2", "-t", "1", "--seconds", "0.1")
    more = ("--against", "torch,onnxruntime", "--peers", peers, "--json", files / "bench.json", "-q")
    assert call("bench", files / "out.gsm", "-n", NETWORK, *arguments, *more) == 0
    found = json.loads((files / "bench.json").read_text(encoding="utf-8"))
    assert [(t["batch"], t["threads"]) for t in found["latency"]] == [(2, 1), (4, 1)]
    for name in ("torch", "lowered"):
        times = found["latency"][1][name]
        assert 0 < times["low_ms"] <= times["median_ms"] <= times["high_ms"]
        assert times["per_second"] == pytest.approx(4e3 / times["median_ms"])
        assert set(found["resident_bytes"][name]) == {"network", "runtime", "process"}
    assert "original" not in found["latency"][0]  # no smaller than it was
    assert found["resident_bytes"]["torch"]["runtime"] == 0
    assert found["weight_bytes"]["torch"] == 4 * (784 * 300 + 300 * 100 + 100 * 10)
    assert found["weight_bytes"]["lowered"] < found["weight_bytes"]["torch"]
    assert {layer["layer"] for layer in found["layers"]} == {"fc1", "fc2", "fc3"}
    assert set(found["missing"]) == {"onnxruntime"}
    assert "onnxruntime is missing" in capsys.readouterr().out


def test_bench_takes_inputs_from_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_for_bench.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 32), nn.Linear(32, 4)\n"
        "    def forward(self, tokens, scale):\n"
        "        return self.b(self.a(self.table(tokens)).relu()) * scale\n"
        "def inputs(batch):\n"
        "    return torch.randint(9, (batch, 5)), torch.ones(1)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import made_for_bench

    gs.compress(made_for_bench.Net(), [gs.prune.Magnitude(sparsity=0.9)]).save(tmp_path / "net.gsm")
    arguments = ("-n", "made_for_bench:Net", "--inputs", "made_for_bench:inputs", "-b", "2", "--seconds", "0.05", "-q")
    assert call("bench", tmp_path / "net.gsm", *arguments, "--json", tmp_path / "bench.json") == 0
    row = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["latency"][0]
    assert set(row) == {"batch", "threads", "lowered", "torch"}


def test_bench_shows_a_network_that_lost_channels_beside_what_it_was(files: Path) -> None:
    from gossamer.demo.networks import lenet_300_100

    batches = [(torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.long))]
    gs.compress(lenet_300_100(), [gs.shrink.Channels(sparsity=0.5)], data=batches).save(files / "small.gsm")
    arguments = ("-s", "1,28,28", "-b", "2", "--seconds", "0.05", "--against", "", "--json", files / "bench.json", "-q")
    assert call("bench", files / "small.gsm", "-n", NETWORK, *arguments) == 0
    found = json.loads((files / "bench.json").read_text(encoding="utf-8"))
    assert set(found["latency"][0]) == {"batch", "threads", "lowered", "original"}
    assert found["weight_bytes"]["lowered"] < found["weight_bytes"]["original"]


def test_bench_refuses_in_one_line_what_it_cannot_measure(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(files) == 0
    bench = ("bench", files / "out.gsm", "-n", NETWORK)
    assert "neither of --shape and --inputs" in refused(capsys, *bench)
    assert "both of --shape and --inputs" in refused(capsys, *bench, "-s", "1,28,28", "--inputs", "a:b")
    assert "'tensorflow'" in refused(capsys, *bench, "-s", "1,28,28", "--against", "torch,tensorflow")
    assert "no folder" in refused(capsys, *bench, "-s", "1,28,28", "--peers", files / "nowhere")
    assert "--threads" in refused(capsys, *bench, "-s", "1,28,28", "-t", "0")
    assert "rejects" in refused(capsys, *bench, "-s", "7", "-b", "1")
    assert "--inputs json:loads" in refused(capsys, *bench, "--inputs", "json:loads")


def test_a_dry_run_of_a_recipe_that_trains_needs_no_data(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "- Gradual: {methods: [{prune.Magnitude: {sparsity: 0.9}}]}\n- share.KMeans: {bits: 4}\n- Tune: {}"
    (files / "recipe.yaml").write_text(text, encoding="utf-8")
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK, "--dry-run")
    assert call(*arguments, "--json", files / "plan.json") == 0
    steps = json.loads((files / "plan.json").read_text(encoding="utf-8"))["plan"][0]["steps"]
    assert [s["keep"] for s in steps] == [23520, 3000, 100]  # a tenth of each layer: the end of the ramp
    assert "nothing was trained" in capsys.readouterr().out


def test_names_with_brackets_are_printed_as_they_are(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "d[").mkdir()
    odd = files / "d[" / "x].gsm"
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK, "-o", odd)
    assert call(*arguments) == 0
    assert odd.is_file()
    assert "x].gsm" in capsys.readouterr().out.replace("\n", "")


def test_decompressing_says_that_zeros_stand_for_removed_blocks(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    layers = torch.nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), 3
    network = torch.nn.TransformerEncoder(*layers, enable_nested_tensor=False)
    x = torch.randn(4, 5, 12)
    gs.compress(network, [gs.shrink.Blocks(sparsity=0.34)], data=[(x, x)]).save(files / "small.gsm")
    assert call("decompress", files / "small.gsm", "-o", files / "dense.safetensors") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "and 10 more belong to removed blocks and are zeros" in said
    empty = torch.nn.Linear(3, 3)
    empty.register_buffer("empty", torch.zeros(0))
    gs.compress(empty, []).save(files / "empty.gsm")
    assert compress(files) == 0
    for name in ("out", "empty"):
        assert call("decompress", files / f"{name}.gsm", "-o", files / "dense.safetensors") == 0
    assert "removed" not in capsys.readouterr().out


def test_input_files_are_never_changed(files: Path) -> None:
    before = {p: p.read_bytes() for p in files.iterdir()}
    assert compress(files) == 0
    assert call("inspect", files / "out.gsm") == 0
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_missing_file_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.gsm" in refused(capsys, "inspect", files / "nowhere.gsm")
    line = refused(capsys, "compress", files / "no.pt", "-r", files / "recipe.yaml", "-n", NETWORK, "--dry-run")
    assert "no.pt" in line


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("- prune.Magnitude: {sparsity: 2}", "sparsity"),
        ("- prune.Magnitude: {sparsty: 0.5}", "sparsty"),
        ("- prune.Mangitude: {sparsity: 0.5}", "Mangitude"),
        ("- share.KMeans: {bits: four}", "bits"),
        ("{[", "YAML"),
        ("", "list"),
        ("- prune.Magnitude: {sparsity: 0.5, only: fc9.*}", "matches no layer"),
        ("- prune.Magnitude: {sparsity: 1.0}", "live weight"),
        ("- prune.Magnitude: {sparsity: 0.5}\n- factorize.SVD: {rank: 4}", "factorize first"),
        ("- Tune: {epochs: 1}", "no data"),
    ],
)
def test_a_broken_recipe_is_refused_in_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], text: str, names: str
) -> None:
    (files / "recipe.yaml").write_text(text, encoding="utf-8")
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK)
    assert names in refused(capsys, *arguments, "-o", files / "out.gsm")
    assert not (files / "out.gsm").exists()


def test_weights_that_are_not_finite_are_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(files / "weights.safetensors")
    weights["fc2.weight"][3, 4] = float("nan")
    save_file(weights, files / "weights.safetensors")
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "-n", NETWORK)
    line = refused(capsys, *arguments, "--dry-run")
    assert "fc2.weight" in line
    assert "1 NaN" in line


def test_a_truncated_container_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(files) == 0
    capsys.readouterr()
    whole = (files / "out.gsm").read_bytes()
    (files / "out.gsm").write_bytes(whole[: len(whole) // 2])
    assert "out.gsm" in refused(capsys, "inspect", files / "out.gsm")
    assert "out.gsm" in refused(capsys, "decompress", files / "out.gsm", "-o", files / "x.safetensors")
    assert not (files / "x.safetensors").exists()


def test_weights_for_another_network_are_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compress", files / "weights.safetensors", "-r", files / "recipe.yaml", "--dry-run")
    assert "fc3" in refused(capsys, *arguments, "-n", "gossamer.demo.networks:lenet_5")
    assert "nowhere" in refused(capsys, *arguments, "-n", "nowhere.at_all:make")
    assert "made_up" in refused(capsys, *arguments, "-n", "gossamer.demo.networks:made_up")
    assert "expected package" in refused(capsys, *arguments, "-n", "gossamer")


def test_the_output_may_not_be_the_input(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = files / "weights.safetensors"
    before = weights.read_bytes()
    refused(capsys, "compress", weights, "-r", files / "recipe.yaml", "-n", NETWORK, "-o", weights)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "--nope"], "gossamer: No such option: --nope; see gossamer report --help"),
        (["nope"], "gossamer: No such command 'nope'; see gossamer --help"),
        (["pack", "a"], "gossamer: Missing argument 'OUT'; see gossamer pack --help"),
        (["decompress", "a"], "gossamer: Missing option '--output' / '-o'; see gossamer decompress --help"),
        (["pack", "a", "b", "--threads"], "requires an argument"),
        (["pack", "a", "b", "--threads", "0"], "gossamer: Invalid value for '--threads' / '-t'"),
        (["sensitivity", "a", "--rows", "2.5"], "gossamer: Invalid value for '--rows'"),
        (["compress", "a", "--preset", "huge"], "gossamer: Invalid value for '--preset' / '-p'"),
        (["unpack", "a", "b", "c\nd"], "gossamer: Got unexpected extra argument"),
    ],
)
def test_misused_options_and_arguments_are_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


def test_without_a_command_there_is_the_help_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    said = capsys.readouterr()
    assert "decompress" in said.out
    assert said.err == ""
    assert call("unpack", "--help") == 0
    assert "--reference" in capsys.readouterr().out


def test_an_interrupt_leaves_nothing_half_written(files: Path) -> None:
    arguments = ("demo", "--out", str(files / "made"), "--quiet")
    process = subprocess.Popen(
        [sys.executable, "-m", "gossamer.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "gossamer: interrupted; files that were there are as they were"
    assert "Traceback" not in errors
    assert not list((files / "made").glob("*.part")) if (files / "made").exists() else True


def test_starting_brings_neither_compiler_nor_table_printer_along() -> None:
    heavy = {"jinja2", "llvmlite", "typer", "tensorly", "transformers"}
    code = f"import sys, gossamer; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_preset_stands_for_a_recipe_and_says_in_json_which(files: Path) -> None:
    weights, out, told = files / "weights.safetensors", files / "out.gsm", files / "made.json"
    for more in (("-n", NETWORK), ()):  # without a network: read tensor by tensor, kinds from names
        assert call("compress", weights, "--preset", "small", *more, "-o", out, "--json", told) == 0
        made = json.loads(told.read_text(encoding="utf-8"))
        assert made["ratio"] > 7
        (files / "edited.yaml").write_text(made["recipe"], encoding="utf-8")
        again = files / "again.gsm"
        assert call("compress", weights, "-r", files / "edited.yaml", *more, "-o", again) == 0
        assert gs.load(again).state_dict().keys() == gs.load(out).state_dict().keys()
        assert again.stat().st_size == out.stat().st_size


def test_a_dry_run_of_a_preset_that_trains_needs_no_data_and_tells_the_recipe(files: Path) -> None:
    weights, told = files / "weights.safetensors", files / "made.json"
    assert call("compress", weights, "--preset", "tiny", "-n", NETWORK, "--dry-run", "--json", told) == 0
    assert json.loads(told.read_text(encoding="utf-8"))["recipe"].startswith("- Gradual:")


def test_presets_that_cannot_be_used_are_refused_in_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = files / "weights.safetensors", files / "out.gsm"
    assert "neither" in refused(capsys, "compress", weights, "-n", NETWORK, "-o", out)
    both = ("-r", files / "recipe.yaml", "--preset", "small")
    assert "both" in refused(capsys, "compress", weights, *both, "-n", NETWORK, "-o", out)
    assert "--data" in refused(capsys, "compress", weights, "--preset", "tiny", "-n", NETWORK, "-o", out)
    assert "--network" in refused(capsys, "compress", weights, "--preset", "fast", "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "code", "found"),
    [
        ("divides", "1 / 0", "ZeroDivisionError"),
        ("misspelt", "def", "SyntaxError"),
        ("empty", "", "no 'f'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    module: str, code: str, found: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / f"broken_{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(files)
    given = files / "weights.safetensors", "--recipe", files / "recipe.yaml", "-o", files / "out.gsm"
    line = refused(capsys, "compress", *given, "--network", f"broken_{module}:f")
    assert "--network: " in line and f"broken_{module}" in line and found in line


def test_data_that_cannot_be_made_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made_badly.py").write_text(
        "def batches():\n    raise ValueError('no such column')\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tune.yaml").write_text("- Tune: {epochs: 1}\n", encoding="utf-8")
    given = ("compress", files / "weights.safetensors", "-n", NETWORK, "--recipe", tmp_path / "tune.yaml")
    said = refused(capsys, *given, "--data", "made_badly:batches", "-o", tmp_path / "x.gsm")
    assert "--data made_badly:batches: calling it without arguments failed: ValueError: no such column" in said


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    option: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compress_file(**given: object) -> None:
        raise AssertionError(given)

    monkeypatch.setattr("gossamer.cli.commands.compress_file", compress_file)
    given = ["-o", files / "out.gsm"] if option != "-o" else []
    command = ("compress", files / "weights.safetensors", "-n", NETWORK, "-r", files / "recipe.yaml", *given)
    assert "found no folder" in refused(capsys, *command, option, files / "nowhere" / "x")
    assert "found a folder" in refused(capsys, *command, option, files)
    assert "cannot write there" in refused(capsys, *command, option, files / ("x" * 300))
