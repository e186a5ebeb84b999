"""What the measures are given by mistake is refused in one line that says what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gossamer as gs
from gossamer.measure import FGSM, PGD, Square
from gossamer.measure.finite import check_finite

measure = gs.measure


def samples() -> tuple[Tensor, Tensor]:
    inputs = torch.rand(24, 4, generator=torch.Generator().manual_seed(0))
    return inputs, torch.arange(24) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples()), batch_size=8)


def fit(*_: object) -> nn.Module:
    return network()


def refusal(ask: Callable[[], object]) -> str:
    with pytest.raises(gs.DataError) as refused:
        ask()
    said = str(refused.value)
    assert "\n" not in said
    assert "found" in said
    assert "expected" in said
    return said


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (loader(), "sets: found DataLoader, expected a mapping"),
        ([samples()], "sets: found list, expected a mapping"),
        (samples(), "sets: found tuple, expected a mapping"),
        ({"test": loader()}, "test: found DataLoader, expected two tensors"),
        ({"test": samples()[0]}, "test: found Tensor, expected two tensors"),
        ({"test": [samples()] * 3}, "test: found list of 3, expected two tensors"),
        ({"test": [samples()] * 2}, "test: found inputs and targets of tuple and tuple, expected two tensors"),
    ],
)
def test_a_loader_or_a_list_in_place_of_named_pairs_is_refused(sets: Any, said: str) -> None:
    assert said in refusal(lambda: measure.description_length(10, network(), sets))


def test_a_loader_in_place_of_a_pair_is_refused_everywhere() -> None:
    net, (inputs, targets), batches = network(), samples(), loader()
    pair, given = (inputs, targets), {"test": (inputs, targets)}
    asked: dict[str, Callable[[], object]] = {
        "calibrate_on: found DataLoader": lambda: measure.description_length(10, net, given, calibrate_on=batches),  # type: ignore[arg-type]
        "train: found DataLoader": lambda: measure.generalisation(net, batches, pair),  # type: ignore[arg-type]
        "test: found DataLoader": lambda: measure.generalisation(net, pair, batches),  # type: ignore[arg-type]
        "targets of DataLoader and Tensor": lambda: measure.robustness(net, batches, targets, epsilons=[0.1]),  # type: ignore[arg-type]
        "targets of DataLoader and NoneType": lambda: FGSM().run(net, batches, None, 0.1),  # type: ignore[arg-type]
        "inputs: found DataLoader": lambda: measure.pie([net], [network()], None, batches, targets),  # type: ignore[arg-type]
    }
    for said, ask in asked.items():
        assert said in refusal(ask)


def test_swapped_arguments_of_an_audit_are_refused() -> None:
    net, (inputs, targets) = network(), samples()
    pie = measure.pie([net], [network()], None, inputs, targets)
    vog = measure.vog([net, network()], net, inputs, targets)
    assert measure.audit(pie, vog).examples == 24
    assert refusal(lambda: measure.audit(vog, pie)) == "audit: pie: found Vog, expected Pie"  # type: ignore[arg-type]
    assert "audit: vog: found Tensor, expected Vog" in refusal(lambda: measure.audit(pie, vog.scores))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ((12.0, 12.0), "blocks: found sizes (12.0, 12.0) for 24 samples, expected positive integers that add up"),
        ((12.5, 11.5), "blocks: found sizes (12.5, 11.5)"),
        (("12", "12"), "blocks: found sizes ('12', '12')"),
        (24, "blocks: found int, expected a sequence"),
        (torch.tensor([12, 12]), "blocks: found Tensor, expected a sequence"),
    ],
)
def test_blocks_that_are_no_whole_numbers_are_refused(blocks: Any, said: str) -> None:
    assert said in refusal(lambda: measure.prequential(fit, *samples(), classes=3, blocks=blocks))


@pytest.mark.parametrize("classes", [2, 4, 1, 0, -3, 2.5, ["a", "b", "c"], "abc"])
def test_classes_other_than_the_outputs_of_the_network_are_refused_wherever_they_are_asked_for(classes: Any) -> None:
    net, (inputs, targets) = network(), samples()
    few = targets % 2  # fits two classes, which the network's three outputs do not
    nets = [net, network()]
    for labels in (targets, few):
        pair = (inputs, labels)
        for ask in (
            lambda y=labels: measure.calibrated(net, inputs, y, classes=classes),
            lambda p=pair: measure.description_length(10, net, {"test": p}, classes=classes),
            lambda p=pair: measure.description_length(10, net, {"test": p}, calibrate_on=p, classes=classes),
            lambda p=pair: measure.generalisation(net, p, p, classes=classes),
            lambda y=labels: measure.prequential(fit, inputs, y, classes=classes),
            lambda y=labels: measure.vog(nets, net, inputs, y, classes=classes),
            lambda p=pair: gs.search.by_description_length(net, {"a": []}, data=p, validation=p, classes=classes),
        ):
            refusal(ask)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_inputs_that_are_not_finite_are_blamed_and_not_the_network(bad: float) -> None:
    net, (inputs, targets) = network(), samples()
    inputs[5, 2], inputs[7] = bad, bad
    said = "inputs: found 5 of 96 values that are not finite, the first at [5, 2], expected none"
    pair, nets = (inputs, targets), [net, network()]
    for ask in (
        lambda: measure.robustness(net, inputs, targets, epsilons=[0.1], attacks=[FGSM()]),
        lambda: FGSM().run(net, inputs, targets, 0.1),
        lambda: PGD(steps=1).run(net, inputs, targets, 0.1, "l2"),
        lambda: Square(queries=1).run(net, inputs, targets, 0.1),
        lambda: measure.calibrated(net, inputs, targets, batch=10),
        lambda: measure.description_length(10, net, {"test": pair}),
        lambda: measure.generalisation(net, pair, pair),
        lambda: measure.changed(net, nets[1], inputs, targets, batch=3),
        lambda: measure.pie(nets[:1], nets[1:], None, inputs, targets, batch=3),
        lambda: measure.vog(nets, net, inputs, targets),
    ):
        assert refusal(ask).endswith(said)
    pictures = inputs.view(24, 1, 2, 2)
    assert "the first at [5, 0, 1, 0]" in refusal(
        lambda: measure.corruptions(nn.Sequential(nn.Flatten(), net), pictures, targets)
    )


def test_a_network_that_takes_missing_values_is_measured_all_the_same() -> None:
    inputs, targets = samples()
    inputs[3, 1] = torch.nan
    net = network()
    found = measure.generalisation(lambda x: net(x.nan_to_num()), (inputs, targets), (inputs, targets))
    assert found.test.count == 24


def test_the_first_value_that_is_not_finite_is_found_in_any_layout() -> None:
    for made in (torch.zeros(3, 4, 5), torch.zeros(5, 4, 3).transpose(0, 2), torch.zeros(3, 4, 5, dtype=torch.float16)):
        made[1, 3, 2] = made[2, 0, 0] = torch.nan
        with pytest.raises(gs.DataError, match=r"x: found 2 of 60 values .* the first at \[1, 3, 2\]"):
            check_finite(made, "x")
    check_finite(torch.zeros(0, 3), "x")
    check_finite(torch.zeros(2, dtype=torch.int64), "x")
