"""The packaged data and the demo's parts."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from rich.console import Console

import gossamer as gs
from gossamer.demo.data import Shuffled, load_fashion
from gossamer.demo.job import Result, run_job
from gossamer.demo.networks import train_dense
from gossamer.demo.page import write_page
from gossamer.demo.recipes import BIASES, CLASSICS, Classic, Job
from gossamer.demo.run import _table
from gossamer.measure import accuracy

FAMILIES = {"down-sizing", "factorization", "quantization", "value-compression", "sharing", "sparsification"}


def test_the_packaged_subset_is_what_it_says() -> None:
    data = load_fashion()
    assert data.train.shape == (10_000, 1, 28, 28)
    assert data.test.shape == (2_000, 1, 28, 28)
    assert data.train_labels.bincount(minlength=10).min() > 900
    assert abs(float(data.train.mean())) < 1e-4
    assert not data.full
    folder = Path(gs.__file__).parent / "data" / "fashion_mnist"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 6_000_000
    assert "MIT" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", ["missing", "cut", "not idx"])
def test_damaged_data_are_named(tmp_path: Path, damage: str) -> None:
    source = Path(gs.__file__).parent / "data" / "fashion_mnist"
    for file in source.glob("*.xz"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = tmp_path / "t10k-labels-idx1-ubyte.xz"
    if damage == "missing":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:200])
    else:
        victim.unlink()
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0" * 100)
    with pytest.raises(gs.DataError, match="t10k-labels"):
        load_fashion(tmp_path)


def test_batches_are_the_same_for_the_same_seed_and_new_every_epoch() -> None:
    inputs, targets = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 1, 2, 2), torch.arange(40)
    one, two = (Shuffled(inputs, targets, 8, seed=3) for _ in range(2))
    first, again = [t for _, t in one], [t for _, t in two]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cat(first).sort()[0].tolist() == list(range(40))
    assert not torch.equal(torch.cat([t for _, t in one]), torch.cat(first))


@pytest.mark.parametrize("classic", CLASSICS, ids=lambda c: c.name)
def test_every_family_has_a_good_row_and_a_breaking_one(classic: Classic) -> None:
    good = {j.family for j in classic.jobs if not j.breaking}
    assert good == FAMILIES | {"composed"}
    # lossless coding cannot lose anything, so it has no breaking point
    assert {j.family for j in classic.jobs if j.breaking} == FAMILIES - {"value-compression"}


def test_lenets_have_the_sizes_of_the_papers() -> None:
    counts = [sum(p.numel() for p in c.factory().parameters()) for c in CLASSICS]
    assert counts == [266_610, 431_080]


def test_one_row_from_training_to_the_reloaded_file(tmp_path: Path) -> None:
    """The main job, small: train, prune while training, cluster, code, reload, lower, measure."""
    fashion = load_fashion()
    classic = CLASSICS[0]
    dense = train_dense(classic.factory(), fashion, gs.Tune(epochs=2, lr=2e-3), batch=128, seed=0)
    before = accuracy(dense, fashion.test, fashion.test_labels)
    assert before.value > 0.78
    ramp = gs.Gradual(
        methods=(gs.prune.Magnitude(sparsity=0.93, scope="lamp"),), tune=gs.Tune(epochs=3, distil=0.5), updates=10
    )
    job = Job("composed", "small", [ramp, gs.share.KMeans(bits=4), BIASES])
    result = run_job(classic, job, dense, before, fashion, seed=0, path=tmp_path / "a.gsm", latency_seconds=0.05)
    assert result.ledger.file_bytes == (tmp_path / "a.gsm").stat().st_size
    assert result.ledger.ratio > 40
    assert result.lost_points < 3
    live = sum(t.nonzero * t.elements for t in result.ledger.tensors if t.name.endswith("weight"))
    assert live <= round(266_200 * 0.07) + 1
    assert set(result.latency) == {1, 64}


def test_the_page_has_all_files_and_the_dense_network(tmp_path: Path) -> None:
    fashion = load_fashion()
    few = replace(
        fashion,
        train=fashion.train[:80],
        train_labels=fashion.train_labels[:80],
        test=fashion.test[:60],
        test_labels=fashion.test_labels[:60],
    )
    dense = CLASSICS[0].factory().eval()
    files = [tmp_path / "a.gsm", tmp_path / "b.gsm"]
    gs.compress(dense, [gs.prune.Magnitude(sparsity=0.9)]).save(files[0])
    gs.compress(dense, [gs.share.KMeans(bits=3)]).save(files[1])
    written = write_page(tmp_path / "report.html", files, CLASSICS[0], dense, few)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) == written
    assert "LeNet-300-100 on Fashion-MNIST, compressed in 2 ways" in page
    for figure in ("robustness", "changed-b", "masks-a", "classes-a", "lengths-1"):
        assert f'<figure id="{figure}"' in page


def test_the_table_keeps_its_last_column_on_eighty() -> None:
    time = SimpleNamespace(median_ms=1.0)
    widest = SimpleNamespace(
        job=SimpleNamespace(family="value-compression", name="lossless: entropy-coded floats"),
        ledger=SimpleNamespace(file_bytes=1_426_031, ratio=170.2, bits_per_parameter=26.46),
        before=SimpleNamespace(value=0.883),
        after=SimpleNamespace(value=0.875),
        latency={1: (time, time), 64: (time, time)},
        seconds=123,
    )
    text = StringIO()
    Console(file=text, width=80).print(_table([cast(Result, widest)]))
    assert "took" in text.getvalue() and "  123" in text.getvalue()
