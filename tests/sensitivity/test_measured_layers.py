"""Curves over sparsity, bits and rank: what compressing by hand measures, kept as JSON, and recipes made of them."""

from __future__ import annotations

import copy
import json
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.errors import DataError, FormatError, PlanError
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD, WhitenedSVD
from gossamer.methods.prune import Magnitude, Rows
from gossamer.methods.quantize import GPTQ, RoundToNearest
from gossamer.sensitivity import LayerCurve, Probe, Sensitivities, bits, measure_layers, ranks, sparsities
from gossamer.sensitivity.judge import Judge
from gossamer.sensitivity.probe import rank_at


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))


def labelled(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(40, 12), torch.randint(5, (40,))) for _ in range(count)]


def loss_of(net: nn.Module, data: Any) -> float:
    with torch.no_grad():
        return sum(F.cross_entropy(net(x), y).item() for x, y in data) / len(data)


def by_hand(curve: LayerCurve, level: float) -> Method:
    if curve.kind == "sparsity":
        return Magnitude(sparsity=level, only=curve.name)
    if curve.kind == "bits":
        return RoundToNearest(bits=int(level), group=4, only=curve.name)
    return WhitenedSVD(rank=round(level * min(curve.shape)), only=curve.name)


def test_every_point_is_the_loss_of_the_network_that_compress_makes_of_that_layer_alone() -> None:
    net, data = small(), labelled()
    before = copy.deepcopy(net.state_dict())
    found = measure_layers(
        net, data, [sparsities((0.5, 0.9)), bits((2, 4), group=4), ranks((0.25, 0.5))], batches=2, only="*.weight"
    )  # statistics are of the other three
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert found.kinds == ("sparsity", "bits", "rank")
    assert found.base == pytest.approx(loss_of(net, data[:2]))
    assert len(found.curves) == 9
    for curve in found.curves:
        for level, rise in curve.points:
            made = gs.compress(net, [by_hand(curve, level)], data=data[2:]).dense()
            assert rise == pytest.approx(loss_of(made, data[:2]) - found.base, abs=1e-6)


def test_plain_ranks_are_the_best_ones_of_the_weight_and_only_those_that_pay() -> None:
    net, data = small(), labelled()
    found = measure_layers(net, data, [ranks((0.25, 0.9), whitened=False)], only="2.*")
    assert [(c.name, [level for level, _ in c.points]) for c in found.curves] == [("2.weight", [0.25])]
    other = copy.deepcopy(net)
    w = other[2].weight.data  # type: ignore[index, union-attr]
    u, s, v = torch.linalg.svd(w)
    w.copy_(u[:, :2] * s[:2] @ v[:2])
    assert found.curves[0].points[0][1] == pytest.approx(loss_of(other, data[:4]) - loss_of(net, data[:4]), abs=1e-5)


def test_gates_of_a_recurrent_layer_are_compressed_one_by_one() -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.lstm(x)[0][:, -1]
            return result

    net, data = Last(), [(torch.randn(4, 5, 6), torch.randint(8, (4,)))]
    found = measure_layers(net, data * 2, [sparsities((0.5,)), ranks((0.5,))], batches=1)
    assert [(c.name, c.shape, c.gates) for c in found.of("rank")] == [
        ("lstm.weight_ih_l0", (8, 6), 4),
        ("lstm.weight_hh_l0", (8, 8), 4),
    ]
    assert found.of("rank")[0].elements == 4 * 8 * 6
    made = gs.compress(net, [Magnitude(sparsity=0.5, only="lstm.weight_hh_l0")]).dense()
    rise = found.of("sparsity")[1].points[0][1]
    assert rise == pytest.approx(loss_of(made, data) - loss_of(net, data), abs=1e-6)


def test_without_targets_it_is_the_distance_to_the_outputs_as_they_were() -> None:
    net, data = small(), labelled()
    inputs = [x for x, _ in data[:3]]
    other = gs.compress(net, [RoundToNearest(bits=2, only="0.*")]).dense()
    with torch.no_grad():
        pairs = [(net(x), other(x)) for x in inputs]
    squares = sum(((a - b).square().sum() / a.square().sum()).item() for a, b in pairs) / 3
    kl = sum(F.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean").item() for a, b in pairs) / 3
    for distance, metric, expected in (("auto", "squares", squares), ("squares", "squares", squares), ("kl", "kl", kl)):
        found = measure_layers(net, inputs, [bits((2,))], distance=distance, only="0.*")  # type: ignore[arg-type]
        assert (found.metric, found.base) == (metric, 0.0)
        assert found.curves[0].points[0][1] == pytest.approx(expected, rel=1e-4)
    pairs_without = [(x, None) for x in inputs]
    assert measure_layers(net, pairs_without, [bits((2,))], only="0.*").metric == "squares"


def test_outputs_with_logits_are_compared_by_divergence() -> None:
    net = small()

    class WithLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.inner(x), other=torch.ones(3))

    judge = Judge(WithLogits(), [torch.randn(4, 12)])
    assert judge.metric == "kl"
    assert judge(WithLogits()) == pytest.approx(0.0, abs=1e-6)


