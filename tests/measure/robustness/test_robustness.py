"""Rows are what each attack finds alone, their order is by construction, and masked gradients are told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.errors import DataError, PlanError
from gossamer.measure import APGD, FGSM, PGD, QUICK, STANDARD, Square, Transfer, Worst, accuracy, robustness

EPSILONS = (0.0, 1 / 255, 4 / 255, 8 / 255)
SET = (
    FGSM(),
    PGD(steps=5),
    Worst("APGD", (APGD("ce", steps=5, warm=PGD(steps=5)), APGD("targeted", steps=4, targets=2))),
    Square(queries=20),
)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network and 200 test images of the packaged Fashion-MNIST, pixels from 0 to 1."""
    from gossamer.demo.data import load_fashion

    data = load_fashion()
    low, high = data.train.min(), data.train.max()
    train, test = (data.train - low) / (high - low), ((data.test - low) / (high - low)).clamp(0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for start in range(0, 5_000, 50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[start : start + 50]), data.train_labels[start : start + 50]).backward()
        optimizer.step()
    return model.eval(), test[:200], data.test_labels[:200]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stronger_attacks_leave_less_at_every_radius_and_radius_0_is_clean(
    trained: tuple[nn.Module, Tensor, Tensor], norm: str
) -> None:
    model, x, y = trained
    radii = EPSILONS if norm == "linf" else tuple(20 * e for e in EPSILONS)
    found = robustness(model, x, y, epsilons=radii, norm=norm, attacks=SET)  # type: ignore[arg-type]
    clean = accuracy(model, x, y).value
    assert found.clean == clean > 0.7
    assert all(row.accuracy == clean for row in found.rows if row.epsilon == 0)
    for radius in radii:
        fgsm, pgd, apgd = (found.accuracy(name, radius) for name in ("FGSM", "PGD", "APGD"))
        worst = next(w for w in found.worst if w.epsilon == radius)
        assert worst.accuracy <= apgd <= pgd <= fgsm <= clean
        assert worst.low <= worst.accuracy <= worst.high
    worsts = [w.accuracy for w in found.worst]
    assert worsts == sorted(worsts, reverse=True)
    assert worsts[-1] < 0.8 * clean
    assert found.warnings == ()


def test_a_row_is_what_the_attack_alone_makes(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    found = robustness(model, x, y, epsilons=[4 / 255], attacks=SET)
    for attack in SET:
        made = attack.run(model, x, y, 4 / 255, batch=250)
        assert found.accuracy(attack.name, 4 / 255) == accuracy(model, made, y).value
        alone = robustness(model, x, y, epsilons=[4 / 255], attacks=[attack])
        assert alone.accuracy(attack.name, 4 / 255) == found.accuracy(attack.name, 4 / 255)


def test_the_document_has_the_keys_that_pages_read(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    found = robustness(model, x[:50], y[:50], epsilons=[0.0, 0.01], attacks=[FGSM()], dense=model, surrogate=model)
    document = found.to_json()
    assert set(document) == {
        *("norm", "examples", "clean", "epsilons", "rows", "worst", "transfer", "surrogate", "warnings")
    }
    assert document["examples"] == 50
    assert [set(r) for r in document["rows"]] == [{"attack", "epsilon", "accuracy"}] * 2
    assert [set(r) for r in document["worst"]] == [{"epsilon", "accuracy", "low", "high"}] * 2
    assert [set(r) for r in document["transfer"]] == [{"epsilon", "accuracy"}] * 2
    assert [set(r) for r in document["surrogate"]] == [{"attack", "epsilon", "accuracy"}] * 2
    plain = robustness(model, x[:50], y[:50], epsilons=[0.01], attacks=[FGSM()]).to_json()
    assert plain["transfer"] is None
    assert plain["surrogate"] is None


class _Steps(nn.Module):
    """Rounds pixels coarsely before the network sees them: right answers, no gradient."""

    def __init__(self, model: nn.Module, *, useful: bool) -> None:
        super().__init__()
        self.model, self.useful = model, useful

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 32).round() / 32
        outputs: Tensor = self.model(x + (rounded - x).detach() if self.useful else rounded)
        return outputs


def test_masked_gradients_are_told_and_do_not_save_the_worst_case(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    masked, honest = _Steps(model, useful=False), _Steps(model, useful=True)
    attacks = (FGSM(), PGD(steps=5))
    found = robustness(masked, x, y, epsilons=[16 / 255], attacks=attacks, dense=model, surrogate=honest)
    assert found.surrogate is not None
    assert found.transfer is not None
    own, led, carried = found.rows[-1].accuracy, found.surrogate[-1].accuracy, found.transfer[0].accuracy
    assert own > led + 0.1
    assert own > carried + 0.1
    assert found.worst[0].accuracy <= min(led, carried)
    assert any("masked gradients" in w and "transfer" in w for w in found.warnings)
    assert any("masked gradients" in w and "surrogate" in w for w in found.warnings)
    plain = robustness(model, x, y, epsilons=[16 / 255], attacks=attacks, dense=model)
    assert plain.warnings == ()


def test_networks_without_gradients_get_square_transfer_and_the_surrogate(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = trained
    x, y = x[:80], y[:80]
    lowered = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5)]).lower(x)
    found = robustness(lowered, x, y, epsilons=[8 / 255], attacks=SET, dense=model, surrogate=model)
    assert {r.attack for r in found.rows} == {"Square"}
    assert found.surrogate is not None
    assert {r.attack for r in found.surrogate} == {"FGSM", "PGD", "APGD"}
    assert found.worst[0].accuracy <= min(r.accuracy for r in found.surrogate)
    assert found.warnings[0].startswith("the network gives no gradients")
    with pytest.raises(PlanError, match="expected a network with gradients, or Square"):
        robustness(lowered, x, y, epsilons=[8 / 255], attacks=[FGSM()])


