"""What a user's loop notices: refusals before training, stops in training, scalars, ranks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train.every_method import every_method
from train.nets import batch, live, mlp, positions, started, train_step
from train.rank import AGREE

import gossamer as gs
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.nn import SparseLinear
from gossamer.train import (
    ITOP,
    SET,
    Checkpoint,
    Developmental,
    GradualMagnitude,
    NofM,
    Parts,
    PruneAndGrow,
    RigL,
    Sparsifier,
    SRigL,
    Static,
    TopKAST,
    grow,
    harvest,
    schedule,
    scope,
    sparse_layers,
    sparsify,
    structure,
)
from gossamer.train.allocation import Uniform


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(sparsity=1.0), "sparsity 1.0"),
        (lambda: Static(sparsity=-0.1), "sparsity -0.1"),
        (lambda: Static(sparsity="0.9"), "Static: sparsity: found '0.9', expected a number"),  # type: ignore[arg-type]
        (lambda: RigL(sparsity=0.9, steps="100"), "RigL: steps: found '100', expected a number"),  # type: ignore[arg-type]
        (
            lambda: RigL(sparsity=0.9, steps=10, every=100),
            "at least one update within the run: set every= to at most 7",
        ),
        (lambda: RigL(sparsity=0.9, steps=1000, fraction=0.0), "fraction 0.0"),
        (lambda: ITOP(sparsity=0.9, steps=100), "at least one update"),
        (lambda: NofM(n=3, m=2, steps=100), "3:2"),
        (lambda: SRigL(sparsity=0.9, steps=1000, ablate=2.0), "ablate 2.0"),
        (lambda: TopKAST(sparsity=0.5, backward_sparsity=0.8, steps=1000), "backward_sparsity 0.8"),
        (lambda: Developmental(sparsity=0.9, steps=1000, rewired=0.5), "rewired 0.5"),
        (lambda: grow.Momentum(beta=1.0), "beta 1.0"),
        (lambda: Parts(schedule=schedule.Linear(every=1, end=9, fraction=0.3)), "without a grow score"),
        (
            lambda: Parts(schedule=schedule.Cubic(every=1, end=9), scope=scope.BySurvivors()),
            "constant density",
        ),
        (
            lambda: Parts(schedule=schedule.Cubic(every=1, end=9), structure=structure.NofM(1, 2)),
            "constant density, PerLayer",
        ),
        (
            lambda: Parts(
                schedule=schedule.Linear(every=1, end=9, fraction=0.3), grow=grow.Random(), scope=scope.ByStrength()
            ),
            "strengths",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(make: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Static(sparsity=0.9999), "leaves no weight"),
        (NofM(n=1, m=3, steps=1000), "rows of 20, expected a multiple of 3"),
        (SRigL(sparsity=0.9995, steps=1000), "at least one per row"),
        (
            Static(sparsity=0.5, only="nothing*"),
            r"only: found 'nothing\*', which no layer matches, expected one of 0, 2",
        ),
        (Static(sparsity=0.5, only=("0", "fc9")), "only: found 'fc9', which no layer matches"),
        (Static(sparsity=0.5, skip=("0", "haed")), "skip: found 'haed', which nothing matches"),
        (Static(sparsity=0.5, only="0", skip="0"), "0: not meant by only='0', skip='0'"),
        (Static(sparsity=0.0), "every layer full"),
        (gs.prune.Magnitude(sparsity=0.0), "every layer full"),
    ],
)
def test_impossible_requests_fail_before_training_and_leave_the_network_alone(method: object, message: str) -> None:
    model = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(PlanError, match=message):
        sparsify(model, method)  # type: ignore[arg-type]
    assert str(model) == str(before)


def test_an_optimiser_made_too_early_or_without_a_place_per_weight_is_refused() -> None:
    method = Static(sparsity=0.8)
    model = mlp()
    early = torch.optim.SGD(model.parameters(), 0.1)
    sparsify(model, method)
    with pytest.raises(PlanError, match="made after sparsify"):
        Sparsifier(model, early, method)
    with pytest.raises(PlanError, match="LBFGS"):
        Sparsifier(model, torch.optim.LBFGS(model.parameters()), method)
    with pytest.raises(PlanError, match="no sparse layer"):
        Sparsifier(mlp(), early, method)


def test_layers_that_cannot_be_replaced_stay_and_the_reason_is_given() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.attend = nn.MultiheadAttention(16, 2)
            self.frozen = nn.Linear(16, 16).requires_grad_(False)
            self.half = nn.Linear(16, 16).to(torch.bfloat16)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embed.weight
            self.hooked = nn.Linear(16, 16)
            self.hooked.register_forward_hook(lambda *args: None)
            self.good = nn.Linear(16, 32)
            self.again = self.good

    method = Static(sparsity=0.8)
    model = sparsify(Odd(), method)
    assert list(sparse_layers(model)) == ["good"]
    assert model.again is model.good
    for name, why in {
        "attend.out_proj": "attention",
        "frozen": "frozen",
        "half": "bfloat16",
        "normed": "parametrization",
        "head": "shares",
        "hooked": "hooks",
    }.items():
        with pytest.raises(PlanError, match=why):
            sparsify(Odd(), Static(sparsity=0.8, only=name))


def test_conversion_happens_in_place_and_values_are_those_of_the_dense_layer() -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    assert sparsify(model, Static(sparsity=0.8, rescale=False, skip="4")) is model
    assert type(model[4]) is nn.Linear
    for name, layer in sparse_layers(model).items():
        weight = dense.get_submodule(name).weight
        assert torch.equal(layer.dense_weight(), torch.where(layer.topology.mask(), weight, 0.0))  # type: ignore[arg-type]
    assert live(model) == dict(zip("02", Static(sparsity=0.8).live_counts("02", [(64, 20), (40, 64)]), strict=True))
    alone = sparsify(nn.Linear(30, 20), Static(sparsity=0.5))
    assert isinstance(alone, SparseLinear)


def test_rescaled_starts_keep_the_variance_of_outputs() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(400, 300, bias=False)
    x = torch.randn(500, 400)
    for sparsity in (0.5, 0.95):
        layer = sparsify(copy.deepcopy(dense), Static(sparsity=sparsity))
        with torch.no_grad():
            assert 0.95 < float(layer(x).std() / dense(x).std()) < 1.05
        kept = sparsify(copy.deepcopy(dense), Static(sparsity=sparsity, rescale=False))
        with torch.no_grad():
            assert float(kept(x).std() / dense(x).std()) == pytest.approx((1 - sparsity) ** 0.5, rel=0.05)


def test_training_starts_from_a_pruning_method_or_from_masks() -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    method = RigL(sparsity=0.8, steps=100, every=5, only="2")
    with pytest.warns(
        UserWarning, match=r"start: found masks of sparsity 0\.75\d*, which RigL keeps, expected the 0\.8"
    ):
        sparsify(model, method, start=gs.prune.Magnitude(sparsity=0.75, only="2.weight"))
    weight = dense[2].weight
    threshold = weight.abs().flatten().sort().values[round(0.75 * weight.numel())]
    assert torch.equal(sparse_layers(model)["2"].topology.mask(), weight.abs() >= threshold)
    assert list(sparse_layers(model)) == ["2"]
    mask = torch.rand(40, 64) < 0.3
    model = sparsify(mlp(), Static(sparsity=1 - float(mask.float().mean())), start={"2": mask})
    assert torch.equal(sparse_layers(model)["2"].topology.mask(), mask)
    fixed = sparsify(mlp(), gs.prune.Magnitude(sparsity=0.5))
    assert all(0.4 < layer.topology.sparsity < 0.6 for layer in sparse_layers(fixed).values())
    for masks, message in (
        ({"2": torch.zeros(40, 64, dtype=torch.bool)}, "keeps nothing"),
        ({"2": mask[:3]}, r"found \(3, 64\)"),
        ({"9": mask}, "found masks of 9"),
    ):
        with pytest.raises(PlanError, match=message):
            sparsify(mlp(), Static(sparsity=0.1), start=masks)
    with pytest.raises(PlanError, match="does not allow"):
        sparsify(mlp(), NofM(n=1, m=4, steps=1000), start={"2": mask})


@pytest.mark.parametrize("name", ["rigl", "n of m", "srigl", "topkast"])
def test_a_harvest_is_exact_and_is_saved_loaded_inspected_and_run(name: str, tmp_path: Path) -> None:
    method = every_method(40, 3)[name]
    model, optimizer, sparsifier = started(method)
    for step in range(12):
        train_step(model, optimizer, step)
        sparsifier.step()
    sparsifier.finish()
    small = harvest(model, method)
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=mlp)
    for dense in (small.dense(), again.dense()):
        for part, layer in sparse_layers(model).items():
            assert torch.equal(dense.get_submodule(part).weight, layer.dense_weight())  # type: ignore[arg-type]
    x = torch.randn(5, 20)
    torch.testing.assert_close(again.dense()(x), model.eval()(x))
    torch.testing.assert_close(again.lower(x)(x), model(x), rtol=1e-4, atol=1e-5)
    assert again.ledger().ratio > 1
    before = positions(model)
    assert all(torch.equal(before[n], p) for n, p in positions(model).items())
    with pytest.raises(CompositionError, match="no sparse layer"):
        harvest(mlp())


def test_grown_weights_that_are_still_zero_are_live_in_the_harvest() -> None:
    model, optimizer, sparsifier = started(RigL(sparsity=0.8, steps=100, every=1))
    train_step(model, optimizer, 0)
    sparsifier.step()
    layer = sparse_layers(model)["2"]
    assert int((layer.values == 0).sum()) > 10
    tree = harvest(model).trees["2.weight"]
    assert torch.equal(tree.where.positions(), layer.topology.positions)  # type: ignore[attr-defined]


def test_a_loss_or_weights_that_are_not_finite_stop_the_run_and_name_the_last_good_state(tmp_path: Path) -> None:
    method = SET(sparsity=0.8, steps=100, every=5)
    model = sparsify(mlp(), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = tmp_path / "good.safetensors"
    sparsifier = Sparsifier(model, optimizer, method, checkpoint=Checkpoint(path, every=2))
    for step in range(3):
        sparsifier.step(train_step(model, optimizer, step))
    with pytest.raises(DataError, match=r"step 4: found loss nan, expected finite numbers; .*good\.safetensors"):
        sparsifier.step(float("nan"))
    sparse_layers(model)["2"].values.data[3] = torch.inf
    with pytest.raises(DataError, match=r"step 5: found 1 values that are not finite in '2\.values'"):
        sparsifier.step()
    fresh = Sparsifier(model, optimizer, method)
    with pytest.raises(DataError, match="no checkpoint was written"):
        fresh.step()
    assert sparsifier.resume(path) == 2
    sparsifier.step(train_step(model, optimizer, 2))


class Heard:
    """A writer."""

    def __init__(self) -> None:
        self.told: dict[str, dict[int, float]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.told.setdefault(tag, {})[step] = value


def test_a_writer_hears_density_changes_overlap_and_loss() -> None:
    method = ITOP(sparsity=0.8, steps=100, every=5)
    model = sparsify(mlp(), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    heard = Heard()
    sparsifier = Sparsifier(model, optimizer, method, writer=heard)
    start = positions(model)["2"]
    for step in range(12):
        update = sparsifier.step(train_step(model, optimizer, step))
        if update is not None:
            assert heard.told["grown/2"][step + 1] == update.layers["2"].grown > 0
    now = positions(model)["2"]
    assert heard.told["overlap_with_start/2"][10] == pytest.approx(float(torch.isin(start, now).float().mean()))
    assert heard.told["overlap_with_start/2"][0] == 1.0
    assert heard.told["density"] == pytest.approx(dict.fromkeys((0, 5, 10), 0.2), abs=1e-3)
    assert sorted(heard.told["loss"]) == list(range(1, 13))
    assert heard.told["explored"][10] == pytest.approx(sparsifier.explored)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind that trained together over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *filter(None, sys.path)])}
    command = [sys.executable, str(here / "rank.py")]
    running = [subprocess.Popen([*command, str(r), str(folder)], env=env) for r in (0, 1)]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    return folder


@pytest.mark.parametrize("name", AGREE)
def test_ranks_of_a_distributed_run_agree_on_every_topology(name: str, ranks: Path) -> None:
    (first, weights), (second, others) = (torch.load(ranks / f"{name}.{r}.pt", weights_only=True) for r in (0, 1))
    changes = 0
    for step, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
        changes += step > 0 and any(not torch.equal(mine[n], first[step - 1][n]) for n in mine)
    assert changes == 5
    assert all(torch.equal(weights[n], others[n]) for n in weights)


def test_ranks_choose_what_one_process_with_all_their_data_would(ranks: Path) -> None:
    found, _ = torch.load(ranks / "rigl.0.pt", weights_only=True)
    method = every_method(40, 3)["rigl"]
    model = sparsify(mlp(), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, method)
    start = positions(model)
    for step in range(3):
        x, y = (torch.cat(pair) for pair in zip(batch(2 * step), batch(2 * step + 1), strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        sparsifier.step()
    for n, mine in positions(model).items():
        assert not torch.equal(mine, start[n])
        assert int((~torch.isin(mine, found[2][n])).sum()) <= 0.01 * len(mine)  # sums in another order


def test_ranks_that_disagree_or_whose_layers_change_size_are_stopped(ranks: Path) -> None:
    for name, message in (("set", "another rank"), ("dsr", "fixed sizes")):
        assert all(message in (ranks / f"{name}.{r}.error").read_text() for r in (0, 1))


def test_two_methods_share_a_network() -> None:
    first, second = (
        Static(sparsity=0.5, only="0"),
        SET(sparsity=0.9, steps=100, every=2, skip="0", allocation=Uniform()),
    )
    model = sparsify(sparsify(mlp(), first), second)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifiers = [Sparsifier(model, optimizer, m) for m in (first, second)]
    start = positions(model)
    for step in range(2):
        train_step(model, optimizer, step)
        for sparsifier in sparsifiers:
            sparsifier.step()
    assert torch.equal(positions(model)["0"], start["0"])
    assert not torch.equal(positions(model)["2"], start["2"])


def test_dense_shares_and_mean_densities_are_those_of_the_run() -> None:
    for method in (GradualMagnitude(sparsity=0.9, steps=60, every=5), Developmental(sparsity=0.8, steps=60, every=5)):
        model, optimizer, sparsifier = started(method)
        seen = []
        for step in range(60):
            seen.append(1 - sparsifier.sparsity)
            train_step(model, optimizer, step)
            sparsifier.step()
        assert method.mean_density(60) == pytest.approx(sum(seen) / 60, abs=2e-3)
        assert method.dense_share(60) == pytest.approx(sum(d == 1 for d in seen) / 60)
    composed = PruneAndGrow(sparsity=0.9, made_of=Parts(schedule=schedule.Never()))
    assert composed.mean_density(10) == pytest.approx(0.1)


def test_bf16_autocast_and_gradient_clipping_train() -> None:
    method = RigL(sparsity=0.8, steps=100, every=5)
    model, optimizer, sparsifier = started(method)
    losses = []
    for step in range(60):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        sparsifier.step(loss)
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