def test_methods_that_need_statistics_have_them() -> None:
    net, data = small(), labelled()
    probe = Probe("bits", (2, 3), lambda level, shape: GPTQ(bits=int(level)))
    found = measure_layers(net, data, [probe], only="2.*")
    made = gs.compress(net, [GPTQ(bits=2, only="2.*")], data=data[4:]).dense()
    assert found.curves[0].points[0][1] == pytest.approx(loss_of(made, data[:4]) - loss_of(net, data[:4]), abs=1e-6)
    with pytest.warns(UserWarning, match="the same"):
        found = measure_layers(net, data[:4], [probe], only="2.*")
    made = gs.compress(net, [GPTQ(bits=2, only="2.*")], data=data[:4]).dense()
    assert found.curves[0].points[0][1] == pytest.approx(loss_of(made, data[:4]) - loss_of(net, data[:4]), abs=1e-6)
    assert [m.bits for m in found.recipe("bits", 2.5)] == [2]  # type: ignore[attr-defined]


def test_transposed_convolutions_and_what_cannot_be_factorized_are_told_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 4, 3, groups=2))
    found = measure_layers(net, [torch.randn(2, 3, 5, 5)] * 5, [bits((2, 8)), ranks((0.5,))])
    assert [(c.kind, c.name, c.shape) for c in found.curves] == [
        ("bits", "0.weight", (4, 3, 2, 2)),
        ("bits", "1.weight", (4, 2, 3, 3)),
        ("rank", "0.weight", (4, 3, 2, 2)),
    ]
    assert list(found.skipped) == ["rank: 1.weight"]


