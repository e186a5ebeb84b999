"""Reports of real files: what is measured equals what is measured directly, and nothing is changed by measuring."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.errors import DataError, FormatError, PlanError
from gossamer.measure.answers import answers
from gossamer.measure.ledger import ledger_of
from gossamer.measure.robustness import FGSM
from gossamer.report import Effort, Report, report_of
from gossamer.report.layers import rank_of
from gossamer.report.masks import density_map, input_picture
from gossamer.report.sights import word_sights

EFFORT = Effort(attacks=(FGSM(),), attacked=20, corrupted=20, seconds=0.01)


def small_net() -> nn.Module:
    """8×8 images in four classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of which one quarter is bright, which tells the class."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 1, 8, 8, generator=draw)
    targets = torch.randint(4, (count,), generator=draw)
    for i, t in enumerate(targets.tolist()):
        inputs[i, 0, 4 * (t // 2) : 4 * (t // 2) + 4, 4 * (t % 2) : 4 * (t % 2) + 4] += 0.4
    return inputs * 3 - 1, targets


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    net, (inputs, targets) = small_net(), images(400, 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return net.eval().requires_grad_(True)


@pytest.fixture(scope="module")
def files(dense: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    recipes: dict[str, list[Any]] = {
        "pruned": [gs.prune.Magnitude(sparsity=0.8)],
        "shared": [gs.share.KMeans(bits=2)],
        "factors": [gs.factorize.SVD(rank=2)],
    }
    for name, recipe in recipes.items():
        gs.compress(dense, recipe).save(folder / f"{name}.gsm")
    return [folder / f"{name}.gsm" for name in recipes]


@pytest.fixture(scope="module")
def report(dense: nn.Module, files: list[Path]) -> Report:
    return report_of(
        files,
        network=small_net,
        data=images(300, 2),
        train_data=images(400, 1),
        dense=dense,
        classes=("a", "b", "c", "d"),
        examples=200,
        effort=EFFORT,
    )


def test_numbers_are_those_of_the_reloaded_files(report: Report, files: list[Path]) -> None:
    inputs, targets = images(300, 2)
    first, *rest = report.document["files"]
    assert first["dense"] and first["ratio"] == 1
    for path, file in zip(files, rest, strict=True):
        ledger = ledger_of(path, zstd=False)
        assert file["file_bytes"] == path.stat().st_size
        assert file["ratio"] == ledger.ratio
        again = gs.load(path, into=small_net).dense()
        assert file["accuracy"] == answers(again, inputs[:200], targets[:200]).to_json()
        assert [r["bytes"] for r in file["layers"]] == [t.file_bytes for t in ledger.tensors]
        assert [r["density"] for r in file["layers"]] == [t.nonzero for t in ledger.tensors]
        assert file["description_length"]["model_bits"] == 8 * path.stat().st_size


def test_all_parts_are_measured_and_serialise(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json()))
    assert document["version"] == 1
    assert document["data"] == {"examples": 200, "shape": "1×8×8", "classes": ["a", "b", "c", "d"]}
    for file in document["files"]:
        shared = ("accuracy", "generalisation", "robustness", "corruptions", "latency")
        own = () if file["dense"] else ("kernels", "description_length", "changed")
        assert all(file[key] for key in (*shared, *own)), file["name"]
    by_name = {f["name"]: f for f in document["files"]}
    weight = by_name["pruned"]["layers"][0]
    assert weight["mask"]["uri"].startswith("data:image/png;base64,")
    assert weight["input_mask"]["width"] == 8
    assert by_name["factors"]["layers"][0]["rank"] == 2
    assert by_name["shared"]["layers"][0]["mask"] is None
    assert all("temperature" in f["description_length"] for f in document["files"] if not f["dense"])
    assert document["missing"] == {}


def test_the_dense_time_is_the_middle_one_of_those_beside_the_files_with_its_quartiles(report: Report) -> None:
    first, *rest = (file["latency"] for file in report.document["files"])
    taken = sorted((f["dense_milliseconds"], f["dense_low"], f["dense_high"]) for f in rest)
    assert (first["milliseconds"], first["low"], first["high"]) == taken[len(taken) // 2]
    assert all(low <= time <= high for time, low, high in taken)


def test_the_page_of_it_is_headed_by_the_best(report: Report) -> None:
    page = report.html()
    assert "× smaller" in report.headline
    assert report.headline.split(":")[0] in page
    for figure in ("front-size", "front-time", "robustness", "cost", "gap", "lengths-1", "changed-c", "masks-a"):
        assert f'<figure id="{figure}"' in page


def test_networks_are_left_as_they_were(dense: nn.Module, files: list[Path]) -> None:
    net = small_net()
    net.load_state_dict(dense.state_dict())
    net.train()
    net[1].weight.grad = torch.ones_like(net[1].weight)  # type: ignore[index, union-attr]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    contents = [path.read_bytes() for path in files]
    report_of(files[:1], network=small_net, data=images(50, 2), dense=net, effort=EFFORT)
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net[1].weight.grad, torch.ones(32, 64))  # type: ignore[index, union-attr]
    assert [path.read_bytes() for path in files] == contents


def test_files_alone_tell_of_their_bytes(files: list[Path]) -> None:
    found = report_of(files)
    assert all(f["accuracy"] is None and f["layers"] for f in found.document["files"])
    assert "Accuracy, time, robustness" in found.document["missing"]
    assert "needs the network" in found.html()


class Words(nn.Module):
    """Twelve tokens; what comes next depends on the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 16)
        self.head = nn.Linear(16, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(tokens))
        return found


class Wrapped(nn.Module):
    """The same as transformers returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Words()

    def forward(self, tokens: Tensor) -> Any:
        class Outputs:
            logits = self.words(tokens)

        return Outputs()


@pytest.mark.parametrize("kind", [Words, Wrapped])
def test_language_models_have_perplexity_and_words_in_context(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = kind().eval()
    gs.compress(net, [gs.prune.Magnitude(sparsity=0.7)]).save(tmp_path / "words.gsm")
    tokens = torch.randint(12, (9, 20))
    found = report_of(
        [tmp_path / "words.gsm"],
        network=kind,
        data=[(tokens[:5, :-1], tokens[:5, 1:]), (tokens[5:, :-1], tokens[5:, 1:])],
        dense=net,
        classes=[f" w{i}" for i in range(12)],
        effort=EFFORT,
    )
    file = found.document["files"][1]
    assert file["accuracy"]["count"] == 9 * 19
    assert file["accuracy"]["perplexity"] > 1
    assert file["robustness"] is None
    row = file["changed"]["rows"][0]
    seen = file["seen"][f"{row['index']}:{row['position']}"]
    assert seen["word"] == f" w{row['true']}" == f" w{int(tokens[row['index'], row['position'] + 1])}"
    assert "perplexity" in found.headline
    assert "<mark>" in found.html()


def test_words_without_a_vocabulary_are_numbers() -> None:
    found = word_sights([{"index": 0, "position": 0, "true": 5}], torch.tensor([[7, 5]]), ())
    assert found == {"0:0": {"before": " 7", "word": " 5", "after": ""}}


def test_masks_are_densities_exactly() -> None:
    live = torch.rand(37, 53, generator=torch.Generator().manual_seed(0)) < 0.3
    shares = density_map(live.numpy(), 8, 8)
    assert shares.shape == (8, 8)
    rows = [37 * (i + 1) // 8 - 37 * i // 8 for i in range(8)]
    columns = [53 * (i + 1) // 8 - 53 * i // 8 for i in range(8)]
    total = sum(shares[i, j] * rows[i] * columns[j] for i in range(8) for j in range(8))
    assert round(total) == int(live.sum())
    assert density_map(live.numpy(), 100, 100).astype(bool).tolist() == live.tolist()
    assert input_picture(torch.ones(4, 64), (3, 8, 8)) is None
    assert input_picture(torch.ones(4, 64), (1, 8, 8)) is not None


def test_ranks_are_found_within_trees(files: list[Path]) -> None:
    trees = gs.load(files[2]).trees
    assert [rank_of(tree) for name, tree in trees.items() if name.endswith("weight")] == [2, 2]


def test_what_makes_no_sense_is_refused(files: list[Path], dense: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="at least one"):
        report_of([])
    with pytest.raises(PlanError, match="network"):
        report_of(files, data=images(10, 0))
    with pytest.raises(DataError, match="twice"):
        report_of([files[0], files[0]])
    with pytest.raises(DataError, match="no such file"):
        report_of([tmp_path / "none.gsm"])
    with pytest.raises(FormatError, match=r"pruned\.gsm"):
        report_of(files, network=lambda: nn.Linear(3, 3))
    broken = tmp_path / "broken.gsm"
    broken.write_bytes(files[0].read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"broken\.gsm"):
        report_of([broken])
    inputs, targets = images(10, 0)
    with pytest.raises(DataError, match=r"dense: found target 7, expected 0 to 3"):
        report_of(files, network=small_net, data=(inputs, targets + 4), dense=dense, effort=EFFORT)
    with pytest.raises(DataError, match="expected class numbers"):
        report_of(files, network=small_net, data=(inputs, targets.float()))
    with pytest.raises(DataError, match=r"pruned\.gsm: classes: found 3 names, expected one for each of 4 outputs"):
        report_of(files, network=small_net, data=(inputs, targets), classes=("a", "b", "c"), effort=EFFORT)
    holed = copy.deepcopy(dense)
    name, weight = next(iter(holed.named_parameters()))
    weight.data.view(-1)[0] = torch.nan
    with pytest.raises(DataError, match=f"^dense network: {name}: found 1 of "):
        report_of(files, network=small_net, data=(inputs, targets), dense=holed, effort=EFFORT)
    inputs[3, 0, 1, 2] = torch.nan
    with pytest.raises(DataError, match=r"^data: inputs: found 1 of 640 values .*, the first at \[3, 0, 1, 2\]"):
        report_of(files, network=small_net, data=(inputs, targets), effort=EFFORT)
    with pytest.raises(DataError, match="no pair"):
        report_of(files, network=small_net, data=[inputs])


class _WithMask(nn.Module):
    """Infinities among the buffers, as causal masks have them, and state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.register_buffer("mask", torch.triu(torch.full((4, 4), -torch.inf), 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs)
        return outputs

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        del state


def test_infinite_buffers_of_the_dense_network_are_its_own_business(tmp_path: Path) -> None:
    dense = _WithMask().eval()
    file = tmp_path / "pruned.gsm"
    gs.compress(dense, [gs.prune.Magnitude(sparsity=0.5)]).save(file)
    assert report_of([file], network=_WithMask, dense=dense, data=images(20, 0), effort=EFFORT).headline
