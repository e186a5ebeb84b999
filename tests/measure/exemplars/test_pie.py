"""Exemplars by disagreement of populations, and what is hard as well."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.errors import DataError
from gossamer.measure import Vog, audit, pie
from gossamer.measure.exemplars.pie import modal


def labels(networks: int, n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (networks, n), generator=torch.Generator().manual_seed(seed))


def test_the_mode_is_the_most_frequent_label_and_of_ties_the_smallest() -> None:
    said = labels(7, 200, 4, seed=0)
    for i, found in enumerate(modal(said).tolist()):
        counts = Counter(said[:, i].tolist())
        assert found == min(counts, key=lambda c: (-counts[c], c))


def test_everything_agrees_with_counting_by_hand() -> None:
    n = 300
    true = labels(1, n, 3, seed=1)[0]
    groups = [list(labels(k, n, 3, seed=s)) for k, s in ((5, 2), (5, 3), (5, 4))]
    found = pie(groups[0], groups[1], groups[2], None, true)
    modes = [modal(torch.stack(g)) for g in groups]
    exemplars = [i for i in range(n) if modes[0][i] != modes[1][i]]
    assert sorted(found.indices.tolist()) == exemplars
    assert found.disagreement == len(exemplars) / n
    assert found.control_disagreement == float((modes[0] != modes[2]).double().mean())
    told = found.to_json()
    for which, chosen in (("pie", exemplars), ("non_pie", sorted(set(range(n)) - set(exemplars)))):
        for kind, group in (("dense", groups[0]), ("compressed", groups[1])):
            wanted = sum(int(g[i] == true[i]) for g in group for i in chosen) / (len(group) * len(chosen))
            assert math.isclose(told["accuracy"][which][kind], wanted)
    shares = [
        sum(int(g[i] == modes[0][i]) for g in groups[0]) / 5 * sum(int(g[i] == modes[1][i]) for g in groups[1]) / 5
        for i in found.indices.tolist()
    ]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(shares))


def test_the_json_has_the_agreed_keys_and_is_bounded() -> None:
    n = 3000
    true = torch.zeros(n, dtype=torch.int64)
    found = pie([true], [true + 1], None, None, true).to_json()
    assert list(found) == [
        "examples",
        "dense_networks",
        "compressed_networks",
        "pies",
        "disagreement",
        "control_disagreement",
        "accuracy",
        "control_accuracy",
        "indices",
        "rows",
    ]
    assert found["pies"] == n
    assert found["control_disagreement"] is None
    assert found["accuracy"]["non_pie"] == {"dense": None, "compressed": None}
    assert len(found["indices"]) == 200
    assert found["rows"][0] == {"index": 0, "true": 0, "dense": 0, "compressed": 1}
    json.dumps(found, allow_nan=False)


def test_networks_and_their_predictions_give_the_same() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(90, 6), torch.randint(3, (90,))
    nets = [nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)) for _ in range(6)]
    said = [net.eval()(inputs).argmax(1) for net in nets]
    for net in nets:
        net.train()
    first = pie(nets[:2], nets[2:4], nets[4:], inputs, targets, batch=7)
    second = pie(said[:2], [said[2], nets[3]], said[4:], inputs, targets)
    assert first.to_json() == second.to_json()
    assert all(net.training for net in nets)


def test_a_lowered_network_is_a_member() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    inputs, targets = torch.randn(50, 64), torch.randint(4, (50,))
    small = gs.compress(model, [gs.prune.Magnitude(sparsity=0.5)])
    found = pie([model], [small.lower(inputs[:8])], None, inputs, targets)
    wanted = (model(inputs).argmax(1) != small.dense()(inputs).argmax(1)).nonzero().flatten().tolist()
    assert sorted(found.indices.tolist()) == wanted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dense": []}, "dense: found no network"),
        ({"control": []}, "control: found no network"),
        ({"compressed": [torch.zeros(4, dtype=torch.int64)]}, r"compressed\[0\]: found \(4,\)"),
        ({"compressed": [torch.zeros(5)]}, r"compressed\[0\]: found \(5,\) of torch.float32"),
        ({"compressed": [nn.Linear(2, 2)]}, r"compressed\[0\]: found Linear without inputs"),
        ({"targets": torch.zeros(5)}, "targets: found"),
        ({"targets": None, "inputs": torch.zeros(5, 2)}, "targets: found NoneType"),
        ({"targets": torch.tensor([0, 1, 0, -1, 0])}, "targets: found label -1, expected classes from 0 on"),
        ({"dense": nn.Linear(2, 2)}, "dense: found Linear, expected a list of networks or predictions"),
        ({"compressed": nn.Sequential(nn.Linear(2, 2))}, "compressed: found Sequential, expected a list"),
        ({"inputs": torch.zeros(4, 2)}, "found 4 inputs and 5 targets"),
    ],
)
def test_bad_populations_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "dense": [torch.zeros(5, dtype=torch.int64)],
        "compressed": [torch.ones(5, dtype=torch.int64)],
        "control": None,
        "inputs": None,
        "targets": torch.zeros(5, dtype=torch.int64),
    }
    with pytest.raises(DataError, match=said):
        pie(**{**given, **change})


def test_populations_of_different_sizes_are_refused() -> None:
    said = list(labels(7, 5, 3, seed=0))
    for dense, compressed, control in ((said[:2], said[2:5], None), (said[:2], said[2:4], said[4:])):
        with pytest.raises(DataError, match=r"pie: found 2 dense, . compressed.* networks, expected as many in each"):
            pie(dense, compressed, control, None, said[0])


def test_labels_beyond_the_classes_of_the_networks_are_refused() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    nets = [nn.Linear(2, 3) for _ in range(2)]
    beyond = torch.tensor([0, 1, 2, 3, 1])
    assert pie(nets[:1], nets[1:], None, inputs, targets).dense_networks == 1
    with pytest.raises(DataError, match="pie: targets: found label 3, expected 0 to 2"):
        pie(nets[:1], nets[1:], None, inputs, beyond)
    with pytest.raises(DataError, match="pie: compressed: found label 3, expected 0 to 2"):
        pie(nets[:1], [beyond], None, inputs, targets)
    with pytest.raises(DataError, match=r"control\[0\]: found outputs of 4 classes, expected 3 as of dense\[0\]"):
        pie(nets[:1], nets[1:], [nn.Linear(2, 4)], inputs, targets)


def test_a_control_that_shares_a_network_with_the_population_is_refused() -> None:
    one, two = torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)
    with pytest.raises(DataError, match=r"control\[1\]: found the network that dense\[0\] is"):
        pie([one], [two], [two.clone(), one], None, one)


def scored(scores: Tensor) -> Vog:
    none = torch.zeros(len(scores), dtype=torch.int64)
    return Vog("predicted", 2, scores, scores, none, none.bool())


def test_an_audit_lists_what_is_both_and_says_what_chance_would_give() -> None:
    true = torch.zeros(100, dtype=torch.int64)
    other = true.clone()
    other[[99, 98, 3, 97, 10]] = 1
    found = audit(pie([true], [other], None, None, true), scored(torch.arange(100.0).double()))
    assert found.indices == (99, 98, 97)
    assert (found.pies, found.high, found.overlap, found.expected) == (5, 10, 3, 0.5)
    wanted = sum(math.comb(10, k) * math.comb(90, 5 - k) for k in (3, 4, 5)) / math.comb(100, 5)
    assert math.isclose(found.p, wanted, rel_tol=1e-9)
    assert found.to_json()["ratio"] == 6.0


def test_an_audit_without_exemplars_expects_none() -> None:
    true = torch.zeros(20, dtype=torch.int64)
    found = audit(pie([true], [true.clone()], None, None, true), scored(torch.arange(20.0).double()))
    assert (found.overlap, found.expected, found.p) == (0, 0.0, 1.0)
    assert found.to_json()["ratio"] is None
    with pytest.raises(DataError, match="found 20 examples in pie and 21 in vog"):
        audit(pie([true], [true.clone()], None, None, true), scored(torch.arange(21.0).double()))


def test_chance_adds_up_over_all_overlaps() -> None:
    true = torch.zeros(30, dtype=torch.int64)
    other = true.clone()
    other[:25] = 1
    found = audit(pie([true], [other], None, None, true), scored(torch.arange(30.0).double()), share=0.5)
    assert found.overlap == 10  # the least there can be: 15 high and 25 exemplars of 30
    assert found.p == 1.0