def test_a_loss_that_is_not_a_number_is_infinite_and_cut_from_curves_for_pruning() -> None:
    net, data = small(), labelled(1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return outputs.var(0).log().sum()  # outputs that do not depend on the inputs: −∞ · something

    found = measure_layers(net, data, [sparsities((0.5, 1.0))], loss=lambda o, t: loss(o, t).abs(), only="0.*")
    rises = [rise for _, rise in found.curves[0].points]
    assert math.isfinite(rises[0])
    assert rises[1] == math.inf
    assert [at for at, _ in found.pruning().curves[0][1]] == [0.0, 0.5]
    assert Sensitivities.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_json_and_back_is_the_same_and_other_json_is_refused(tmp_path: Path) -> None:
    found = measure_layers(small(), labelled(), batches=1)
    assert Sensitivities.from_json(json.loads(json.dumps(found.to_json()))) == found
    good = found.to_json()
    for broken in (
        [], {}, {**good, "format": "other"}, {**good, "curves": [{}]}, {**good, "curves": []}, {**good, "curves": 3},
        {**good, "base": None},
        {**good, "metric": "x"}, {**good, "methods": {"bits": "Tune"}}, {**good, "methods": []},
        {**good, "curves": [{**good["curves"][0], "points": [["0.5", 1.0]]}]},
        {**good, "curves": [{**good["curves"][0], "points": []}]},
        {**good, "curves": [{**good["curves"][0], "shape": [0]}]},
        {**good, "curves": [{**good["curves"][0], "kind": "width"}]},
    ):  # fmt: skip
        (tmp_path / "x.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(FormatError, match=r"x\.json"):
            Sensitivities.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(FormatError, match=r"x\.json"):
        Sensitivities.read(tmp_path / "x.json")
    with pytest.raises(FormatError, match="nowhere"):
        Sensitivities.read(tmp_path / "nowhere.json")


def test_curves_divide_a_sparsity_and_survive_a_recipe_file() -> None:
    net, data = small(), labelled()
    found = measure_layers(net, data, [sparsities((0.25, 0.5, 0.75, 0.9))])
    (entry,) = found.recipe("sparsity", 0.6)
    assert parse_recipe(yaml.safe_load(dump_recipe([entry]))) == [entry]
    made = gs.compress(net, [entry])
    weights = {name: w for name, w in made.state_dict().items() if name.endswith("weight")}
    zeros = sum(int((w == 0).sum()) for w in weights.values())
    assert zeros == round(0.6 * sum(w.numel() for w in weights.values()))
    assert len({round(float((w == 0).float().mean()), 2) for w in weights.values()}) > 1


def curves_of(kind: Any, rises: list[list[float]], levels: list[float], shapes: list[tuple[int, ...]]) -> Any:
    pairs = zip(rises, shapes, strict=True)
    return tuple(
        LayerCurve(f"l[{i}].w", kind, shape, 1, tuple(zip(levels, rise, strict=True)))
        for i, (rise, shape) in enumerate(pairs)
    )


def test_bits_are_divided_as_the_best_of_all_allocations() -> None:
    levels, shapes = [2, 3, 4, 8], [(4, 4), (8, 4), (2, 3), (5, 5)]
    generator = torch.Generator().manual_seed(3)
    rises = [sorted(torch.rand(4, generator=generator).tolist(), reverse=True) for _ in shapes]
    found = Sensitivities(
        "loss", 1.0, curves_of("bits", rises, levels, shapes), {}, {"bits": RoundToNearest(bits=2, group=4)}
    )
    sizes = [math.prod(shape) for shape in shapes]
    for budget in (2.0, 2.7, 3.5, 5.0, 8.0):
        entries: Any = found.recipe("bits", budget)
        given = {name: entry.bits for entry in entries for name in entry.only}
        assert all(entry.group == 4 for entry in entries)
        chosen = [levels.index(given[f"l[[]{i}].w"]) for i in range(4)]  # patterns that match these names alone
        fits = [
            c for c in product(range(4), repeat=4)
            if sum(levels[j] * n for j, n in zip(c, sizes, strict=True)) <= budget * sum(sizes)
        ]  # fmt: skip
        best = min(sum(rises[i][j] for i, j in enumerate(c)) for c in fits)
        assert tuple(chosen) in fits
        assert sum(rises[i][j] for i, j in enumerate(chosen)) == pytest.approx(best)
    with pytest.raises(PlanError, match="at least 2"):
        found.recipe("bits", 1.9)


def test_ranks_are_divided_under_a_share_of_the_numbers_and_layers_may_stay() -> None:
    net, data = small(), labelled()
    for whitened, kind in ((True, WhitenedSVD), (False, SVD)):
        found = measure_layers(net, data, [ranks((0.125, 0.25, 0.5), whitened=whitened)])
        entries = found.recipe("rank", 0.7)
        assert all(isinstance(entry, kind) for entry in entries)
        assert parse_recipe(yaml.safe_load(dump_recipe(entries))) == list(entries)
        made = gs.compress(net, entries, data=data)
        measured = {curve.name for curve in found.curves}
        numbers = sum(
            leaf.tensor.numel()
            for name, tree in made.trees.items() if name in measured
            for leaf in tree.leaves() if leaf.tensor.is_floating_point()
        )  # fmt: skip
        assert numbers <= 0.7 * sum(curve.elements for curve in found.curves)
        with pytest.raises(PlanError, match="expected at least"):
            found.recipe("rank", 0.01)
    shapes = [(8, 8), (8, 8)]
    worse = curves_of("rank", [[0.2, 0.1], [0.5, 0.2]], [0.25, 0.5], shapes)
    found = Sensitivities("loss", 1.0, worse, {}, {"rank": WhitenedSVD(rank=2)})
    (entry,) = found.recipe("rank", 0.75)  # 28 or 48 of 64 numbers at rank 2 or 4
    assert entry.rank == (("l[[]0].w", 2),)  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="as it is"):
        found.recipe("rank", 1.0)


def test_what_cannot_be_measured_or_reused_is_refused_by_name() -> None:
    net, data = small(), labelled(1)
    with pytest.raises(DataError, match="no batches"):
        measure_layers(net, [], [bits()])
    with pytest.raises(PlanError, match="one of each kind"):
        measure_layers(net, data, [bits(), bits()])
    with pytest.raises(PlanError, match=r"'fc\*'"):
        measure_layers(net, data, [bits()], only="fc*")
    with pytest.raises(DataError, match="batch 0: the network rejects"):
        measure_layers(net, [torch.randn(2, 7)], [bits()])
    with pytest.raises(DataError, match="batch 0: the loss"):
        measure_layers(net, [(torch.randn(2, 12), torch.tensor([1, 9]))], [bits()])
    with pytest.raises(DataError, match="with targets and batches without"):
        measure_layers(net, [*data, torch.randn(2, 12)], [bits()])
    with pytest.raises(DataError, match="no pair"):
        measure_layers(net, [torch.randn(3, 12)], [bits()], loss=F.mse_loss)
    with pytest.raises(PlanError, match="no layer"):
        measure_layers(nn.Tanh(), [torch.randn(3)], [bits()])
    for wrong in (lambda: bits((1, 2)), lambda: bits((4, 2)), lambda: sparsities((0.0,)), lambda: ranks((1.0,)),
                  lambda: bits((2.5,)), lambda: bits(()), lambda: bits(group=0)):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(PlanError):
            wrong()
    found = measure_layers(net, data, [bits((2, 4))])
    with pytest.raises(PlanError, match="'rank'"):
        found.recipe("rank", 0.5)
    broken = copy.deepcopy(net)
    broken[0].weight.data[0, 0] = math.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(DataError, match=r"0\.weight"):
        measure_layers(broken, data, [bits()])


def test_structures_are_measured_as_the_method_says() -> None:
    net, data = small(), labelled(1)
    probe = sparsities((0.5,), method=lambda s: Magnitude(sparsity=s, structure=Rows()))
    found = measure_layers(net, data, [probe], only="2.*")
    made = gs.compress(net, [Magnitude(sparsity=0.5, structure=Rows(), only="2.*")]).dense()
    assert found.curves[0].points[0][1] == pytest.approx(loss_of(made, data) - loss_of(net, data), abs=1e-6)
    (entry,) = found.recipe("sparsity", 0.4)
    assert entry.structure == Rows()  # type: ignore[attr-defined]


def test_words_that_cannot_be_do_not_spoil_the_divergence() -> None:
    net = small()
    masked = torch.zeros(5).index_fill_(0, torch.tensor([2]), -torch.inf)
    judge = Judge(net, [torch.randn(6, 12)], distance="kl")
    judge._then = [[then + masked] for (then,) in judge._then]  # as a model gives that suppresses a word
    assert judge(nn.Sequential(net, _Plus(masked))) == pytest.approx(0.0, abs=1e-6)
    assert judge(nn.Sequential(net, _Plus(masked), _Plus(torch.arange(5.0)))) > 0.1


class _Plus(nn.Module):
    def __init__(self, what: Tensor) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return x + self.what


def test_outputs_that_are_no_numbers_are_refused_before_anything_is_measured() -> None:
    net = nn.Sequential(small(), _Plus(torch.full((5,), torch.inf)))
    with pytest.raises(DataError, match="squares of the dense network that is not finite"):
        measure_layers(net, [torch.randn(6, 12)], [bits((2,))])


def test_a_sparsity_beyond_all_curves_is_refused_and_one_at_their_end_is_not() -> None:
    curves = tuple(LayerCurve(n, "sparsity", (10, 10), 1, ((0.5, 0.1), (0.9, 0.4))) for n in ("a", "b"))
    found = Sensitivities("loss", 1.0, curves, {}, {"sparsity": Magnitude(sparsity=0.5)})
    assert found.recipe("sparsity", 0.9)[0].sparsity == 0.9  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"found a budget of 0\.95, expected at most 0\.9"):
        found.recipe("sparsity", 0.95)
    nowhere = (LayerCurve("a", "sparsity", (10, 10), 1, ((0.5, math.inf),)),)
    with pytest.raises(PlanError, match="found no finite rise in any layer"):
        Sensitivities("loss", 1.0, nowhere, {}, {"sparsity": Magnitude(sparsity=0.5)}).recipe("sparsity", 0.5)


