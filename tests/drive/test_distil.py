"""Learning from the dense network inside and out, without labels, and stopping early."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gossamer as gs
from gossamer.drive.distil import attention_map, hidden_loss
from gossamer.drive.progress import NoProgress
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.drive.tune import Tune, train
from gossamer.errors import DataError, PlanError
from gossamer.methods.prune import Magnitude
from gossamer.methods.shrink import Channels


def net(hidden: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def inputs(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 5, generator=generator) for _ in range(count)]


def labelled(count: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(x, (x[:, 0] > 0).long()) for x in inputs(count)]


@pytest.mark.parametrize("form", ["tensors", "singles", "pairs"])
def test_with_the_teacher_alone_batches_need_no_labels(form: str) -> None:
    data = {"tensors": inputs(), "singles": [(x,) for x in inputs()], "pairs": labelled()}[form]
    teacher = net()
    small = gs.compress(teacher, [Channels(sparsity=0.5), Tune(epochs=12, lr=3e-2, distil=1.0)], data=data)
    before = gs.compress(teacher, [Channels(sparsity=0.5)])

    def apart(other: nn.Module) -> float:
        x = torch.cat(inputs())
        with torch.no_grad():
            return float(
                F.kl_div(other(x).log_softmax(-1), teacher(x).log_softmax(-1), reduction="batchmean", log_target=True)
            )

    assert apart(small.dense()) < 0.5 * apart(before.dense())


def test_with_labels_in_the_loss_batches_without_are_refused() -> None:
    with pytest.raises(DataError, match=r"found a batch of Tensor, expected \(inputs, targets\), or inputs with dis"):
        gs.compress(net(), [Tune(distil=0.5)], data=inputs())


def test_hidden_states_are_learned_through_a_projection_that_is_thrown_away() -> None:
    teacher, student = net(8, 0), net(4, 1)
    names = set(student.state_dict())
    tune = Tune(epochs=20, lr=2e-2, distil=1.0, hidden={"1": "1"}, hidden_weight=10.0)

    def best_fit(model: nn.Sequential) -> float:
        x = torch.cat(inputs())
        with torch.no_grad():
            mine, theirs = model[:2](x), teacher[:2](x)
            mine = torch.cat([mine, torch.ones(len(mine), 1)], 1)
            return float((mine @ torch.linalg.pinv(mine) @ theirs - theirs).square().mean())

    before = best_fit(student)
    train(student, inputs(), tune, teacher=teacher.eval(), progress=NoProgress())
    assert best_fit(student) < 0.7 * before
    assert set(student.state_dict()) == names
    assert not student[1]._forward_hooks
    assert not teacher[1]._forward_hooks


def test_equal_widths_need_no_projection_and_the_loss_is_the_mean_square() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert float(hidden_loss(a, b, None)) == pytest.approx(float((a - b).square().mean()))
    wide = nn.Linear(3, 5)
    c = torch.randn(2, 5, 4, 4)
    expected = (F.conv2d(a, wide.weight[:, :, None, None], wide.bias) - c).square().mean()
    assert float(hidden_loss(a, c, wide).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_attention_maps_are_energies_per_position_of_length_one() -> None:
    a = torch.randn(2, 3, 4, 5)
    expected = F.normalize(a.square().sum(1).view(2, 20), dim=1)
    torch.testing.assert_close(attention_map(a), expected)
    torch.testing.assert_close(attention_map(a.flatten(2).transpose(1, 2)), expected)


def test_attention_transfer_brings_the_maps_together_whatever_the_widths() -> None:
    def convs(width: int, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 2))

    teacher, student = convs(6, 0).eval(), convs(3, 1)
    data = [torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def apart() -> float:
        x = torch.cat(data)
        with torch.no_grad():
            return float((attention_map(student[:2](x)) - attention_map(teacher[:2](x))).square().sum())

    before = apart()
    tune = Tune(epochs=15, lr=2e-2, distil=1.0, attention={"1": "1"}, attention_weight=50.0)
    train(student, data, tune, teacher=teacher, progress=NoProgress())
    assert apart() < 0.7 * before


def test_arithmetic_in_bfloat16_learns_as_much_and_leaves_weights_and_losses_in_float32() -> None:
    teacher = net()
    seen: list[torch.dtype] = []

    class Widths(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return x

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.dtype is torch.float32
        return F.mse_loss(outputs, targets)

    def trained(precision: Literal["float32", "bfloat16"]) -> float:
        student = nn.Sequential(*net(seed=1), Widths())
        with torch.no_grad():
            data = [(x, teacher(x)) for x in inputs()]
        tune = Tune(epochs=20, lr=2e-2, hidden={"0": "0"}, precision=precision)
        train(student, data, tune, teacher=teacher, loss=loss, progress=NoProgress())
        assert all(p.dtype is torch.float32 for p in student.parameters())
        with torch.no_grad():
            return sum(float(loss(student(x), y)) for x, y in data)

    with torch.no_grad():
        before = sum(float((net(seed=1)(x) - teacher(x)).square().mean()) for x in inputs())
    assert trained("float32") < 0.1 * before
    assert torch.bfloat16 not in seen
    assert trained("bfloat16") < 0.1 * before
    assert torch.bfloat16 in seen


def test_attention_in_bfloat16_has_gradients_near_those_in_float32() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.mix(x)[:, None]
            return F.scaled_dot_product_attention(q, q, q)[:, 0]

    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(2, 5, 8, generator=generator), torch.randn(2, 5, 8, generator=generator))]
    torch.manual_seed(0)
    start = Attends()
    found = []
    for precision in ("float32", "bfloat16"):
        model = copy.deepcopy(start)
        tune = Tune(lr=0.1, optimizer="sgd", schedule="constant", precision=precision)
        train(model, data, tune, loss=F.mse_loss, progress=NoProgress())
        found.append(model.mix.weight.detach() - start.mix.weight.detach())
    assert float((found[0] - found[1]).norm()) < 0.02 * float(found[0].norm())
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("pruned", [False, True])
def test_tensors_that_are_skipped_stay_what_they_are_and_can_train_again_afterwards(pruned: bool) -> None:
    teacher = net()
    tune = Tune(epochs=2, lr=3e-2, distil=1.0, skip="0.*")
    recipe = [gs.Gradual(methods=(Magnitude(sparsity=0.5),), tune=tune, updates=2)] if pruned else [tune]
    small = gs.compress(teacher, recipe, data=inputs(16)).dense()
    kept = small[0].weight != 0
    assert torch.equal(small[0].weight[kept], teacher[0].weight[kept])
    assert torch.equal(small[0].bias, teacher[0].bias)
    assert not torch.equal(small[2].bias, teacher[2].bias)
    student = net(seed=1)
    train(student, inputs(), tune, teacher=teacher, progress=NoProgress())
    assert all(p.requires_grad for p in student.parameters())


def test_a_pattern_to_skip_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"skip: found 'embed\*', which matches no tensor that trains, expected names like 0.bias"
    ):
        train(net(), labelled(), Tune(skip="embed*"), progress=NoProgress())


@pytest.mark.parametrize("tune", [Tune(skip="typo.*"), Tune(hidden={"typo": "0"}), Tune(attention={"0": "typo"})])
def test_names_that_match_nothing_are_refused_before_anything_runs(tune: Tune) -> None:
    with pytest.raises(PlanError, match="typo"):
        gs.compress(net(), [Tune(epochs=1), tune], data=labelled(), loss=_never)


def _never(outputs: Tensor, targets: Tensor) -> Tensor:
    raise AssertionError("the run has begun")


def test_tensors_of_which_nothing_is_left_to_train_may_be_skipped() -> None:
    small = gs.compress(
        net(), [gs.quantize.PowerOfTwo(bits=3, only="0.weight"), Tune(skip="0.weight")], data=labelled()
    )
    assert small.dense()[0].weight.shape == (8, 5)


def test_what_a_loss_gets_is_float32_in_dicts_and_tuples_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
            return {"scores": (self.body(x),)}

    seen = []

    def loss(outputs: dict[str, tuple[Tensor, ...]], targets: Tensor) -> Tensor:
        seen.append(outputs["scores"][0].dtype)
        return F.cross_entropy(outputs["scores"][0], targets)

    tune = Tune(epochs=1, precision="bfloat16")
    gs.compress(Named(), [Magnitude(sparsity=0.5), tune], data=labelled(), loss=loss)
    assert set(seen) == {torch.float32}


def test_teaching_by_outputs_is_training_towards_targets_computed_before() -> None:
    teacher = net()
    given = inputs()
    with torch.no_grad():
        data = [(x, teacher(x)) for x in given]

    def trained(batches: list[Any], tune: Tune) -> dict[str, Tensor]:
        student = net(seed=1)
        train(student, batches, tune, teacher=teacher, loss=F.mse_loss, progress=NoProgress())
        return student.state_dict()

    expected = trained(data, Tune(epochs=3, lr=1e-2))
    found = trained(list(given), Tune(epochs=3, lr=1e-2, distil=1.0, taught_by="outputs"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)


def test_a_way_of_teaching_that_is_not_offered_is_refused() -> None:
    with pytest.raises(PlanError, match="taught_by: found 'states', expected 'classes' or 'outputs'"):
        Tune(taught_by="states")  # type: ignore[arg-type]


def test_a_precision_that_is_not_offered_is_refused() -> None:
    with pytest.raises(PlanError, match="precision: found 'float16', expected 'float32' or 'bfloat16'"):
        Tune(precision="float16")  # type: ignore[arg-type]


def test_pairs_that_cannot_be_compared_are_named() -> None:
    cases: list[tuple[dict[str, str], type[Exception], str]] = [
        ({"9": "1"}, PlanError, "found no module '9' in the network"),
        ({"1": "nine"}, PlanError, "found no module 'nine' in the teacher"),
    ]
    for hidden, kind, text in cases:
        with pytest.raises(kind, match=text):
            train(net(), inputs(), Tune(distil=1.0, hidden=hidden), teacher=net(), progress=NoProgress())
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    teacher = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(DataError, match=r"'0' learns from '0': found \(2, 2, 4, 4\) and \(2, 2, 2, 2\)"):
        train(
            student,
            [torch.zeros(2, 1, 6, 6)],
            Tune(distil=1.0, hidden={"0": "0"}),
            teacher=teacher,
            progress=NoProgress(),
        )


class Worse:
    """Labels that turn round after the first epoch: what is learned then is wrong on what is held out."""

    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 70

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in labelled(70):
            yield x, y if self.epochs == 0 else 1 - y
        self.epochs += 1


def test_patience_stops_and_the_best_weights_come_back() -> None:
    data, held_out = Worse(), labelled(3)
    model = net()
    tune = Tune(epochs=20, lr=2e-2, schedule="constant", patience=3, held_out=held_out)
    train(model, data, tune, progress=NoProgress())
    assert data.epochs == 4
    once = net()
    train(once, labelled(70), Tune(epochs=1, lr=2e-2, schedule="constant"), progress=NoProgress())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), once.parameters(), strict=True))


def test_attached_networks_get_their_best_leaves_back() -> None:
    data = Worse()
    tune = Tune(epochs=9, lr=2e-2, schedule="constant", patience=2, held_out=labelled(3))
    small = gs.compress(net(), [Magnitude(sparsity=0.5), tune], data=data)
    once = gs.compress(
        net(), [Magnitude(sparsity=0.5), Tune(epochs=1, lr=2e-2, schedule="constant")], data=labelled(70)
    )
    for name, tensor in once.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor)


def test_a_fraction_of_lists_and_loaders_is_kept_out_of_training() -> None:
    x, y = torch.cat(inputs()), torch.cat([y for _, y in labelled()])
    seen: list[Tensor] = []

    class Watch(nn.Sequential):
        def forward(self, batch: Tensor) -> Tensor:
            if self.training:
                seen.append(batch)
            return super().forward(batch)

    for data in (labelled(), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)):
        seen.clear()
        train(Watch(*net()), data, Tune(epochs=2, held_out=0.25, patience=2), progress=NoProgress())
        trained = torch.cat(seen)
        first, last = x[:96], x[96:]
        assert len(trained) == 2 * 96
        assert all(bool((trained == row).all(1).any()) for row in first)
        assert not any(bool((trained == row).all(1).any()) for row in last)
    with pytest.raises(DataError, match="held_out: found data of Worse"):
        train(net(), Worse(), Tune(held_out=0.25), progress=NoProgress())
    with pytest.raises(DataError, match=r"held_out: found 0\.01 of 8 batches"):
        train(net(), labelled(), Tune(held_out=0.01), progress=NoProgress())


@pytest.mark.parametrize(
    "settings",
    [{"patience": 2}, {"held_out": 1.0}, {"held_out": 0.2, "patience": 0}, {"hidden_weight": -1.0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        Tune(**settings)  # type: ignore[arg-type]


def test_gradual_pruning_does_not_stop_early() -> None:
    with pytest.raises(PlanError, match="Gradual: found held_out"):
        gs.Gradual(methods=(Magnitude(sparsity=0.5),), tune=Tune(held_out=0.1))


def test_the_settings_go_through_a_recipe_file() -> None:
    tune = Tune(distil=0.5, hidden={"layer.0": "layer.1"}, attention={"a": "b"}, held_out=0.1, patience=2)
    import yaml

    again = parse_recipe(yaml.safe_load(dump_recipe([tune])))
    assert again == [tune]


def test_the_teacher_does_not_change() -> None:
    teacher = net()
    before = copy.deepcopy(teacher.state_dict())
    train(net(4, 2), inputs(), Tune(distil=1.0, hidden={"1": "1"}), teacher=teacher, progress=NoProgress())
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, *, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("hidden", [{}, {"first": "first"}])
def test_batches_that_are_mappings_need_no_targets_where_the_teacher_says_all(hidden: dict[str, str]) -> None:
    torch.manual_seed(0)
    net = _Named()
    recipe = [gs.quantize.RoundToNearest(bits=4), gs.Tune(epochs=2, lr=1e-3, distil=1, hidden=hidden)]
    small = gs.compress(net, recipe, data=[{"x": torch.randn(8, 4)} for _ in range(4)])
    assert small.dense()(x=torch.randn(2, 4)).shape == (2, 3)
