"""What a transfer keeps is what it was asked for, and nothing of another question is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure import FGSM, PGD, Square, Transfer, robustness
from gossamer.measure.robustness.attack import Scene
from gossamer.measure.robustness.ball import Norm
from gossamer.measure.robustness.losses import log_odds
from gossamer.measure.robustness.probe import Probe, undisturbed

ATTACK = PGD(steps=3, restarts=2)


@dataclass(frozen=True)
class Question:
    inputs: Tensor
    targets: Tensor
    rows: Tensor
    norm: Norm = "linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    epsilon: float = 0.3

    def scene(self, probe: Probe) -> Scene:
        some = self.inputs[self.rows], self.targets[self.rows], self.rows
        return Scene(probe, *some, self.epsilon, self.norm, self.bounds, self.seed, 50)

    def of(self, carried: Transfer) -> Tensor:
        with undisturbed(carried.network):
            scene = self.scene(carried.probe(self.inputs))
            return carried.points(ATTACK, scene, self.inputs, self.targets).clone()


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense, model = (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2))
    return dense, model


def question(model: nn.Module) -> Question:
    inputs = 0.5 + 0.45 * (2 * torch.rand(80, 6) - 1)
    targets = model(inputs).argmax(1)
    targets[::7] = (targets[::7] + 1) % 4
    return Question(inputs, targets, torch.arange(80))


@pytest.mark.parametrize("change", ["seed", "norm", "bounds", "epsilon", "targets", "inputs", "in place", "rows"])
def test_a_transfer_takes_nothing_of_another_question(change: str) -> None:
    dense, model = networks()
    asked = question(model)
    carried = Transfer(dense)
    first = replace(asked, rows=torch.arange(40)).of(carried) if change == "rows" else asked.of(carried)
    if change == "in place":
        asked.inputs.mul_(0.5)
    again = {
        "seed": replace(asked, seed=1),
        "norm": replace(asked, norm="l2"),
        "bounds": replace(asked, bounds=(-1.0, 2.0)),
        "epsilon": replace(asked, epsilon=0.1),
        "targets": replace(asked, targets=(asked.targets + 1) % 4),
        "inputs": replace(asked, inputs=1 - asked.inputs),
        "in place": asked,
        "rows": replace(asked, rows=torch.arange(20, 80)),
    }[change]
    fresh = again.of(Transfer(dense))
    torch.testing.assert_close(again.of(carried), fresh, atol=1e-6, rtol=0)
    assert fresh.shape != first.shape or not torch.allclose(fresh, first)


def test_its_points_are_the_strongest_of_the_attack_and_do_not_stop_at_what_fools() -> None:
    dense, model = networks()
    asked = question(model)
    points = asked.of(Transfer(dense))
    with undisturbed(dense):
        alone = ATTACK.find(asked.scene(Probe(dense, asked.inputs, stops=False))).points
        stopped = ATTACK.find(asked.scene(Probe(dense, asked.inputs))).points
        torch.testing.assert_close(points, alone)
        odds = [log_odds(dense(p), asked.targets) for p in (points, stopped)]
    assert bool((odds[0] >= odds[1] - 1e-5).all())
    assert float((odds[0] - odds[1]).max()) > 0.1


def test_a_transfer_keeps_one_copy_per_radius_until_it_forgets_and_bounds_may_be_a_list() -> None:
    dense, model = networks()
    asked = question(model)
    carried = Transfer(dense)
    given = {"epsilons": [0.1, 0.2], "attacks": [PGD(steps=2)], "bounds": [0.0, 1.0]}
    found = [robustness(model, asked.inputs, asked.targets, dense=d, **given) for d in (carried, dense)]  # type: ignore[arg-type]
    assert found[0] == found[1]
    assert len(carried._points) == 2
    carried.forget()
    assert not carried._points


def test_what_is_no_network_or_does_not_fit_is_said_before_the_attacks() -> None:
    dense, model = networks()
    asked = question(model)
    for wrong in (None, Transfer(dense), 3):
        with pytest.raises(DataError, match=r"Transfer: found .*, expected a network"):
            Transfer(wrong)  # type: ignore[arg-type]
    told: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append(what)

    with pytest.raises(RuntimeError):
        robustness(
            model,
            asked.inputs,
            asked.targets,
            epsilons=[0.1],
            attacks=[FGSM()],
            dense=nn.Linear(5, 4),
            progress=progress,
        )
    assert told == []
    with pytest.raises(DataError, match="epsilons: found None"):
        robustness(model, asked.inputs, asked.targets, epsilons=None)  # type: ignore[arg-type]


def test_networks_that_overwrite_their_inputs_leave_the_callers_alone() -> None:
    dense, model = networks()
    asked = question(model)
    before = asked.inputs.clone()

    @torch.no_grad()
    def overwriting(z: Tensor) -> Tensor:
        made: Tensor = model(z.sub_(0.5).add_(0.5).mul_(1.0))
        z.zero_()
        return made

    robustness(overwriting, asked.inputs, asked.targets, epsilons=[0.1], attacks=[Square(queries=3)], dense=dense)
    assert torch.equal(asked.inputs, before)