def test_a_budget_of_just_the_smallest_levels_is_met() -> None:
    for n in range(1, 60):
        curves = tuple(LayerCurve(name, "rank", (n, 7), 1, ((0.34, 0.1),)) for name in ("a", "b"))
        found = Sensitivities("loss", 1.0, curves, {}, {"rank": SVD(rank=1)})
        if (least := rank_at(0.34, (n, 7)) * (n + 7)) < 7 * n:
            assert len(found.recipe("rank", least / (7 * n))[0].only) == 2


def test_patterns_of_a_method_of_ones_own_are_kept() -> None:
    own = sparsities((0.5,), method=lambda level: Magnitude(sparsity=level, skip="4.*"))
    found = measure_layers(small(), labelled(), [own], skip="0.*")
    assert [curve.name for curve in found.curves] == ["2.weight"]
    narrow = sparsities((0.5,), method=lambda level: Magnitude(sparsity=level, only="4.*"))
    with pytest.raises(PlanError, match=r"only='4\.\*' in Magnitude beside only="):
        measure_layers(small(), labelled(), [narrow], only="0.*")


def test_no_more_batches_are_drawn_than_are_used() -> None:
    drawn: list[int] = []

    def stream() -> Any:
        for i, batch in enumerate(labelled(30)):
            drawn.append(i)
            yield batch

    measure_layers(small(), stream(), [bits((2,))], batches=2)
    assert drawn == [0, 1]
    drawn.clear()
    measure_layers(small(), stream(), [ranks((0.5,))], batches=2, fitted=3)
    assert drawn == [0, 1, 2, 3, 4]
