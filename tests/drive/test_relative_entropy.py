"""Relative-entropy coding against its formulas, against the file it leaves, on real images, and killed half-way."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Shuffled, load_fashion
from gossamer.drive import relative_entropy, run
from gossamer.drive.posterior import Posterior, chosen
from gossamer.drive.posteriors import Posteriors, Timetable, divided, places_in
from gossamer.drive.prices import Prices
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.encoding import Dense, Drawn, Encoding, Hashed, Kept, LowRank, Masked
from gossamer.encoding.drawn import Draws
from gossamer.encoding.gaussian import PER_UNIT
from gossamer.measure.accuracy import accuracy

TUNE = gs.Tune(epochs=6, lr=0.01)
PAGE = Path(__file__).parents[2] / "docs" / "relative-entropy.md"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def batches(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 16, 10, generator=torch.Generator().manual_seed(1))
    return [(b, b[:, :3].argmax(1)) for b in x]


def coded(tree: Encoding) -> list[Drawn]:
    return [node for _, node in tree.nodes() if isinstance(node, Drawn)]


def index_bits(trees: dict[str, Encoding]) -> int:
    return sum(node.index.numel() * node.bits for tree in trees.values() for node in coded(tree))


# -- one tensor ------------------------------------------------------------------------------------------------------


def posterior() -> Posterior:
    random = torch.Generator().manual_seed(3)
    made = Posterior(torch.randn(6, 5, generator=random), "w", 7)
    with torch.no_grad():
        made.spread.copy_(torch.randn(6, 5, generator=random) / 8)
    return made


def test_divergence_and_its_gradient_are_those_of_normal_distributions_at_the_best_scale() -> None:
    made = posterior()
    found = made.divergence()
    deviation = made.log_deviation().exp()
    scale = (made.mean.square() + deviation.square()).mean().sqrt().detach()
    expected = kl_divergence(Normal(made.mean, deviation), Normal(torch.zeros(()), scale))
    torch.testing.assert_close(found, expected.detach())
    for other in (0.9, 1.1):
        assert kl_divergence(Normal(made.mean, deviation), Normal(torch.zeros(()), other * scale)).sum() > found.sum()
    made.divide(4, 0.5)
    made.prices.each[:] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    price = torch.zeros(30)
    for block in range(4):
        price[made.draws.members(block)] = made.prices.each[block].float()
    wanted = torch.autograd.grad((price.view(6, 5) * expected).sum(), [made.mean, made.spread])
    made.add_gradient(math.nan)
    torch.testing.assert_close(made.mean.grad, wanted[0])
    torch.testing.assert_close(made.spread.grad, wanted[1])


def test_blocks_sum_what_their_members_say() -> None:
    made = posterior()
    made.divide(7, 1.0)
    divergence = made.divergence()
    sums = [float(divergence.flatten()[made.draws.members(b)].double().sum()) for b in range(7)]
    assert made.of_blocks(divergence).tolist() == pytest.approx(sums)


def test_what_training_computes_with_is_what_is_stored_once_all_blocks_are_coded() -> None:
    made = posterior()
    made.divide(9, 1.0)
    made.draw_noise(0)
    for block in range(9):
        before = made.sample().detach().clone()
        made.code(block, 6)
        changed = (made.sample() != before).flatten().nonzero().flatten().tolist()
        assert set(changed) <= set(made.draws.members(block).tolist())
    assert torch.equal(made.sample(), made.encoding(6).to_dense())
    again = posterior()
    again.take(made.rest())
    assert torch.equal(again.sample(), made.sample())


def test_noise_depends_on_the_step_alone() -> None:
    made, seen = posterior(), []
    for step in (4, 5, 4):
        made.draw_noise(step)
        seen.append(made.sample().detach())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_a_draw_is_chosen_as_often_as_posterior_over_prior_says() -> None:
    draws, mean, deviation = Draws(5, "w", 3, 1), np.array([0.3, -0.8, 0.0]), np.array([0.5, 0.9, 1.0])
    z = torch.from_numpy(np.concatenate(list(draws.of(0, 16))) / PER_UNIT)
    q, p = Normal(torch.from_numpy(mean), torch.from_numpy(deviation)), Normal(0.0, 1.0)
    expected = torch.softmax((q.log_prob(z) - p.log_prob(z)).sum(1), 0).numpy()
    taken = np.bincount([chosen(draws, 0, 16, mean, deviation, (i + 0.5) / 4000) for i in range(4000)], minlength=16)
    np.testing.assert_allclose(taken / 4000, expected, atol=5e-4)


def test_a_posterior_like_a_needle_takes_the_draw_next_to_it() -> None:
    draws, mean = Draws(5, "w", 4, 1), np.array([0.5, -1.0, 0.2, 0.0])
    z = np.concatenate(list(draws.of(0, 1024))) / PER_UNIT
    nearest = int(np.square(z - mean).sum(1).argmin())
    assert chosen(draws, 0, 1024, mean, np.full(4, 1e-3), 0.5) == nearest
    assert chosen(draws, 0, 1024, mean, np.full(4, 1e-3), 1.0) < 1024


def test_a_price_finds_the_amount_that_is_wanted_where_the_answer_takes_its_time() -> None:
    prices, level = Prices(1e-4, 3), torch.zeros(3, dtype=torch.float64)
    for _ in range(600):
        prices.update(level.exp(), 10.0)
        level += 0.1 * ((torch.tensor([2.0, 0.5, 100.0]).double() / prices.each.sqrt()).log() - level)
    torch.testing.assert_close(prices.each, torch.tensor([0.04, 0.0025, 100.0]).double(), rtol=1e-2, atol=0)


def test_blocks_are_divided_by_shares_and_none_goes_without() -> None:
    assert divided(3, [0.0, 0.0, 1.0], [9, 9, 9]) == [1, 1, 1]
    assert divided(20, [1.0, 1.0, 2.0], [9, 3, 9]) == [8, 3, 9]
    assert divided(21, [1.0, 1.0, 2.0], [9, 3, 9]) == [9, 3, 9]
    assert divided(7, [0.0, 0.0], [5, 5]) in ([3, 4], [4, 3])


def test_every_block_has_its_step_and_the_last_step_leaves_none() -> None:
    table = Timetable(100, 0.5)
    counts = [table.coded(step, 333) for step in range(100)]
    assert counts[49] == 0 < counts[50]
    assert counts == sorted(counts)
    assert counts[-1] == 333


# -- networks --------------------------------------------------------------------------------------------------------


def test_before_the_first_block_is_coded_the_weights_say_as_much_as_the_budget_holds() -> None:
    model, data, tune = net(), batches(), gs.Tune(epochs=30, lr=0.01, schedule="constant")
    state = run(model, [])
    places = places_in([s for s in state.specs if s.name.endswith("weight")], state.trees)
    table = Timetable(tune.epochs * len(data), 0.9)
    work = Posteriors(model, state.specs, state.trees, places, blocks=50, bits=8, table=table, seed=0)
    optimizer = tune.make_optimizer(work.network)
    for step in range(table.first):
        work.before_step(step)
        optimizer.zero_grad()
        x, y = data[step % len(data)]
        F.cross_entropy(work.network(x), y).backward()
        work.after_backward()
        optimizer.step()
    nats = torch.cat([p.of_blocks(p.divergence()) for p in work.each.values()]) / (8 * math.log(2))
    assert len(nats) == 50
    assert 0.9 < float(nats.mean()) < 1.1
    assert float(nats.std()) < 0.25


def test_real_images_in_two_bits_per_weight(tmp_path: Path) -> None:
    data = load_fashion()
    x, test = (F.avg_pool2d(images, 4).flatten(1) for images in (data.train[:6000], data.test))
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(49, 24), nn.ReLU(), nn.Linear(24, 10))
    loader = Shuffled(x, data.train_labels[:6000], 100, 0)
    dense = gs.compress(dense, [gs.Tune(epochs=5, lr=5e-3)], data=loader).dense()
    entry = gs.RelativeEntropy(budget_bytes=360, bits=10, tune=gs.Tune(epochs=12, lr=5e-3))
    small = gs.compress(dense, [entry], data=loader)
    size = small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=lambda: copy.deepcopy(dense))
    before, after = (accuracy(n, test, data.test_labels).value for n in (dense, again.dense()))
    assert before > 0.75
    assert after > before - 0.05
    assert index_bits(small.trees) == 2880
    assert size < 1000  # of 5,800 bytes of weights
    for name, dense_weight in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], dense_weight)


def test_the_same_seed_gives_the_same_file_and_another_one_another(tmp_path: Path) -> None:
    files = []
    for seed in (0, 0, 1):
        gs.compress(net(), [entry(seed=seed)], data=batches()).save(tmp_path / "w.gsm")
        files.append((tmp_path / "w.gsm").read_bytes())
    assert files[0] == files[1] != files[2]


def entry(**settings: Any) -> gs.RelativeEntropy:
    return gs.RelativeEntropy(**{"average_bits": 2, "bits": 6, "tune": TUNE, **settings})


class Killed(Exception):
    """In place of a signal."""


class Stops(list[Any]):
    """Batches of a run that is killed at one of them."""

    def __init__(self, at: int) -> None:
        super().__init__(batches())
        self.at = at

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.at -= 1
            if self.at < 0:
                raise Killed
            yield batch


class Noisy(nn.Sequential):
    """Draws from PyTorch's own generator while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.1, self.training))