def test_attached_encodings_are_attacked_as_the_dense_weights_that_they_stand_for(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = trained
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.8), gs.share.KMeans(bits=4)])
    attached = small.trainable()
    one = robustness(attached, x, y, epsilons=[4 / 255], attacks=[FGSM(), PGD(steps=3)])
    other = robustness(small.dense(), x, y, epsilons=[4 / 255], attacks=[FGSM(), PGD(steps=3)])
    for mine, theirs in zip(one.rows, other.rows, strict=True):
        assert abs(mine.accuracy - theirs.accuracy) <= 1 / 200
    assert attached.training
    assert all(p.requires_grad for p in attached.parameters())


def test_random_networks_and_bad_requests_are_told(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    x, y = x[:20], y[:20]

    def random(z: Tensor) -> Tensor:
        outputs: Tensor = model(z)
        return outputs + 0.1 * torch.randn_like(outputs)

    found = robustness(random, x, y, epsilons=[0.01], attacks=[FGSM()])
    assert any("other outputs for the same inputs" in w for w in found.warnings)
    for settings, what in (
        ({"epsilons": []}, "epsilons: found none"),
        ({"epsilons": [-0.1]}, "epsilon: found -0.1"),
        ({"attacks": [], "epsilons": [0.1]}, "attacks: found"),
        ({"attacks": [PGD(steps=2), PGD(steps=3)], "epsilons": [0.1]}, "no two of one name"),
        ({"epsilons": [0.1], "batch": 0}, "batch: found 0"),
        ({"epsilons": 0.1}, "epsilons: found 0.1, expected several radii"),
    ):
        with pytest.raises((DataError, PlanError), match=what):
            robustness(model, x, y, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not finite for unchanged inputs"):
        robustness(lambda z: torch.full((len(z), 3), torch.nan), x, y.clamp(0, 2), epsilons=[0.1])


def test_nothing_right_is_nothing_to_attack(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = trained
    with torch.no_grad():
        y = (model(x).argmax(1) + 1) % 10
    found = robustness(model, x, y, epsilons=[0.1], attacks=SET, dense=model)
    assert [r.accuracy for r in found.rows] == [0.0] * 4
    assert found.worst[0].low == 0


def test_the_sets_contain_a_warm_start_that_is_their_own_pgd() -> None:
    for attacks in (STANDARD, QUICK):
        pgd, apgd = attacks[1], attacks[2]
        assert isinstance(apgd, Worst)
        assert apgd.parts[0].first == (pgd,)


def test_a_transfer_attacks_the_dense_network_once_and_says_what_the_network_itself_says(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = trained
    calls: list[int] = []

    def dense(inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        outputs: Tensor = model(inputs)
        return outputs

    pruned = [gs.compress(model, [gs.prune.Magnitude(sparsity=s)]).dense() for s in (0.3, 0.6)]
    carried = Transfer(dense)
    made = []
    for network in pruned:
        before = sum(calls)
        with_it = robustness(network, x, y, epsilons=[0.0, 4 / 255, 8 / 255], attacks=SET, dense=carried)
        made.append(sum(calls) - before)
        plain = robustness(network, x, y, epsilons=[0.0, 4 / 255, 8 / 255], attacks=SET, dense=model)
        assert with_it.to_json() == plain.to_json()
    assert made[1] < made[0] / 2
    # Other examples, another seed: nothing of before is taken.
    assert robustness(pruned[0], x[:90], y[:90], epsilons=[0.02], attacks=SET, dense=carried, seed=3) == robustness(
        pruned[0], x[:90], y[:90], epsilons=[0.02], attacks=SET, dense=model, seed=3
    )
