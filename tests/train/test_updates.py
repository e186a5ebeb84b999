"""What every topology update does, against dense networks with masks and against the rules of each method."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train.every_method import NAMES, every_method
from train.nets import batch, live, mlp, positions, started, train_step

from gossamer.errors import DataError, PlanError
from gossamer.train import (
    DSR,
    ITOP,
    SET,
    SNFS,
    DeepR,
    Developmental,
    GradualMagnitude,
    NofM,
    Parts,
    PruneAndGrow,
    RigL,
    SparseTraining,
    Sparsifier,
    SRigL,
    Static,
    TopKAST,
    drop,
    grow,
    schedule,
    sparse_layers,
    sparsify,
)
from gossamer.train.allocation import Uniform
from gossamer.train.tracked import Tracked

PER_LAYER = {"set", "rigl", "deepr", "topkast", "itop", "n of m", "taylor", "movement", "sensitivity", "random"}
IN_TOTAL = {"snfs", "snfs window", "snfs one step", "dsr", "global rigl", "global set"}


@pytest.mark.parametrize("name", sorted(PER_LAYER | IN_TOTAL))
def test_the_number_of_live_weights_stays_exactly_the_same_over_hundreds_of_updates(name: str) -> None:
    # Another seed and sparsity for each method, the same on every run.
    seed = zlib.crc32(name.encode())
    sparsity = 0.55 + seed % 41 / 100
    method = every_method(201, 1, seed, sparsity)[name]
    model, optimizer, sparsifier = started(method)
    at_first, updates, moved = live(model), 0, 0
    for step in range(200):
        train_step(model, optimizer, step)
        update = sparsifier.step()
        if update is not None:
            updates += 1
            moved += sum(layer.grown for layer in update.layers.values())
        if name in PER_LAYER:
            assert live(model) == at_first
        assert sum(live(model).values()) == sum(at_first.values())
        assert min(live(model).values()) >= 1
    assert updates >= 140
    assert moved > 0


def masked_rigl(model: nn.Module, masks: dict[str, Tensor], method: RigL, steps: int, lr: float) -> None:
    """RigL as the paper has it, with dense weights, masks and gradients, and Adam written out."""
    weights = {n: p for n, p in model.named_parameters() if n in masks}
    state = {n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in model.named_parameters()}
    for step in range(1, steps + 1):
        x, y = batch(step - 1)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        dense = {n: p.grad.clone() for n, p in weights.items() if p.grad is not None}
        with torch.no_grad():
            for n, p in model.named_parameters():
                assert p.grad is not None
                g = p.grad * masks.get(n, 1.0)
                m, v = state[n]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                p.sub_(lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8) * masks.get(n, 1.0))
            if not method.parts().schedule.due(step):
                continue
            for n, p in weights.items():
                mask = masks[n]
                count = round(method.parts().schedule.exchanged(step) * int(mask.sum()))
                size = torch.where(mask.bool(), p.abs(), torch.inf).flatten()
                kept = mask.flatten().clone()
                kept[size.argsort()[:count]] = 0.0
                size = torch.where(kept.bool(), -torch.inf, dense[n].abs().flatten())
                kept[size.argsort(descending=True)[:count]] = 1.0
                new = (kept.view_as(mask) - mask) > 0
                masks[n] = kept.view_as(mask)
                p.mul_(masks[n])
                p[new] = 0.0
                for held in state[n]:
                    held.mul_(masks[n])
                    held[new] = 0.0


def test_rigl_is_what_dense_weights_with_masks_do_step_by_step() -> None:
    method = RigL(sparsity=0.8, steps=40, every=4, allocation=Uniform(), until=1.0)
    model, optimizer, sparsifier = started(method)
    layers = sparse_layers(model)
    reference = mlp()
    masks = {f"{n}.weight": layer.topology.mask().float() for n, layer in layers.items()}
    with torch.no_grad():
        for n, layer in layers.items():
            reference.get_submodule(n).weight.copy_(layer.dense_weight())  # type: ignore[union-attr, operator]
    masked_rigl(reference, masks, method, 40, 1e-2)
    for step in range(40):
        train_step(model, optimizer, step)
        sparsifier.step()
    for n, layer in layers.items():
        assert torch.equal(layer.topology.mask(), masks[f"{n}.weight"].bool())
        torch.testing.assert_close(layer.dense_weight(), reference.get_submodule(n).weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("adam", [True, False])
def test_survivors_keep_value_and_optimiser_state_and_what_grows_has_zero(adam: bool) -> None:
    method = SET(sparsity=0.7, steps=100, every=5)
    model, optimizer, sparsifier = started(method, adam=adam)
    for step in range(5):
        train_step(model, optimizer, step)
        layer = sparse_layers(model)["2"]
        parameter, before = layer.values, positions(model)["2"].long()
        held = {k: v.clone() for k, v in optimizer.state[layer.values].items() if k != "step" and v is not None}
        values = layer.values.detach().clone()
        update = sparsifier.step()
    assert update is not None
    assert layer.values is parameter
    assert layer.values.grad is None
    now = layer.topology.positions.long()
    both = torch.isin(now, before)
    assert 0 < int((~both).sum()) == update.layers["2"].grown
    for old, new in [(values, layer.values), *((held[k], optimizer.state[layer.values][k]) for k in held)]:
        dense = torch.zeros(layer.topology.size).index_put((before,), old)
        assert torch.equal(new[both], dense[now[both]])
        assert bool((new[~both] == 0).all())
    assert len(held) == (2 if adam else 1)


def test_growth_alone_leaves_outputs_bit_identical_and_what_grew_trains() -> None:
    method = Developmental(sparsity=0.8, steps=1000, every=2, start=0.3)
    model, optimizer, sparsifier = started(method)
    x, _ = batch(0, size=37)
    grown = 0
    for step in range(60):
        train_step(model, optimizer, step)
        before = model(x)
        update = sparsifier.step()
        if update is not None:
            assert sum(layer.dropped for layer in update.layers.values()) == 0
            grown += sum(layer.grown for layer in update.layers.values())
            assert torch.equal(model(x), before)
            zero = {n: layer.values == 0 for n, layer in sparse_layers(model).items()}
            train_step(model, optimizer, step)
            assert all(bool((layer.values[zero[n]] != 0).any()) for n, layer in sparse_layers(model).items())
    assert grown > 100


def test_momentum_is_the_exponential_mean_of_dense_gradients() -> None:
    method = SNFS(sparsity=0.8, steps=100, every=50, beta=0.8)
    model, optimizer, sparsifier = started(method)
    reference = mlp()
    mean = torch.zeros(40, 64)
    for step in range(6):
        for n, layer in sparse_layers(model).items():
            reference.get_submodule(n).weight.data.copy_(layer.dense_weight())  # type: ignore[union-attr, operator]
            reference.get_submodule(n).bias.data.copy_(layer.bias)  # type: ignore[union-attr, operator]
        reference.zero_grad()
        x, y = batch(step)
        F.cross_entropy(reference(x), y).backward()
        mean = 0.8 * mean + 0.2 * reference[2].weight.grad  # type: ignore[union-attr, operator]
        train_step(model, optimizer, step)
        sparsifier.step()
    kept = sparsifier.state_dict()["layers"]["2"]["dense"]["momentum"]
    torch.testing.assert_close(kept, mean.flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("broken", [False, True], ids=["finite", "a dead gradient is not finite"])
def test_a_mean_of_one_step_is_that_of_the_dense_gradient(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    method = SNFS(sparsity=0.97 if broken else 0.8, steps=100, every=1, window=1)
    ends = []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr(Tracked, "largest", lambda self, most: None)
            monkeypatch.setattr(Tracked, "raw_gradient", None)
        model = sparsify(mlp(), method)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sparsifier = Sparsifier(model, optimizer, method)
        x, y = batch(0)
        if broken:
            first = sparse_layers(model)["0"]
            unread = (~first.topology.mask()).all(0).nonzero()[0]
            x[:, unread] = torch.inf
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert sparsifier.step() is not None
        held = [optimizer.state[layer.values]["momentum_buffer"] for layer in sparse_layers(model).values()]
        assert all(bool(h.isfinite().all()) for h in held)
        ends.append((positions(model), held))
    (found, held), (other, expected) = ends
    if broken:
        return
    assert all(torch.equal(found[name], other[name]) for name in found)
    for one, two in zip(held, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_growth_by_gradient_is_blind_to_clipping_and_accumulation_adds_up() -> None:
    """Clipping shrinks the gradients of live weights only; those that compete with dead ones must not feel it."""
    chosen = []
    for clip, parts in ((1e-4, 1), (None, 1), (None, 4)):
        model = sparsify(mlp(), RigL(sparsity=0.5, steps=100, every=1, fraction=0.9))
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        sparsifier = Sparsifier(model, optimizer, RigL(sparsity=0.5, steps=100, every=1, fraction=0.9))
        x, y = batch(0)
        for part in range(parts):
            span = slice(part * 32 // parts, (part + 1) * 32 // parts)
            (F.cross_entropy(model(x[span]), y[span]) / parts).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        assert sparsifier.step() is not None
        chosen.append(positions(model))
    for other in chosen[1:]:
        for name, found in chosen[0].items():
            differing = (~torch.isin(found, other[name])).sum()
            assert int(differing) <= 0.002 * len(found)  # sums of parts round differently


def test_n_of_m_holds_at_every_step() -> None:
    for method in (NofM(n=2, m=4, steps=60, every=3), NofM(n=1, m=4, steps=60, every=3, grow=grow.Random())):
        model, optimizer, sparsifier = started(method)
        start, changes = positions(model), 0
        for step in range(30):
            train_step(model, optimizer, step)
            update = sparsifier.step()
            changes += sum(m.grown for m in update.layers.values()) if update else 0
            for layer in sparse_layers(model).values():
                groups = layer.topology.mask().reshape(-1, 4).sum(1)
                assert bool((groups == method.n).all())
        assert changes > 20
        assert any(not torch.equal(start[n], now) for n, now in positions(model).items())


def test_constant_fan_in_holds_and_neurons_are_ablated_for_good() -> None:
    method = SRigL(sparsity=0.9, steps=200, every=2, fraction=0.5, ablate=0.9, allocation=Uniform())
    model, optimizer, sparsifier = started(method)
    budget, gone = (
        live(model),
        {n: torch.zeros(64, dtype=torch.bool)[: s.weight_shape[0]] for n, s in sparse_layers(model).items()},
    )
    for step in range(80):
        train_step(model, optimizer, step)
        sparsifier.step()
        for name, layer in sparse_layers(model).items():
            fan_in = layer.topology.mask().sum(1)
            alive = fan_in > 0
            assert len(fan_in[alive].unique()) == 1
            assert budget[name] - layer.weight_shape[0] < layer.topology.live <= budget[name]
            assert not bool((gone[name] & alive).any())
            gone[name] |= ~alive
    assert sum(int(g.sum()) for g in gone.values()) > 0


def test_only_the_forward_set_of_top_kast_makes_the_output_and_all_of_b_gets_gradients() -> None:
    method = TopKAST(sparsity=0.9, backward_sparsity=0.6, steps=100, every=10)
    model, optimizer, sparsifier = started(method)
    for step in range(25):
        train_step(model, optimizer, step)
        sparsifier.step()
        for layer in sparse_layers(model).values():
            shown = int((layer.values != 0).sum())
            assert shown <= round(0.25 * layer.topology.live)
            assert shown >= 0.2 * layer.topology.live
    x, y = batch(99)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    layer = sparse_layers(model)["2"]
    hidden = layer.values == 0
    assert layer.values.grad is not None
    assert float((layer.values.grad[hidden] != 0).float().mean()) > 0.5
    before = model(x)
    sparsifier.finish()
    torch.testing.assert_close(model(x), before)
    total = sum(layer.topology.size for layer in sparse_layers(model).values())
    assert abs(1 - sum(live(model).values()) / total - 0.9) < 0.01


def test_deep_rewiring_drops_exactly_what_would_change_its_sign() -> None:
    method = DeepR(sparsity=0.7, steps=200, l1=0.02, allocation=Uniform())
    model, optimizer, sparsifier = started(method, adam=False, lr=0.05)
    flips = 0
    for step in range(50):
        train_step(model, optimizer, step)
        signs = {n: s["memory"]["sign"].clone() for n, s in sparsifier.state_dict()["layers"].items()}
        expected = {}
        for n, layer in sparse_layers(model).items():
            walked = layer.values.detach() - 0.05 * 0.02 * signs[n]
            expected[n] = int((walked * signs[n] < 0).sum())
        update = sparsifier.step()
        assert update is not None
        flips += sum(expected.values())
        for n, layer in sparse_layers(model).items():
            assert update.layers[n].dropped <= expected[n]
            sign = sparsifier.state_dict()["layers"][n]["memory"]["sign"]
            # Of a layer in which all would go, one stays: layers do not become empty.
            assert int((layer.values * sign < 0).sum()) == int(expected[n] == layer.topology.live)
    assert flips > 20


def test_gradual_pruning_only_shrinks_and_ends_at_the_sparsity() -> None:
    for across in (False, True):
        method = GradualMagnitude(sparsity=0.9, steps=100, every=7, across_layers=across)
        model, optimizer, sparsifier = started(method)
        total = sum(live(model).values())
        assert sparsifier.sparsity == 0.0
        before = positions(model)
        for step in range(70):
            train_step(model, optimizer, step)
            sparsifier.step()
            now = positions(model)
            assert all(bool(torch.isin(now[n], before[n]).all()) for n in now)
            before = now
        assert sum(live(model).values()) == total - round(0.9 * total)
        assert method.dense_share(100) == pytest.approx(0.07)


def test_dsr_moves_weights_between_layers_and_its_threshold_finds_the_wanted_number() -> None:
    method = DSR(sparsity=0.8, steps=400, every=2, threshold=1e-6, fraction=0.1)
    model, optimizer, sparsifier = started(method)
    at_first, dropped = live(model), []
    for step in range(120):
        train_step(model, optimizer, step)
        update = sparsifier.step()
        if update is not None:
            dropped.append(sum(m.dropped for m in update.layers.values()))
    assert dropped[0] == 0
    assert 0.02 * sum(at_first.values()) < sum(dropped[-20:]) / 20 < 0.3 * sum(at_first.values())
    assert live(model) != at_first


def test_itop_counts_what_ever_lived() -> None:
    method = ITOP(sparsity=0.8, steps=60, every=5, growth=grow.Random())
    model, optimizer, sparsifier = started(method)
    ever = {n: layer.topology.mask() for n, layer in sparse_layers(model).items()}
    for step in range(60):
        train_step(model, optimizer, step)
        sparsifier.step()
        ever = {n: m | sparse_layers(model)[n].topology.mask() for n, m in ever.items()}
    expected = sum(int(m.sum()) for m in ever.values()) / sum(m.numel() for m in ever.values())
    assert sparsifier.explored == pytest.approx(expected)
    assert expected > 0.5
    with pytest.raises(PlanError, match="explored"):
        started(Static(sparsity=0.5))[2].explored  # noqa: B018


def test_drop_scores_are_their_formulas() -> None:
    scores = {}
    for name, score in {
        "taylor": drop.Taylor(),
        "movement": drop.Movement(),
        "sensitivity": drop.Sensitivity(),
    }.items():
        parts = Parts(schedule=schedule.Linear(every=3, end=30, fraction=0.3), drop=score, grow=grow.Random())
        model, optimizer, sparsifier = started(PruneAndGrow(sparsity=0.5, made_of=parts))
        layer, by_hand = sparse_layers(model)["2"], torch.zeros(())
        for step in range(3):
            train_step(model, optimizer, step)
            assert layer.values.grad is not None
            w, g = layer.values.detach(), layer.values.grad
            shown = {"taylor": (w * g).abs(), "movement": -w * g, "sensitivity": g.abs()}[name]
            by_hand = shown if name == "taylor" else by_hand + shown
            where = layer.topology.positions
            sparsifier.step()
        scores[name] = by_hand
        gone = ~torch.isin(where, layer.topology.positions)
        assert 0 < int(gone.sum()) <= round(0.27 * len(where))
        assert float(by_hand[gone].max()) <= float(by_hand[~gone].min())
    assert len(scores) == 3


def test_an_update_waits_while_gradients_overflow() -> None:
    method = RigL(sparsity=0.8, steps=100, every=2)
    model, optimizer, sparsifier = started(method)
    train_step(model, optimizer, 0)
    assert sparsifier.step() is None
    x, y = batch(1)
    optimizer.zero_grad()
    (F.cross_entropy(model(x), y) * torch.inf).backward()  # a scaler would skip the step
    assert sparsifier.step() is None
    train_step(model, optimizer, 2)
    update = sparsifier.step()
    assert update is not None
    assert update.step == 3
    train_step(model, optimizer, 3)
    assert sparsifier.step() is not None


def test_gradients_that_were_cleared_too_early_are_missed() -> None:
    model, optimizer, sparsifier = started(RigL(sparsity=0.8, steps=100, every=1))
    train_step(model, optimizer, 0)
    optimizer.zero_grad()
    with pytest.raises(DataError, match="before zero_grad"):
        sparsifier.step()


def test_a_layer_that_a_step_does_not_run_stays_as_it_is() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(20, 30), nn.Linear(20, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)  # type: ignore[no-any-return]

    method = RigL(sparsity=0.8, steps=10, every=1)
    model = sparsify(Two(), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, method)
    before = positions(model)
    model(torch.randn(4, 20)).square().sum().backward()
    optimizer.step()
    update = sparsifier.step()
    assert update is not None
    assert list(update.layers) == ["a"]
    assert torch.equal(positions(model)["b"], before["b"])


def test_seeds_and_names_decide_and_nothing_else() -> None:
    def run(seed: int, disturbed: bool) -> dict[str, Tensor]:
        model, optimizer, sparsifier = started(SET(sparsity=0.8, steps=20, every=2, seed=seed))
        for step in range(10):
            if disturbed:
                torch.rand(7)
            train_step(model, optimizer, step)
            sparsifier.step()
        return positions(model)

    first, again, other = run(1, False), run(1, True), run(2, False)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns(name: str) -> None:
    method: SparseTraining = every_method(150, 10)[name]
    model, optimizer, sparsifier = started(method)
    losses = []
    for step in range(150):
        losses.append(float(train_step(model, optimizer, step)))
        sparsifier.step()
    # Without a reason, or by movement from the start, what is dropped is sorely missed.
    bound = {"random": 0.7, "movement": 0.95}.get(name, 0.5)
    assert sum(losses[-10:]) < bound * sum(losses[:10])
