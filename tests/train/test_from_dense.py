"""Methods with a dense phase: that each does what its paper says it does."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import CompositionError, PlanError
from gossamer.methods.prune import SNIP, Magnitude, NofM
from gossamer.train.from_dense import (
    ACDC,
    DSD,
    DenseMethod,
    Feedback,
    FromDense,
    GroupLasso,
    HardConcrete,
    HardThresholding,
    Hoyer,
    Hydra,
    IterativePruning,
    LotteryTicket,
    Phase,
    Phases,
    SoftThreshold,
    VariationalDropout,
    harvest,
    live_masks,
    penalty,
    prepare,
    relaxed,
)
from gossamer.train.from_dense.variational import negative_kl

HALF = Magnitude(sparsity=0.5)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=random)
    return x, x[:, :3].argmax(1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, (_, weight) in relaxed(model).items()}


def train(
    method: DenseMethod, steps: int, *, lr: float = 0.1, momentum: float = 0.9, seen: Any = None
) -> tuple[nn.Module, FromDense]:
    model = prepare(net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    run = FromDense(model, optimizer, method)
    for step in range(steps):
        one_step(model, optimizer, run, step)
        if seen is not None:
            seen(step + 1, model)
    return model, run


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, run: FromDense, step: int) -> None:
    x, y = batch(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y) + penalty(model)
    loss.backward()
    optimizer.step()
    run.step()


# -- phases ------------------------------------------------------------------------------------------------------------


def test_sparse_phases_hold_exact_zeros_and_dense_ones_let_them_grow() -> None:
    method = ACDC(prune=HALF, steps=24, warmup=4, period=4, final=6)
    zeros: dict[int, int] = {}

    def see(step: int, model: nn.Module) -> None:
        zeros[step] = sum(int((w == 0).sum()) for w in weights(model).values())

    train(method, 24, seen=see)
    sparse = [method.phases[method.phase_at(s)].sparse for s in range(24)]
    assert sparse == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 12
    for step in range(1, 24):
        # After step s the phase of step s has begun: at its start a sparse one prunes at once.
        if sparse[step]:
            assert zeros[step] == 36
        elif not sparse[step - 1]:
            assert zeros[step] == 0
    assert method.dense_share(24) == 8 / 24
    assert zeros[9] < 36  # one dense step and zeros have moved


def test_dense_sparse_dense_ends_dense_and_what_was_pruned_starts_from_zero() -> None:
    method = DSD(prune=HALF, dense=5, sparse=5)
    history: list[dict[str, Tensor]] = []
    model, _ = train(method, 15, seen=lambda step, m: history.append(weights(m)))
    dead = history[5]["0.weight"] == 0
    assert int(dead.sum()) == 24
    assert torch.equal(history[8]["0.weight"] == 0, dead)
    assert bool((history[9]["0.weight"][dead] == 0).all())  # the dense phase has begun, no step was made
    assert bool((history[10]["0.weight"][dead] != 0).any())
    assert bool(live_masks(model)["0.weight"].all())
    assert method.dense_share(15) == 10 / 15


def test_an_n_of_m_network_can_alternate_too() -> None:
    method = Phases(prune=Magnitude(structure=NofM(1, 2)), phases=(Phase(2, sparse=False), Phase(0, sparse=True)))
    model, _ = train(method, 5)
    assert bool((live_masks(model)["0.weight"].view(-1, 2).sum(1) == 1).all())


# -- rewinding ---------------------------------------------------------------------------------------------------------


def test_a_ticket_gets_the_early_weights_exactly_and_everything_else_too() -> None:
    method = LotteryTicket(prune=Magnitude(sparsity=0.75, scope="global"), rounds=2, length=6, to=2)
    history: dict[int, dict[str, Tensor]] = {}
    biases: dict[int, Tensor] = {}

    def see(step: int, model: nn.Module) -> None:
        history[step] = weights(model)
        biases[step] = model[0].bias.detach().clone()  # type: ignore[index, union-attr]

    model, run = train(method, method.steps, seen=see)
    assert method.steps == 6 + 2 * 4
    early = history[2]
    for step, live in ((6, 36), (10, 18)):
        masks = {n: w != 0 for n, w in history[step].items()}
        assert sum(int(m.sum()) for m in masks.values()) == live
        for name, mask in masks.items():
            assert torch.equal(history[step][name], early[name] * mask)
        assert torch.equal(biases[step], biases[2])
    assert sum(int(m.sum()) for m in live_masks(model).values()) == 18
    assert run.method.dense_share(method.steps) == 6 / 14


def test_masks_only_shrink_and_are_chosen_from_trained_weights() -> None:
    method = IterativePruning(prune=HALF, rounds=1, length=5, rewind="nothing")
    at_five: dict[str, Tensor] = {}
    plain = prepare(net(), DSD(prune=HALF, dense=100, sparse=1))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    run = FromDense(plain, optimizer, DSD(prune=HALF, dense=100, sparse=1))
    for step in range(5):
        one_step(plain, optimizer, run, step)
    at_five = weights(plain)
    model, _ = train(method, 5)
    for name, mask in live_masks(model).items():
        kept = at_five[name].abs()[mask]
        gone = at_five[name].abs()[~mask]
        assert float(kept.min()) >= float(gone.max())
        assert torch.equal(weights(model)[name], at_five[name] * mask)


@pytest.mark.parametrize("rewind", ["weights", "rate"])
def test_learning_rates_are_those_of_the_first_training(rewind: Any) -> None:
    method = IterativePruning(prune=HALF, rounds=2, length=6, to=2, rewind=rewind)
    model = prepare(net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run = FromDense(model, optimizer, method)
    rates = []
    for step in range(method.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        scheduler.step()
        run.step()
    first = [0.5**s for s in range(6)]
    assert rates == first + first[2:] * 2


# -- feedback, hard thresholding ---------------------------------------------------------------------------------------


def test_dense_weights_move_by_the_gradient_at_the_masked_point() -> None:
    method = Feedback(prune=HALF, every=1)
    model = prepare(net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = FromDense(model, optimizer, method)
    before = weights(model)
    masks = live_masks(model)
    masked = net()
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    x, y = batch(0)
    F.cross_entropy(masked(x), y).backward()
    one_step(model, optimizer, run, 0)
    for name, now in weights(model).items():
        gradient = masked.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(now, before[name] - 0.5 * gradient)
        assert bool((gradient[~masks[name]] != 0).any())  # dead weights learn


def test_feedback_lets_weights_come_back_and_its_sparsity_rises_to_the_end() -> None:
    method = Feedback(prune=HALF, every=2, ramp=10)
    live: list[int] = []
    ever: list[Tensor] = []

    def see(step: int, model: nn.Module) -> None:
        live.append(int(live_masks(model)["0.weight"].sum()))
        ever.append(live_masks(model)["0.weight"])

    train(method, 40, lr=0.5, seen=see)
    assert live[:10] == sorted(live[:10], reverse=True)
    assert live[10:] == [24] * 30
    assert any(bool((later & ~now).any()) for now, later in pairwise(ever[10:]))


def test_hard_thresholding_recovers_a_sparse_signal_exactly() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(120, 60, generator=random)
    truth = torch.zeros(1, 60)
    truth[0, torch.randperm(60, generator=random)[:6]] = torch.randn(6, generator=random).sign() * 2
    method = HardThresholding(prune=Magnitude(sparsity=0.9), every=1)
    model = nn.Sequential(nn.Linear(60, 1, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    prepare(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    run = FromDense(model, optimizer, method)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(model(x), x @ truth.T).backward()
        optimizer.step()
        run.step()
        assert int((weights(model)["0.weight"] != 0).sum()) <= 6
    assert torch.equal(live_masks(model)["0.weight"], truth != 0)
    torch.testing.assert_close(weights(model)["0.weight"], truth, rtol=1e-4, atol=1e-4)


# -- learned -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(start=st.floats(0.05, 0.95), seed=st.integers(0, 100))
def test_the_penalty_is_the_expected_number_of_gates_that_are_not_zero(start: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = prepare(nn.Sequential(nn.Linear(40, 50, bias=False)), HardConcrete(strength=1.0, start=start))
    relaxation, weight = relaxed(model)["0.weight"]
    draws = torch.stack([(relaxation(torch.ones_like(weight)) != 0).float().sum() for _ in range(20)])
    expected = float(penalty(model).detach())
    assert expected == pytest.approx(start * 2000, rel=0.02)
    # 20 · 2000 independent gates: five standard deviations
    assert float(draws.detach().mean()) == pytest.approx(expected, abs=5 * (2000 * start * (1 - start) / 20) ** 0.5)


@pytest.mark.parametrize(("group", "gates"), [("weights", 48), ("rows", 8), ("columns", 6)])
def test_gates_of_groups_count_all_their_weights(group: Any, gates: int) -> None:
    model = prepare(nn.Sequential(nn.Linear(6, 8)), HardConcrete(strength=1.0, start=0.5, group=group))
    relaxation = relaxed(model)["0.weight"][0]
    assert sum(p.numel() for p in relaxation.parameters()) == gates
    assert float(penalty(model).detach()) == pytest.approx(24, rel=0.05)


def test_gates_are_themselves_in_eval_mode() -> None:
    model = prepare(net(), HardConcrete(start=0.5)).eval()
    x, _ = batch(0)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


@settings(max_examples=25, deadline=None)
@given(low=st.floats(-8, 2), more=st.floats(0.1, 3))
def test_sparsity_rises_with_the_threshold_and_values_shrink_by_it(low: float, more: float) -> None:
    model = prepare(net(), SoftThreshold(start=-9.0))
    relaxation, weight = relaxed(model)["0.weight"]
    found = []
    for s in (low, low + more):
        with torch.no_grad():
            relaxation.s.fill_(s)  # type: ignore[union-attr, operator]
        threshold = torch.tensor(s).sigmoid()
        seen = relaxation(weight).detach()
        expected = weight.detach().sign() * (weight.detach().abs() - threshold).clamp_min(0)
        torch.testing.assert_close(seen, expected)
        assert torch.equal(seen != 0, relaxation.live(weight))
        found.append(int((seen == 0).sum()))
    assert found[0] <= found[1]


def test_the_threshold_grows_under_its_penalty() -> None:
    model, _ = train(SoftThreshold(start=-6.0, decay=0.0, threshold_decay=0.05), 60, momentum=0.0)
    for relaxation, _ in relaxed(model).values():
        assert -6.0 < float(relaxation.s.detach()) < -1.0  # type: ignore[operator, union-attr]
    zeros = sum(int((~m).sum()) for m in live_masks(model).values())
    assert zeros > 0


def test_the_kl_term_is_the_papers_divergence() -> None:
    # −KL = ½ log α − E log|ε|, ε normal around 1 with variance α, up to a constant.
    torch.manual_seed(0)
    noise = torch.randn(400_000, dtype=torch.float64)

    def sampled(log_alpha: float) -> float:
        alpha = torch.tensor(log_alpha, dtype=torch.float64).exp()
        return float(0.5 * log_alpha - (1 + alpha.sqrt() * noise).abs().log().mean())

    def formula(log_alpha: float) -> float:
        return float(negative_kl(torch.tensor(log_alpha, dtype=torch.float64)))

    far = sampled(12.0) - formula(12.0)
    for log_alpha in (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0):
        assert formula(log_alpha) + far == pytest.approx(sampled(log_alpha), abs=0.02)


def test_noisy_weights_go() -> None:
    model = prepare(nn.Sequential(nn.Linear(2, 1, bias=False)), VariationalDropout(start=-4.0))
    with torch.no_grad():
        relaxed(model)["0.weight"][1].copy_(torch.tensor([[1.0, 0.01]]))
    assert live_masks(model)["0.weight"].tolist() == [[True, False]]
    assert harvest(model).dense()[0].weight.tolist() == [[1.0, 0.0]]


def test_hoyers_gradient_pulls_small_weights_down_and_pushes_large_ones_up() -> None:
    w = torch.tensor([0.1, -0.2, 1.0, -3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(Hoyer().measure(w), w)
    limit = float(w.detach().square().sum() / w.detach().abs().sum())
    towards_zero = gradient * w.detach().sign() > 0
    assert towards_zero.tolist() == (w.detach().abs() < limit).tolist()
    for scale in (0.01, 7.0):
        assert float(Hoyer().measure(scale * w.detach())) == pytest.approx(float(Hoyer().measure(w.detach())), rel=1e-5)
    assert float(Hoyer(squared=False).measure(w.detach())) ** 2 == pytest.approx(float(Hoyer().measure(w.detach())))
    assert float(Hoyer().measure(torch.zeros(3))) == 0.0


def test_group_lasso_makes_groups_vanish_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    y = x[:, :3] @ torch.randn(3, 4)  # seven inputs are of no use
    model = prepare(nn.Sequential(nn.Linear(10, 4, bias=False)), GroupLasso(group="columns", strength=0.02))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) + penalty(model)).backward()
        optimizer.step()
    live = live_masks(model)["0.weight"]
    assert live.all(0).tolist() == live.any(0).tolist() == [True] * 3 + [False] * 7


# -- all of them -------------------------------------------------------------------------------------------------------

METHODS: dict[str, DenseMethod] = {
    "acdc": ACDC(prune=HALF, steps=12, warmup=2, period=2, final=4),
    "dsd": Phases(prune=HALF, phases=(Phase(3, sparse=False), Phase(0, sparse=True))),
    "ticket": LotteryTicket(prune=HALF, rounds=2, length=4, to=1),
    "rate": IterativePruning(prune=HALF, rounds=2, length=4, to=1, rewind="rate"),
    "feedback": Feedback(prune=HALF, every=2, ramp=4),
    "hydra": Hydra(sparsity=0.5, search=6),
    "hard-thresholding": HardThresholding(prune=HALF, every=3),
    "l0": HardConcrete(strength=1e-3),
    "soft-threshold": SoftThreshold(start=-4.0),
    "variational": VariationalDropout(strength=1e-3),
    "group-lasso": GroupLasso(strength=1e-3),
    "hoyer": Hoyer(strength=1e-3),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_harvested_network_computes_what_the_trained_one_does(name: str) -> None:
    model, _ = train(METHODS[name], 12)
    model.eval()
    x, _ = batch(99)
    before = copy.deepcopy(model.state_dict())
    small = harvest(model)
    torch.testing.assert_close(small.dense()(x), model(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    masks = live_masks(model)
    for key, mask in masks.items():
        assert not bool((small.dense().get_parameter(key)[~mask] != 0).any())


@pytest.mark.parametrize("name", METHODS)
def test_going_on_from_saved_states_is_exact(name: str) -> None:
    method = METHODS[name]
    whole, _ = train(method, 11)

    first, run = train(method, 6)
    saved = copy.deepcopy((first.state_dict(), run.optimizer.state_dict(), run.state_dict(), torch.get_rng_state()))
    model = prepare(net(5), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    again = FromDense(model, optimizer, method)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    torch.set_rng_state(saved[3])
    for step in range(6, 11):
        one_step(model, optimizer, again, step)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_the_dense_share_is_a_share(name: str) -> None:
    assert 0 < METHODS[name].dense_share(12) <= 1


def test_names_choose_weights_and_nothing_chosen_is_refused() -> None:
    model = prepare(net(), SoftThreshold(only="2.*"))
    assert set(relaxed(model)) == {"2.weight"}
    with pytest.raises(PlanError, match=r"Feedback: found no weight that is meant among 0\.weight"):
        prepare(net(), Feedback(only="fc*"))
    with pytest.raises(PlanError, match="SoftThreshold: found a network that was prepared already"):
        prepare(model, SoftThreshold())
    spectral = net()
    torch.nn.utils.parametrizations.spectral_norm(spectral[0])
    assert set(relaxed(prepare(spectral, SoftThreshold()))) == {"2.weight"}
    with pytest.raises(CompositionError, match="expected one from prepare"):
        penalty(net())


def test_a_layer_of_which_nothing_lives_is_named() -> None:
    model = prepare(net(), SoftThreshold(start=-0.01))
    with torch.no_grad():
        relaxed(model)["0.weight"][1].mul_(1e-3)
    with pytest.raises(PlanError, match=r"0.weight: found no live weight"):
        harvest(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ACDC(prune=HALF, steps=10, warmup=8, period=1, final=4),
        lambda: Phases(prune=SNIP(sparsity=0.5)),
        lambda: Phases(prune=HALF, phases=(Phase(0, sparse=True), Phase(1, sparse=False))),
        lambda: LotteryTicket(prune=HALF, rounds=0, length=4),
        lambda: LotteryTicket(prune=HALF, rounds=1, length=4, to=4),
        lambda: LotteryTicket(prune=Magnitude(budget_bytes=100.0), rounds=1, length=4),
        lambda: Feedback(prune=HALF, every=0),
        lambda: HardConcrete(start=1.0),
        lambda: SoftThreshold(start=1.0),
        lambda: VariationalDropout(strength=-1.0),
        lambda: GroupLasso(group="blocks"),  # type: ignore[arg-type]
        lambda: Hoyer(threshold=-1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(PlanError, match="found"):
        make()
