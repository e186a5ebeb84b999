"""Model folders: calibrated on text, compressed, and folders again that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.cli.main import run as command
from gossamer.huggingface import factory, load_folder, save_folder, text_windows
from gossamer.sensitivity import Sensitivities

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")

_TEXT = "the quick brown fox jumps over a lazy dog while seven wise owls look on"
WORDS = tuple(dict.fromkeys(_TEXT.split(" ")))


def saved(folder: Path, kind: str) -> Path:
    """A tiny network of random weights with a tokenizer, as its makers would save it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=1, tie_word_embeddings=True)
        network = transformers.LlamaForCausalLM(config)
    else:
        network = transformers.BertModel(transformers.BertConfig(**sizes))
    network.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *dict.fromkeys(WORDS)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "bert"])
def folder(request: Any, tmp_path: Path) -> Path:
    return saved(tmp_path / "model", request.param)


def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(WORDS[i * i % len(WORDS)] for i in range(2000)), encoding="utf-8")
    return file


RECIPE = """
- BlockByBlock:
    methods:
      - prune.Magnitude: {sparsity: 0.5}
      - quantize.RoundToNearest: {bits: 8}
"""


def test_a_folder_becomes_a_file_and_a_folder_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    file, json_file = tmp_path / "small.gsm", tmp_path / "out.json"
    with pytest.raises(SystemExit) as end:
        command(["compress", str(folder), "--recipe", str(tmp_path / "recipe.yaml"), "--calib", str(text(tmp_path)),
                 "--window", "16", "--samples", "8", "-o", str(file), "--json", str(json_file), "-q"])  # fmt: skip
    assert end.value.code == 0
    plan = json.loads(json_file.read_text())["plan"][0]
    assert sum("layers.1" in b or "layer.1" in b for step in plan["blocks"] for b in step) == 1
    assert "run_anew" not in plan
    with pytest.raises(SystemExit) as end:
        command(["decompress", str(file), "--hf", str(folder), "-o", str(tmp_path / "again")])
    assert end.value.code == 0
    again, small = load_folder(tmp_path / "again"), gs.load(file, into=factory(folder)).dense()
    ids = torch.randint(0, 20, (2, 9))
    with torch.inference_mode():
        assert torch.allclose(again(ids)[0], small(ids)[0], atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")("the fox")["input_ids"]


def test_weights_of_half_precision_come_back_as_such(folder: Path, tmp_path: Path) -> None:
    half, file = tmp_path / "half", tmp_path / "small.gsm"
    load_folder(folder).bfloat16().save_pretrained(half)  # type: ignore[operator]
    gs.compress(load_folder(half), [gs.prune.Magnitude(sparsity=0.5)]).save(file)
    again = gs.load(file, into=factory(half)).dense()
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    save_folder(again, half, tmp_path / "again")
    found, stored = load_folder(tmp_path / "again"), gs.load(file, into=factory(half)).state_dict()
    assert all(torch.equal(p, stored[n]) and p.dtype is torch.bfloat16 for n, p in found.named_parameters())


def test_a_folder_that_cannot_be_finished_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("gossamer.huggingface.shutil.copyfile", full)
    with pytest.raises(gs.DataError, match="no space left"):
        save_folder(load_folder(folder), folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_layers_are_calibrated_on_what_reaches_them(folder: Path, tmp_path: Path) -> None:
    from tests.drive.sequential_parts import Damp

    data = text_windows(folder, text(tmp_path), window=16, samples=8)
    assert [tuple(batch["input_ids"].shape) for batch in data] == [(4, 16), (4, 16)]
    Damp.given.clear()
    network = load_folder(folder)
    skip = "*pooler*" if any("pooler" in name for name, _ in network.named_parameters()) else ()
    small = gs.compress(network, [gs.BlockByBlock(methods=(Damp(skip=skip),))], data=data)
    layers = [name for name in Damp.given if "mbed" not in name]
    assert len(layers) == 2 * (7 if any("self_attn" in name for name in layers) else 6)
    assert "run_anew" not in small.notes["plan"][0]


def test_windows_are_not_longer_than_the_model_takes(folder: Path, tmp_path: Path) -> None:
    assert text_windows(folder, text(tmp_path), window=512, samples=1)[0]["input_ids"].shape == (1, 32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (
            lambda folder: (folder / "config.json").write_text('{"architectures": ["Evil"], "auto_map": {}}'),
            "code that comes with a model is not run",
        ),
    ],
)
def test_folders_that_cannot_be_used_are_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bert")
    spoil(folder)
    with pytest.raises(gs.DataError, match=said):
        load_folder(folder)


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bert")
    with pytest.raises(gs.DataError, match="found no text"):
        text_windows(folder, tmp_path / "nothing.txt")
    (tmp_path / "short.txt").write_text("the fox", encoding="utf-8")
    with pytest.raises(gs.DataError, match="less than one window"):
        text_windows(folder, tmp_path / "short.txt")


def test_sensitivity_of_a_folder_is_measured_on_text(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit) as end:
        command(["sensitivity", str(folder), "--calib", str(text(tmp_path)), "--window", "16", "--batches", "1",
                 "--levels", "sparsity=0.5,0.9", "--levels", "bits=2,8", "--levels", "rank=0.5",
                 "--json", str(out), "-o", str(tmp_path / "found.svg"), "-q"])  # fmt: skip
    assert end.value.code == 0
    found = Sensitivities.read(out)
    assert found.metric == ("loss" if "llama" in load_folder(folder).config.model_type else "squares")
    assert {c.kind for c in found.curves if "layer" in c.name} == {"sparsity", "bits", "rank"}
    assert any("embed" in c.name for c in found.of("bits"))
    (entry,) = found.recipe("rank", 0.9)
    assert gs.compress(load_folder(folder), [entry], data=text_windows(folder, text(tmp_path), window=16)).trees


def test_a_report_of_a_language_model_shows_words_in_context(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra [report] is not installed")
    folder = saved(tmp_path / "model", "llama")
    gs.compress(load_folder(folder), [gs.prune.Magnitude(sparsity=0.8)]).save(tmp_path / "small.gsm")
    arguments = ["report", tmp_path / "small.gsm", "--dense", folder, "--calib", text(tmp_path), "--window", 12]
    more = ["--examples", 20, "-o", tmp_path / "page.html", "--json", tmp_path / "page.json", "-q"]
    with pytest.raises(SystemExit) as left:
        command([str(a) for a in (*arguments, *more)])
    assert not left.value.code
    document = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    file = document["files"][1]
    assert file["accuracy"]["count"] == 20 * 12
    assert file["accuracy"]["perplexity"] > 1
    row = file["changed"]["rows"][0]
    assert file["seen"][f"{row['index']}:{row['position']}"]["word"] in WORDS
    assert "perplexity" in (tmp_path / "page.html").read_text(encoding="utf-8")