@pytest.mark.parametrize("steps", [3, 40, 70])  # in the first phase, in the second, while blocks are coded
def test_a_killed_run_goes_on_to_the_same_weights(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Noisy(*net())
    torch.manual_seed(5)
    whole = gs.compress(model, [entry()], data=batches())
    monkeypatch.setattr(relative_entropy, "_KEEP_EVERY", 0.0)
    torch.manual_seed(5)
    with pytest.raises(Killed):
        gs.compress(model, [entry()], data=Stops(steps), checkpoint=tmp_path)
    for _ in range(2):  # the second finds a finished run
        again = gs.compress(model, [entry()], data=batches(), checkpoint=tmp_path, resume=True)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    with pytest.raises(gs.PlanError, match="found a run, expected none"):
        gs.compress(model, [entry()], data=batches(), checkpoint=tmp_path)
    with pytest.raises(gs.PlanError, match="another recipe or network"):
        gs.compress(model, [entry(seed=1)], data=batches(), checkpoint=tmp_path, resume=True)


def test_what_other_methods_left_is_coded_too() -> None:
    recipe = [
        gs.factorize.SVD(rank=2, only="2.weight"),
        gs.prune.Magnitude(sparsity=0.5, only="0.weight"),
        entry(average_bits=3, only="*.weight"),
    ]
    trees = gs.compress(net(), recipe, data=batches()).trees
    pruned, factors = trees["0.weight"], trees["2.weight"]
    assert isinstance(pruned, Masked)
    assert isinstance(pruned.value, Drawn)
    assert int(pruned.to_dense().count_nonzero()) == 80
    assert isinstance(factors, LowRank)
    assert isinstance(factors.u, Drawn)
    assert isinstance(factors.v, Drawn)
    assert isinstance(trees["0.bias"], Dense)


def test_the_table_of_a_hash_is_coded() -> None:
    recipe = [gs.share.Hashing(stored=0.25, only="0.weight"), entry(average_bits=4, only="0.weight")]
    tree = gs.compress(net(), recipe, data=batches()).trees["0.weight"]
    assert isinstance(tree, Hashed)
    assert isinstance(tree.table, Drawn)
    assert tree.table.dense_shape() == (40,)
    assert tree.table.name == "0.weight#/table"


def test_layers_that_were_shrunk_are_coded_inside(tmp_path: Path) -> None:
    recipe = [gs.shrink.Channels(sparsity=0.5, multiple=1), entry()]
    small = gs.compress(net(), recipe, data=batches())
    tree = small.trees["0.weight"]
    assert isinstance(tree, Kept)
    assert isinstance(tree.inner, Drawn)
    small.save(tmp_path / "w.gsm")
    again = gs.load(tmp_path / "w.gsm", into=net).dense()
    assert again[0].weight.shape == (8, 10)
    assert torch.equal(again[0].weight, tree.inner.to_dense())


def test_a_tied_weight_is_coded_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 10)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    small = gs.compress(Tied(), [entry(only="*.weight")], data=batches())
    assert index_bits(small.trees) == 33 * 6
    assert small.dense().a.weight is small.dense().b.weight or torch.equal(
        small.dense().a.weight, small.dense().b.weight
    )


