"""The table of the families benchmark, and one row of it from training to the document."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
from benchmarks import families
from benchmarks import rows as kept_rows
from benchmarks.families_rows import NETWORKS, Network, Row
from benchmarks.zoo import Subject, Zoo
from benchmarks.zoo.run import epochs, methods_code, once, recipe_for, stamp
from gossamer.drive.recipe import Recipe

FIELDS = {
    *("network", "family", "method", "setting", "file_bytes", "dense_bytes", "metric", "value", "dense_value"),
    *("latency_ms", "dense_latency_ms", "seconds"),
}
FAMILIES = {"down-sizing", "factorization", "quantization", "value-compression", "sharing", "sparsification"}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_rows_are_named_once_and_some_are_quick(network: Network) -> None:
    settings = [(r.method, r.setting) for r in network.rows]
    assert len(set(settings)) == len(settings)
    assert {r.family for r in network.rows} <= FAMILIES | {"composed"}
    assert any(r.quick for r in network.rows)


def test_every_method_has_a_good_setting_and_a_breaking_one_on_some_network() -> None:
    seen: dict[str, set[bool]] = {}
    for row in (r for network in NETWORKS for r in network.rows):
        seen.setdefault(row.method, set()).add(row.breaking)
    assert {m for m, kinds in seen.items() if kinds != {True, False}} == {
        "Coding",
        "Preset",
        "Cast",
        "Heads",
    }  # do not break


def test_keys_of_rows_are_the_same_in_every_run() -> None:
    for network in NETWORKS:
        for row in network.rows:
            # a function is replaced by the recipe that it gives before a key is made of it
            assert callable(row.recipe) or " at 0x" not in repr(row.recipe), f"{network.name} {row.method}"


def test_a_recipe_that_depends_on_the_network_is_made_for_it_before_it_is_keyed() -> None:
    def halves(model: nn.Module) -> Recipe:
        return [gs.share.KMeans(bits=1, only=next(n for n, _ in model.named_parameters()))]

    made = recipe_for(halves, lambda: nn.Linear(2, 3))
    assert made == [gs.share.KMeans(bits=1, only="weight")]
    assert recipe_for(made, nn.Module) is made


def test_a_row_depends_on_the_families_in_its_recipe_also_inside_of_stages() -> None:
    ramp = gs.Gradual(methods=(gs.prune.Magnitude(sparsity=0.5),), tune=gs.Tune(epochs=3))
    recipe = [ramp, gs.share.KMeans(bits=2), gs.Tune(epochs=4)]
    assert methods_code(recipe) == ("gossamer/methods/prune/**/*.py", "gossamer/methods/share/**/*.py")
    assert methods_code([]) == ()
    assert epochs(recipe) == 7
    assert epochs(once(recipe)) == 2
    assert stamp("a", recipe) == stamp("a", list(recipe)) != stamp("a", recipe[:2])


def test_points_lost_of_an_error_rise_with_it(tmp_path: Path) -> None:
    subject = _subject(Zoo(None, tmp_path, quick=True))
    assert subject.lost(0.9, 0.8) == pytest.approx(10)
    assert replace(subject, metric="phoneme-error").lost(0.1, 0.3) == pytest.approx(20)


def _subject(zoo: Zoo) -> Subject:
    opened = NETWORKS[0].open(zoo)
    return replace(opened, name="small")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Row]:
    """A table of one network; nothing is kept outside of the test's folder."""
    rows = [
        Row("value-compression", "Coding", "lossless", [], quick=True),
        Row("sharing", "KMeans", "2 values", [gs.share.KMeans(bits=1)], quick=True),
        Row("sharing", "KMeans", "refused", [gs.share.KMeans(bits=1), gs.factorize.SVD(rank=2)], quick=True),
        Row("sharing", "KMeans", "made for the network", lambda _: [gs.share.KMeans(bits=3)], quick=True),
        Row("sharing", "KMeans", "not quick", [gs.share.KMeans(bits=2)]),
    ]
    network = Network("small", _subject, ("benchmarks/zoo/fashion.py",), tuple(rows))
    far = Network("far", _subject, (), tuple(rows), packaged=False)
    monkeypatch.setattr(families, "NETWORKS", (network, far))
    # the code is where it is, what is kept goes elsewhere
    (tmp_path / "benchmarks").mkdir()
    for part in ("gossamer", "benchmarks/zoo"):
        (tmp_path / part).symlink_to(kept_rows.ROOT / part)
    monkeypatch.setattr(kept_rows, "ROOT", tmp_path)
    monkeypatch.setattr(families, "ROOT", tmp_path)
    monkeypatch.setattr(families, "THREADS", 1)
    return rows


def test_the_document_has_every_field_names_what_failed_and_a_second_run_measures_nothing(
    small: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["families", "--quick", "--json", str(file)])
    assert families.main() == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out.splitlines()[-1])
    assert document == json.loads(file.read_text(encoding="utf-8"))
    assert [r["setting"] for r in document["rows"]] == ["lossless", "2 values", "made for the network"]
    for row in document["rows"]:
        assert row.keys() >= FIELDS
        assert row["dense_value"] > 0.7
    lossless, broken, _ = document["rows"]
    assert lossless["value"] == lossless["dense_value"] > broken["value"]
    assert lossless["file_bytes"] < lossless["dense_bytes"]
    assert [(m["setting"], "share" in m["why"].lower()) for m in document["missing"]] == [("refused", True)]
    assert "far: left out, it needs --zoo" in printed.err

    def refuse(*_: object) -> None:
        raise AssertionError("a finished row was made again")

    monkeypatch.setattr(families, "measure_row", refuse)
    monkeypatch.setattr(families, "latency", refuse)
    monkeypatch.setattr(sys, "argv", ["families", "--quick", "--only", "small/*/2 values"])
    assert families.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == [broken]
    assert len(small) == 5


def test_rows_that_the_time_does_not_suffice_for_are_listed(
    small: list[Row], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del small
    monkeypatch.setattr(sys, "argv", ["families", "--quick", "--minutes", "0", "--only", "small/*/2*"])
    monkeypatch.setattr(families, "_dense", lambda subject, _: subject.factory().eval())
    assert families.main() == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["rows"] == []
    assert [(m["setting"], m["why"]) for m in document["missing"]] == [("2 values", "out of time")]


def test_validation_never_looks_at_the_test_images(tmp_path: Path) -> None:
    test, held = (Zoo(None, tmp_path, quick=True, validate=v).fashion for v in (False, True))
    assert len(held.train) + len(held.test) == len(test.train)
    assert torch.equal(torch.cat([held.train, held.test]), test.train)


def test_a_zoo_without_a_folder_or_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(gs.DataError, match="no zoo"):
        Zoo(None, tmp_path).path("x")
    with pytest.raises(gs.DataError, match="nothing"):
        Zoo(tmp_path, tmp_path).path("x")
    assert isinstance(NETWORKS[0].open(Zoo(None, tmp_path, quick=True)).factory(), nn.Module)
