"""Networks of a report run once on samples that several measures ask about."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.report.samples import Remembered, Samples


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += len(inputs)
        found: Tensor = self.layer(inputs)
        return found


def samples(count: int) -> Samples:
    return Samples(torch.randn(count, 4), torch.zeros(count, dtype=torch.int64))


def test_batches_are_asked_once_and_answers_are_the_same() -> None:
    network, known = Counting(), samples(10)
    asked = Remembered(network, [known], batch=4)
    with torch.no_grad():
        rounds = [torch.cat([asked(part) for part in known.inputs.split(4)]) for _ in range(3)]
        assert network.seen == 10
        assert all(torch.equal(found, network.layer(known.inputs)) for found in rounds)


def test_other_inputs_and_gradients_go_to_the_network() -> None:
    network, known = Counting(), samples(8)
    asked = Remembered(network, [known], batch=4)
    with torch.no_grad():
        for inputs in (known.inputs[:4].clone(), known.inputs[1:5], known.inputs[:3]):
            assert torch.equal(asked(inputs), asked(inputs))
    assert network.seen == 2 * (4 + 4 + 3)
    leaf = known.inputs[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(asked(leaf).sum(), leaf)
    assert bool((gradient != 0).any())
    assert asked(known.inputs[:4]).requires_grad


def test_no_more_is_kept_than_there_is_room_for() -> None:
    network, known = Counting(), samples(8)
    asked = Remembered(network, [known], batch=4, most=12)
    with torch.no_grad():
        for _ in range(2):
            for part in known.inputs.split(4):
                asked(part)
    assert network.seen == 4 + 2 * 4