def test_half_precision_trains_in_float32_and_comes_back_half() -> None:
    data = [(x.half(), y) for x, y in batches()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    small = gs.compress(net().half(), [entry()], data=data, loss=loss)
    assert isinstance(small.trees["0.weight"], Drawn)
    assert small.dense()[0].weight.dtype == torch.float16


def test_a_dry_run_says_how_many_bits_there_will_be() -> None:
    model, recipe = net(), [entry()]
    planned, done = run(model, recipe, training=False), run(model, recipe, data=batches())
    assert index_bits(planned.trees) == index_bits(done.trees) == 2 * 227 // 6 * 6


def test_a_recipe_file_says_the_same() -> None:
    recipe = [gs.RelativeEntropy(budget_bytes=400, bits=12, ramp=0.25, seed=3, only=("a", "b"), tune=TUNE)]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "expected one of them"),
        ({"average_bits": 1.0, "budget_bytes": 5}, "expected one of them"),
        ({"average_bits": 0.0}, "above 0"),
        ({"average_bits": math.nan}, "above 0"),
        ({"average_bits": 1.0, "bits": 25}, "1 to 24"),
        ({"average_bits": 1.0, "ramp": 1.0}, "between 0 and 1"),
        ({"average_bits": 1.0, "seed": -1}, "seed -1"),
        ({"average_bits": 1.0, "tune": gs.Tune(held_out=0.1)}, "held_out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(gs.PlanError, match=said):
        gs.RelativeEntropy(**settings)


@pytest.mark.parametrize(
    ("recipe", "kind", "said"),
    [
        ([entry(only="nothing")], gs.CompositionError, "matches no layer"),
        ([entry(only=("0.*", "nothing"))], gs.CompositionError, "'nothing', which matches no tensor"),
        ([entry(skip="nothing")], gs.CompositionError, "'nothing', which matches no tensor"),
        ([entry(budget_bytes=1, average_bits=None)], gs.PlanError, "8 bits, expected 24"),
        ([entry(average_bits=7)], gs.PlanError, r"\(one per number\)"),
        ([entry(tune=gs.Tune(epochs=6, skip="0.weight"))], gs.PlanError, "expected it in skip too"),
        ([entry(ramp=0.01)], gs.PlanError, "expected more of them"),
        ([entry(), gs.share.KMeans(bits=2)], gs.CompositionError, "KMeans matches no layer: 0.weight: found Drawn"),
        ([entry(), entry()], gs.CompositionError, r"found Drawn\(Dense\), expected Dense numbers"),
    ],
)
def test_what_cannot_work_is_refused_before_it_trains(recipe: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        gs.compress(net(), recipe, data=Stops(0))


def test_a_tensor_that_does_not_train_is_refused_by_name() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    with pytest.raises(gs.PlanError, match=r"'0\.weight', which does not train, expected it in skip"):
        gs.compress(model, [entry()], data=batches())
    gs.compress(model, [entry(skip="0.weight")], data=batches())


def test_data_are_needed() -> None:
    with pytest.raises(gs.DataError, match="found no data"):
        gs.compress(net(), [entry()])


def test_all_examples_of_the_page_run_and_its_yaml_is_its_recipe() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert (failed, tried) == (0, 14)
    text = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    first = gs.RelativeEntropy(average_bits=1.5, bits=8, tune=gs.Tune(epochs=20, lr=1e-2))
    assert parse_recipe(yaml.safe_load(text)) == [gs.Tune(epochs=10, lr=1e-2), first]
