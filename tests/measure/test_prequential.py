"""The prequential code repeats to the last bit and never looks ahead."""

from __future__ import annotations

import hashlib
import math
import random
import struct

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import load_fashion


def trained(network: nn.Module | None, inputs: Tensor, targets: Tensor) -> nn.Module:
    """A small network with dropout, shuffles and a start of its own: all from the global generators."""
    if network is None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(3):
        for chosen in torch.randperm(len(inputs)).split(50):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(network(inputs[chosen] + 0.01 * random.random()), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def counted(network: nn.Module | None, inputs: Tensor, targets: Tensor) -> nn.Module:
    """The Krichevsky–Trofimov estimate: shares so far, half a sample more of each class."""
    made = nn.Linear(1, 3)
    nn.init.zeros_(made.weight)
    made.bias.data = torch.bincount(targets.reshape(-1), minlength=3).add(0.5).double().log().float()
    return made


def test_two_runs_agree_to_the_last_bit_whatever_was_drawn_before() -> None:
    fashion = load_fashion()
    data, sizes = (fashion.train[:1000], fashion.train_labels[:1000]), (50, 150, 300, 500)
    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        random.seed(start)
        torch.rand(start)
        found.append(gs.measure.prequential(trained, *data, classes=10, blocks=sizes, seed=3))
    first, second = found
    assert first == second
    assert first.digest == second.digest
    assert first.bits < first.uniform_bits == 1000 * math.log2(10)
    assert gs.measure.prequential(trained, *data, classes=10, blocks=sizes, seed=4).digest != first.digest


def test_the_document_has_the_digest_of_the_exact_doubles() -> None:
    found = gs.measure.prequential(counted, torch.zeros(9, 1), torch.arange(9) % 3, classes=3, blocks=(2, 3, 4))
    document = found.to_json()
    assert set(document) == {"bits", "blocks", "uniform_bits", "sum"}
    assert [(b["from"], b["to"]) for b in document["blocks"]] == [(0, 2), (2, 5), (5, 9)]
    doubles = b"".join(struct.pack("<d", b["bits"]) for b in document["blocks"])
    assert document["sum"] == hashlib.sha256(doubles).hexdigest()
    assert document["bits"] == math.fsum(b["bits"] for b in document["blocks"])
    assert document["blocks"][0]["bits"] == 2 * math.log2(3)


def test_one_sample_per_block_is_the_known_code_of_a_sequence() -> None:
    targets = torch.tensor([0, 0, 2, 0, 1, 0, 0, 2])
    found = gs.measure.prequential(counted, torch.zeros(8, 1), targets, classes=3, blocks=(1,) * 8)
    counts, expected = [0.5] * 3, 0.0
    for label in targets.tolist():
        expected -= math.log2(counts[label] / sum(counts))
        counts[label] += 1
    assert found.bits == pytest.approx(expected, rel=1e-6)


def test_training_sees_only_what_was_sent_and_the_network_before() -> None:
    seen: list[tuple[bool, list[float]]] = []

    def fit(network: nn.Module | None, inputs: Tensor, targets: Tensor) -> nn.Module:
        seen.append((network is None, inputs[:, 0].tolist()))
        assert len(inputs) == len(targets)
        return counted(network, inputs, targets)

    inputs = torch.arange(6.0)[:, None]
    gs.measure.prequential(fit, inputs, torch.arange(6) % 3, classes=3, blocks=(1, 2, 3))
    assert seen == [(True, [0.0]), (False, [0.0, 1.0, 2.0])]


def test_the_generators_of_the_program_go_on_as_if_nothing_had_been() -> None:
    def draws() -> list[float]:
        return [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002

    def fit(network: nn.Module | None, inputs: Tensor, targets: Tensor) -> nn.Module:
        assert torch.are_deterministic_algorithms_enabled()
        draws()
        return counted(network, inputs, targets)

    def start() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002

    start()
    expected = draws()
    start()
    gs.measure.prequential(fit, torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), classes=3, blocks=(2, 4))
    assert draws() == expected
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError):
        gs.measure.prequential(
            lambda *_: 1 / 0,  # type: ignore[arg-type, return-value]
            torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), classes=3, blocks=(2, 4),
        )  # fmt: skip
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_sizes_each_block_doubles_what_is_known() -> None:
    found = gs.measure.prequential(counted, torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64), classes=3)
    assert [(b.start, b.end) for b in found.blocks] == [(0, 6), (6, 12), (12, 24), (24, 48), (48, 50)]
    few = gs.measure.prequential(counted, torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), classes=3)
    assert few.bits == few.uniform_bits


def test_positions_of_sequences_count_one_label_each() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(*x.shape, 3)

    found = gs.measure.prequential(
        lambda *_: Positions(), torch.zeros(6, 4), torch.zeros(6, 4, dtype=torch.int64), classes=3, blocks=(2, 4)
    )
    assert found.bits == pytest.approx(found.uniform_bits, rel=1e-15)
    assert found.uniform_bits == 24 * math.log2(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (2, 3)}, r"blocks: found sizes \(2, 3\) for 6 samples"),
        ({"blocks": (0, 6)}, "blocks: found sizes"),
        ({"blocks": ()}, "blocks: found sizes"),
        ({"classes": 2}, "samples: found target 2, expected 0 to 1"),
        ({"classes": 1}, "samples: found 1 classes"),
        ({"classes": 4}, r"block 1 \(samples 2 to 5\): found logits of 3 classes, expected 4"),
        ({"fit": lambda *_: None}, r"block 1 .*: found NoneType from fit, expected a network"),
        ({"targets": torch.zeros(0, dtype=torch.int64), "inputs": torch.zeros(0, 1)}, "samples: found 0 inputs"),
    ],
)
def test_what_cannot_be_sent_is_named(change: dict[str, object], message: str) -> None:
    asked = {
        "fit": counted,
        "inputs": torch.zeros(6, 1),
        "targets": torch.arange(6) % 3,
        "classes": 3,
        "blocks": (2, 4),
    } | change
    with pytest.raises(gs.DataError, match=message):
        gs.measure.prequential(**asked)  # type: ignore[arg-type]
