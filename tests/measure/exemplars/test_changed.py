"""One pair of networks: changed answers, the worst first; and what each looks at."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure import changed, saliency


class Says(nn.Module):
    """Outputs that were written down before; inputs are their numbers."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, numbers: Tensor) -> Tensor:
        return self.outputs[numbers]


def outputs(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_are_the_changed_answers_sorted_by_what_the_label_lost() -> None:
    dense, small = outputs(200, 5, seed=0), outputs(200, 5, seed=1)
    targets = torch.randint(5, (200,), generator=torch.Generator().manual_seed(2))
    found = changed(Says(dense), Says(small), torch.arange(200), targets, most=500, batch=33)
    differs = dense.argmax(1) != small.argmax(1)
    loss = (dense.log_softmax(1) - small.log_softmax(1)).gather(1, targets.unsqueeze(1)).squeeze(1)
    wanted = [i for i in loss.argsort(descending=True).tolist() if differs[i]]
    assert [row.index for row in found.rows] == wanted
    assert found.agreement == float((~differs).double().mean())
    assert found.changes == int(differs.sum())
    for row in found.rows:
        assert row.dense == int(dense[row.index].argmax())
        assert row.compressed == int(small[row.index].argmax())
        assert abs(row.dense_p - float(dense[row.index].softmax(0)[row.true])) < 1e-6
        assert abs(row.compressed_p - float(small[row.index].softmax(0)[row.true])) < 1e-6
    assert changed(Says(dense), Says(small), torch.arange(200), targets, most=3).rows == found.rows[:3]


def test_language_models_are_compared_position_by_position_where_there_is_a_label() -> None:
    dense, small = outputs(6, 4, 9, seed=0), outputs(6, 4, 9, seed=1)
    targets = torch.randint(9, (6, 4), generator=torch.Generator().manual_seed(2))
    targets[:, 0] = -100
    found = changed(Says(dense), Says(small), torch.arange(6), targets, batch=4)
    assert found.answers == 18
    places = {(row.index, row.position) for row in found.rows}
    differs = dense.argmax(2) != small.argmax(2)
    assert places == {(i, j) for i in range(6) for j in range(1, 4) if differs[i, j]}
    assert list(found.to_json()["rows"][0]) == [
        "index",
        "position",
        "true",
        "dense",
        "compressed",
        "dense_p",
        "compressed_p",
    ]


def test_the_json_of_classifiers_has_no_position() -> None:
    told = changed(Says(torch.eye(3)), Says(-torch.eye(3)), torch.arange(3), torch.arange(3)).to_json()
    assert list(told) == ["rows", "agreement"]
    assert list(told["rows"][0]) == ["index", "true", "dense", "compressed", "dense_p", "compressed_p"]
    json.dumps(told, allow_nan=False)


def test_a_network_agrees_with_itself_and_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    found = changed(model, model, torch.randn(20, 4), torch.randint(3, (20,)))
    assert (found.rows, found.agreement) == ((), 1.0)
    assert model.training


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": Says(torch.zeros(4, 5))}, r"outputs \(4, 3\) of the dense network and \(4, 5\)"),
        ({"targets": torch.tensor([0, 1, 2, 3])}, "targets: found 0 to 3, expected 0 to 2"),
        ({"targets": torch.zeros(4, 2, dtype=torch.int64)}, r"targets: found \(4, 2\)"),
        ({"targets": torch.full((4,), -100)}, "found no label among 4 targets"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "found 4 inputs and 3 targets"),
        ({"model": Says(torch.full((4, 3), torch.nan))}, "compressed: outputs: found scores that are not finite"),
        ({"model": Says(torch.zeros(4))}, r"outputs: found \(4,\)"),
        ({"most": -1}, "most: found -1"),
    ],
)
def test_bad_requests_say_what_was_found(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "dense_model": Says(torch.zeros(4, 3)),
        "model": Says(torch.zeros(4, 3)),
        "inputs": torch.arange(4),
        "targets": torch.zeros(4, dtype=torch.int64),
    }
    with pytest.raises(DataError, match=said):
        changed(**{**given, **change})


def test_saliency_is_the_gradient_of_the_logit_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    inputs, targets = torch.randn(15, 6), torch.randint(3, (15,))
    found = saliency(model, inputs, targets, batch=4)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.double().eval()
    step = 1e-6
    for i in (0, 7, 14):
        for j in range(6):
            x = inputs[i].double().repeat(2, 1)
            x[0, j] += step
            x[1, j] -= step
            up, down = model(x)[:, targets[i]].tolist()
            assert abs((up - down) / (2 * step) - float(found[i, j])) < 1e-5


def test_saliency_without_targets_explains_the_networks_own_answer() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(6, 3), torch.randn(15, 6)
    assert torch.equal(saliency(model, inputs), model.weight.detach()[model(inputs).argmax(1)])
    with pytest.raises(DataError, match=r"inputs: found torch\.int64, expected floats"):
        saliency(nn.Embedding(4, 3), torch.arange(4))
    with pytest.raises(DataError, match="found classes 0 to 7, expected 0 to 2"):
        saliency(model, inputs[:2], torch.tensor([0, 7]))
