"""What the presets choose for real small networks, and that the recipes run as they are."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.demo.data import Fashion, Shuffled, load_fashion
from gossamer.demo.networks import lenet_5, lenet_300_100, train_dense
from gossamer.drive.gradual import Gradual
from gossamer.drive.recipe import Recipe
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.drive.tune import Tune
from gossamer.encoding.spec import Kind
from gossamer.measure.accuracy import accuracy
from gossamer.methods.quantize import RoundToNearest
from gossamer.network.inspect import specs
from gossamer.presets.layers import Layers

ALL = (gs.presets.small, gs.presets.tiny, gs.presets.fast)
Preset = Callable[[nn.Module], Recipe]


class Mixed(nn.Module):
    """A layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.stem = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.alone = nn.Conv2d(16, 16, 3, groups=16)
        self.wide = nn.Conv2d(16, 64, 3)
        self.rnn = nn.GRU(64, 32)
        self.big = nn.Linear(512, 256)
        self.after = nn.LayerNorm(256)
        self.head = nn.Linear(256, 10)


def bits_of(recipe: Recipe, model: nn.Module) -> dict[str, int]:
    """Tensor name → bits; each tensor in one entry at most."""
    found: dict[str, int] = {}
    for entry in recipe:
        assert isinstance(entry, RoundToNearest)
        for spec in specs(model):
            if spec.kind is not Kind.NORM and any(fnmatchcase(spec.name, p) for p in entry.only):
                assert spec.name not in found
                found[spec.name] = entry.bits
    return found


def test_small_gives_more_bits_to_first_last_depthwise_and_recurrent_layers_and_leaves_norms_alone() -> None:
    model = Mixed()
    assert bits_of(gs.presets.small(model), model) == {
        "words.weight": 8, "stem.weight": 8, "stem.bias": 8, "alone.weight": 8, "alone.bias": 8, "wide.weight": 5,
        "wide.bias": 8, "rnn.weight_ih_l0": 6, "rnn.weight_hh_l0": 6, "rnn.bias_ih_l0": 8, "rnn.bias_hh_l0": 8,
        "big.weight": 4, "big.bias": 8, "head.weight": 8, "head.bias": 8,
    }  # fmt: skip
    small = gs.compress(model, gs.presets.small(model))
    after = small.state_dict()
    for name, tensor in model.state_dict().items():
        touched = not name.startswith(("norm.", "after."))
        assert torch.equal(after[name], tensor) != touched, name


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize("factory", [lenet_300_100, lenet_5, Mixed])
def test_recipes_come_back_from_their_yaml_and_do_not_need_weights(
    preset: Preset, factory: Callable[[], nn.Module]
) -> None:
    with torch.device("meta"):
        recipe = preset(factory())
    assert list(parse_recipe(yaml.safe_load(dump_recipe(recipe)))) == list(recipe)
    assert list(recipe) == list(preset(factory()))


@pytest.mark.parametrize("preset", ALL)
def test_a_network_with_nothing_to_compress_is_refused(preset: Preset) -> None:
    with pytest.raises(gs.PlanError, match=r"preset .*: found 4 tensors, expected a weight"):
        preset(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_fast_refuses_a_network_that_it_cannot_make_faster() -> None:
    with pytest.raises(gs.PlanError, match="preset fast"):
        gs.presets.fast(nn.Linear(256, 10))


def test_fast_removes_channels_before_it_prunes_what_is_left_of_wide_layers() -> None:
    names = [type(e).__name__ for e in gs.presets.fast(lenet_5())]
    assert names == ["Channels", "Tune", "Gradual"]
    assert [type(e).__name__ for e in gs.presets.fast(lenet_300_100())] == ["Gradual"]


def test_tiny_leaves_more_weights_the_more_of_them_are_not_in_linear_layers() -> None:
    def kept(model: nn.Module) -> float:
        ramp = gs.presets.tiny(model)[0]
        assert isinstance(ramp, Gradual)
        return round(1 - ramp.methods[0].sparsity, 2)  # type: ignore[attr-defined]

    assert kept(lenet_300_100()) == 0.06
    assert kept(lenet_5()) == 0.07
    assert kept(nn.Conv2d(16, 16, 3)) == 0.2
    assert kept(nn.LSTM(32, 32)) == 0.2
    assert kept(Mixed()) == 0.5  # embeddings: learned for long, learns slowly


@pytest.mark.parametrize("name", ["a.weight", "weight", "blocks.0.fc.weight", "odd[1].weight"])
def test_patterns_mean_the_tensors_they_were_made_for_and_no_others(name: str) -> None:
    spec = specs(nn.Linear(32, 32))[0]
    other = [n for n in ("b.weight", "blocks.1.fc.weight", "blocks.0.fcx.weight", "odd1.weight") if n != name]
    layers = Layers(tuple(replace(spec, name=n) for n in (name, *other)))
    patterns = layers.only([layers.listed[0]])
    assert [s.name for s in layers.listed if any(fnmatchcase(s.name, p) for p in patterns)] == [name]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Fashion]:
    data = load_fashion(None)
    return train_dense(lenet_300_100(), data, Tune(epochs=2, lr=2e-3), batch=128, seed=0).eval(), data


def test_small_on_a_trained_network_is_eight_times_smaller_and_loses_at_most_a_point(
    trained: tuple[nn.Module, Fashion],
) -> None:
    model, data = trained
    small = gs.compress(model, gs.presets.small(model))
    assert small.ledger().ratio > 8
    before, after = (accuracy(m, data.test, data.test_labels).value for m in (model, small.dense()))
    assert before - after < 0.01


def _shorter(recipe: Recipe) -> Recipe:
    """The same with one pass per training run."""

    def cut(entry: object) -> object:
        if isinstance(entry, Tune):
            return replace(entry, epochs=1)
        return replace(entry, tune=replace(entry.tune, epochs=1), updates=10) if isinstance(entry, Gradual) else entry

    return [cut(e) for e in recipe]  # type: ignore[misc]


def test_tiny_and_fast_run_as_they_are_made(trained: tuple[nn.Module, Fashion]) -> None:
    model, data = trained
    batches = Shuffled(data.train[:2560], data.train_labels[:2560], 64, 0)
    for preset, ratio in ((gs.presets.tiny, 40), (gs.presets.fast, 8)):
        small = gs.compress(model, _shorter(preset(model)), data=batches, loss=F.cross_entropy)
        assert small.ledger().ratio > ratio
        assert accuracy(small.dense(), data.test, data.test_labels).value > 0.6
    with pytest.raises(gs.DataError, match="found no"):
        gs.compress(model, gs.presets.tiny(model))


def test_fast_on_convolutions_makes_them_physically_smaller() -> None:
    torch.manual_seed(0)
    model, data = lenet_5().eval(), load_fashion(None)
    batches = Shuffled(data.train[:1280], data.train_labels[:1280], 64, 0)
    small = gs.compress(model, _shorter(gs.presets.fast(model)), data=batches).dense()
    assert small.conv2.weight.shape[0] < 50  # type: ignore[union-attr,operator]
    assert float((small.fc1.weight == 0).float().mean()) > 0.85  # type: ignore[union-attr]
