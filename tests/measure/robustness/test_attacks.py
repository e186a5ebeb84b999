"""Attacks find the known optimum of linear networks, stay in the ball, and leave networks as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import DataError, PlanError
from gossamer.measure import APGD, FGSM, PGD, Attack, Normalized, Square, Worst
from gossamer.measure.robustness.ball import Norm
from gossamer.measure.robustness.losses import difference_ratio, log_odds, margin, targeted_ratio

LED: tuple[Attack, ...] = (
    FGSM(),
    PGD(steps=6, restarts=2),
    APGD("ce", steps=12, restarts=2),
    APGD("dlr", steps=12),
    APGD("targeted", steps=12),
    APGD("ce", steps=5, warm=PGD(steps=3)),
    Worst("all", (FGSM(), APGD("targeted", steps=5))),
)
ALL = (*LED, Square(queries=40))
NORMS: tuple[Norm, ...] = ("linf", "l2")


def _name(attack: Attack) -> str:
    return f"{attack.name}-{len(attack.first)}"


def _linear(features: int, classes: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(features, classes)


def _worst_margin(model: nn.Linear, x: Tensor, y: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """max over the ball of max_{k≠y} z_k − z_y, far from the bounds: w_k − w_y has dual norm ε‖·‖."""
    with torch.no_grad():
        z = model(x)
        rows = model.weight[None] - model.weight[y][:, None]
        size = rows.abs().sum(2) if norm == "linf" else rows.norm(dim=2)
        gain = z - z.gather(1, y[:, None]) + epsilon * size
        return gain.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", LED, ids=_name)
def test_gradient_attacks_find_the_worst_case_of_a_linear_network_with_two_classes(attack: Attack, norm: Norm) -> None:
    model = _linear(20, 2)
    x = 0.5 + 0.2 * (torch.rand(200, 20) - 0.5)
    with torch.no_grad():
        y = model(x).argmax(1)
        margins = margin(model(x), y)
    epsilon = 0.05 if norm == "linf" else 0.12
    optimum = _worst_margin(model, x, y, epsilon, norm)
    assert bool(((optimum > 0) != (optimum < 0)).all())
    made = attack.run(model, x, y, epsilon, norm)
    with torch.no_grad():
        found = margin(model(made), y)
    assert torch.equal(found > 0, optimum > 0)
    stays = optimum < 0
    assert 0 < int(stays.sum()) < 200
    torch.testing.assert_close(found[stays], optimum[stays], atol=2e-6, rtol=0)
    assert bool((margins <= found + 1e-6).all())


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_attacks_find_the_worst_case_of_a_linear_network_with_many_classes(norm: Norm) -> None:
    model = _linear(30, 6)
    x = 0.5 + 0.1 * (torch.rand(300, 30) - 0.5)
    with torch.no_grad():
        y = model(x).argmax(1)
    epsilon = 0.1 if norm == "linf" else 0.4
    optimum = _worst_margin(model, x, y, epsilon, norm)
    with torch.no_grad():
        found = margin(model(APGD("targeted", steps=20).run(model, x, y, epsilon, norm)), y)
    clear = optimum.abs() > 1e-5
    assert torch.equal((found > 0)[clear], (optimum > 0)[clear])
    assert 0.1 < float((optimum > 0).float().mean()) < 0.9


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 25, 5)
    )


def _images(count: int = 60) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.rand(count, 1, 12, 12), torch.randint(5, (count,))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ALL, ids=_name)
def test_adversarial_inputs_lie_in_ball_and_bounds_and_only_get_worse(attack: Attack, norm: Norm) -> None:
    model, (x, y) = _network().eval(), _images()
    epsilon = 0.05 if norm == "linf" else 0.3
    made = attack.run(model, x, y, epsilon, norm, seed=5)
    away = (made.double() - x.double()).flatten(1)
    size = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
    assert float(size.max()) <= epsilon * (1 + 1e-12)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    with torch.no_grad():
        before, after = model(x).argmax(1) == y, model(made).argmax(1) == y
    assert bool((after <= before).all())
    assert torch.equal(made[~before], x[~before])  # what is wrong already is left alone
    assert torch.equal(made, attack.run(model, x, y, epsilon, norm, seed=5))


@pytest.mark.parametrize("attack", ALL, ids=_name)
def test_a_radius_of_0_gives_the_inputs_back(attack: Attack) -> None:
    model, (x, y) = _network(), _images(10)
    assert torch.equal(attack.run(model, x, y, 0.0), x)


@pytest.mark.parametrize("attack", [PGD(steps=3, restarts=2), APGD("ce", steps=3, restarts=2), Square(queries=10)])
def test_what_an_example_meets_does_not_depend_on_what_else_is_in_the_batch(attack: Attack) -> None:
    model, (x, y) = _network().double(), _images(12)
    x = x.double()
    whole = attack.run(model, x, y, 0.03, seed=1)
    torch.testing.assert_close(attack.run(model, x, y, 0.03, seed=1, batch=5), whole, atol=1e-12, rtol=0)


def test_networks_are_left_as_they_were() -> None:
    model, (x, y) = _network().train(), _images(8)
    model[0].bias.requires_grad_(False)
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    Worst("all", (PGD(steps=2), Square(queries=3))).run(model, x, y, 0.1)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 4]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_attacks_need_no_parameter_with_gradients_and_work_in_inference_mode() -> None:
    model, (x, y) = _network().requires_grad_(False), _images(20)
    with torch.inference_mode():
        made = FGSM().run(model, x, y, 0.1)
    assert not torch.equal(made, x)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_large_logits_do_not_hide_gradients(scale: float) -> None:
    model, (x, y) = _network().eval(), _images(40)

    def scaled(z: Tensor) -> Tensor:
        outputs: Tensor = scale * model(z)
        return outputs

    with torch.no_grad():
        y = model(x).argmax(1)
    if scale > 1:  # cross-entropy itself has no gradient left
        leaf = x.clone().requires_grad_()
        F.cross_entropy(scaled(leaf), y, reduction="sum").backward()
        assert leaf.grad is not None
        assert bool((leaf.grad.flatten(1) == 0).all(1).float().mean() > 0.5)
    found = margin(scaled(FGSM().run(scaled, x, y, 0.03)).detach() / scale, y) > 0
    assert float(found.float().mean()) > 0.2


def test_losses_have_the_gradient_direction_and_the_values_of_their_definitions() -> None:
    torch.manual_seed(0)
    z, y, t = torch.randn(50, 6, requires_grad=True), torch.randint(6, (50,)), torch.randint(6, (50,))
    torch.testing.assert_close(torch.log1p(log_odds(z, y).exp()), F.cross_entropy(z, y, reduction="none"))
    (ours,) = torch.autograd.grad(log_odds(z, y).sum(), z)
    (theirs,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)
    torch.testing.assert_close(F.normalize(ours, dim=1), F.normalize(theirs, dim=1))
    for i in range(50):
        row = z[i].detach()
        top = row.sort(descending=True).values
        others = row[torch.arange(6) != y[i]]
        expected = (others.max() - row[y[i]]) / (top[0] - top[2])
        torch.testing.assert_close(difference_ratio(z[i : i + 1], y[i : i + 1])[0].detach(), expected)
        aimed = (row[t[i]] - row[y[i]]) / (top[0] - (top[2] + top[3]) / 2)
        torch.testing.assert_close(targeted_ratio(z[i : i + 1], y[i : i + 1], t[i : i + 1])[0].detach(), aimed)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("attack", ALL, ids=_name)
def test_few_classes_are_enough(attack: Attack, classes: int) -> None:
    model = _linear(8, classes)
    x = 2 * torch.rand(20, 8) - 1
    with torch.no_grad():
        model.bias.zero_()
        y = model(x).argmax(1)
        made = attack.run(model, x, y, 0.5, bounds=(-1.0, 1.0))
        assert float((model(made).argmax(1) != y).float().mean()) > 0.5


def test_square_finds_most_of_what_gradients_find_without_any() -> None:
    model, (x, _) = _network().eval(), _images(60)
    with torch.no_grad():
        y = model(x).argmax(1)

    def blind(z: Tensor) -> Tensor:
        outputs: Tensor = model(z).detach()
        return outputs

    for norm, epsilon in (("linf", 0.05), ("l2", 0.4)):
        led = PGD().run(model, x, y, epsilon, norm)  # type: ignore[arg-type]
        searched = Square(queries=400).run(blind, x, y, epsilon, norm)  # type: ignore[arg-type]
        with torch.no_grad():
            strong, found = (model(led).argmax(1) != y), (model(searched).argmax(1) != y)
        assert int(strong.sum()) > 20
        assert int(found.sum()) >= 0.7 * int(strong.sum())


def test_a_network_for_normalised_inputs_is_attacked_in_pixels() -> None:
    model, (x, y) = _network().eval(), _images(10)
    whole = Normalized(model, 0.3, 0.2)
    torch.testing.assert_close(whole(x), model((x - 0.3) / 0.2))
    made = FGSM().run(whole, x, y, 0.1)
    assert float((made - x).abs().max()) <= 0.1
    with pytest.raises(DataError, match="deviations above 0"):
        Normalized(model, 0.0, 0.0)


def test_bad_requests_are_refused() -> None:
    model, (x, y) = _network(), _images(4)
    for inputs, targets, epsilon, bounds, what in (
        (x * 2, y, 0.1, (0.0, 1.0), "inputs: found values from"),
        (x - 1, y, 0.1, (0.0, 1.0), "inputs: found values from"),
        (torch.full_like(x, torch.nan), y, 0.1, (0.0, 1.0), "not finite"),
        (x, y, -0.1, (0.0, 1.0), "epsilon: found -0.1"),
        (x, y, float("nan"), (0.0, 1.0), "epsilon: found nan"),
        (x, y + 5, 0.1, (0.0, 1.0), "expected classes below 5"),
        (x, y - 5, 0.1, (0.0, 1.0), "expected classes from 0 on"),
        (x, y.float(), 0.1, (0.0, 1.0), "targets: found torch.float32"),
        (x, y[:2], 0.1, (0.0, 1.0), "targets: found"),
        (x.long(), y, 0.1, (0.0, 1.0), "inputs: found torch.int64"),
        (x[:0], y[:0], 0.1, (0.0, 1.0), "at least one"),
        (x, y, 0.1, (1.0, 0.0), "bounds"),
    ):
        with pytest.raises(DataError, match=what):
            PGD(steps=1).run(model, inputs, targets, epsilon, bounds=bounds)
    with pytest.raises(PlanError, match="norm: found 'l1'"):
        FGSM().run(model, x, y, 0.1, "l1")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="found outputs of shape"):
        FGSM().run(nn.Identity(), x, y, 0.1)
    with pytest.raises(DataError, match="without gradients"):
        FGSM().run(lambda z: model(z).detach(), x, model(x).argmax(1), 0.1)
    for make in (
        lambda: PGD(steps=0),
        lambda: APGD("cw"),  # type: ignore[arg-type]
        lambda: APGD(targets=0),
        lambda: Square(share=0),
        lambda: Worst("none", ()),
    ):
        with pytest.raises(PlanError):
            make()
