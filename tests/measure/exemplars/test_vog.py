"""Variance of gradients equals its definition, after training and during it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.drive.recipe_file import dump_recipe
from gossamer.errors import DataError
from gossamer.measure import VogCallback, deciles, vog
from gossamer.store.state_file import read_state, write_state


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 4)
    )


def images(n: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def trained(every: int = 3, steps: int = 12) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A network and state dicts on its way."""
    model, (inputs, targets) = network(), images()
    optimizer, saved = torch.optim.SGD(model.parameters(), 0.1), []
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if step % every == 0:
            saved.append(copy.deepcopy(model.state_dict()))
    return model.eval(), saved


def by_direct_loop(
    saved: list[dict[str, Tensor]], model: nn.Module, inputs: Tensor, asked: Tensor | None, classes: Tensor
) -> Tensor:
    """The definition, example by example and in float64, as a reader of the paper would write it down."""
    gradients = []
    for state in saved:
        at = copy.deepcopy(model)
        at.load_state_dict(state)
        at.double().eval()
        rows = []
        wanted = at(inputs.double()).argmax(1) if asked is None else asked
        for image, c in zip(inputs.double(), wanted.tolist(), strict=True):
            x = image.unsqueeze(0).requires_grad_()
            rows.append(torch.autograd.grad(at(x)[0, c], x)[0][0])
        gradients.append(torch.stack(rows))
    stacked = torch.stack(gradients)
    deviation = ((stacked - stacked.mean(0)) ** 2).mean(0).sqrt()
    raw = deviation.mean((1, 2, 3))
    scores = torch.zeros_like(raw)
    for c in set(classes.tolist()):
        mine = classes == c
        scores[mine] = (raw[mine] - raw[mine].mean()) / raw[mine].std(correction=0)
    return torch.stack([raw, scores])


@pytest.mark.parametrize("logit", ["predicted", "true", "final"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_a_direct_loop_over_checkpoints(logit: Any, dtype: torch.dtype) -> None:
    (model, saved), (inputs, targets) = trained(), images()
    found = vog(saved, model, inputs, targets, logit=logit, batch=17, dtype=dtype)
    final = model(inputs).argmax(1)
    classes = targets if logit == "true" else final
    raw, scores = by_direct_loop(saved, model, inputs, None if logit == "predicted" else classes, classes)
    assert (found.raw - raw).abs().max() < 1e-5 * raw.mean()
    assert (found.scores - scores).abs().max() < 1e-5
    assert torch.equal(found.classes, classes)
    assert torch.equal(found.wrong, model(inputs).argmax(1) != targets)
    assert found.checkpoints == len(saved) == 4


def test_scores_have_mean_0_and_deviation_1_in_every_class_of_the_logit() -> None:
    (model, saved), (inputs, targets) = trained(), images()
    found = vog(saved, model, inputs, targets, logit="true")
    for c in range(4):
        mine = found.scores[targets == c]
        assert abs(float(mine.mean())) < 1e-9
        assert abs(float(mine.std(correction=0)) - 1) < 1e-9


def test_networks_state_dicts_and_a_generator_of_either_give_the_same() -> None:
    (model, saved), (inputs, targets) = trained(), images()
    taken = []

    def one_by_one() -> Iterator[dict[str, Tensor]]:
        for state in saved:
            taken.append(1)
            yield state

    nets = []
    for state in saved:
        nets.append(copy.deepcopy(model))
        nets[-1].load_state_dict(state)
    first = vog(nets, model, inputs, targets)
    assert torch.equal(first.scores, vog(one_by_one(), model, inputs, targets).scores)
    assert len(taken) == 4


def test_many_checkpoints_that_hardly_differ_keep_their_digits() -> None:
    # A large common gradient with small deviations is where sums of squares fail.
    inputs, targets = torch.randn(20, 5), torch.randint(2, (20,))
    model, saved = nn.Linear(5, 2), []
    for t in range(100):
        weight = 1000.0 + torch.linspace(-1, 1, 100)[t] * torch.ones(2, 5)
        saved.append({"weight": weight, "bias": torch.zeros(2)})
    wanted = torch.linspace(-1, 1, 100).double().std(correction=0)
    assert (vog(saved, model, inputs, targets).raw / wanted - 1).abs().max() < 1e-3
    assert (vog(saved, model, inputs, targets, dtype=torch.float64).raw / wanted - 1).abs().max() < 1e-4


def test_the_network_is_left_as_it_was() -> None:
    (model, saved), (inputs, targets) = trained(), images()
    model.train()
    model[1].eval()
    F.cross_entropy(model(inputs), targets).backward()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    vog(saved, model, inputs, targets)
    assert [m.training for m in model.children()] == [True, False, True, True, True, True]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert not inputs.requires_grad


@pytest.mark.parametrize("logit", ["predicted", "true"])
def test_a_callback_finds_what_checkpoints_give_and_does_not_disturb_training(logit: Any) -> None:
    model, (inputs, targets) = network(), images()
    watch = VogCallback(inputs, targets, every=3, logit=logit)
    saved: list[dict[str, Tensor]] = []

    def train(model: nn.Module, look: bool) -> nn.Module:
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if look and watch.step(model):
                saved.append(copy.deepcopy(model.state_dict()))
        return model

    alone = train(copy.deepcopy(model), look=False)
    watched = train(model, look=True)
    for mine, other in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert watch.checkpoints == len(saved) == 4
    assert torch.equal(watch.vog(watched).scores, vog(saved, watched, inputs, targets, logit=logit).scores)


def test_a_callback_that_is_resumed_from_a_file_goes_on_bit_for_bit(tmp_path: Path) -> None:
    (model, saved), (inputs, targets) = trained(), images()
    whole, first, second = (VogCallback(inputs, targets, every=2) for _ in range(3))
    at = copy.deepcopy(model)
    for i, state in enumerate(saved):
        at.load_state_dict(state)
        whole.step(at)
        if i == 3:
            write_state(tmp_path / "vog.safetensors", first.state_dict())
            second.load_state_dict(read_state(tmp_path / "vog.safetensors"))
        (first if i < 3 else second).step(at)
    assert second.checkpoints == whole.checkpoints == 2
    assert torch.equal(second.vog(model).scores, whole.vog(model).scores)
    with pytest.raises(DataError, match=r"mean: found \(60, 1, 8, 8\).*expected \(61, 1, 8, 8\)"):
        VogCallback(*images(61), every=2).load_state_dict(first.state_dict())


def test_a_recipe_is_watched_through_tune() -> None:
    inputs, targets = images()
    batches = [(inputs[i : i + 20], targets[i : i + 20]) for i in (0, 20, 40)]
    watch = VogCallback(inputs, targets, every=2)
    tune = gs.Tune(epochs=4, lr=1e-2, watch=watch)
    assert tune == gs.Tune(epochs=4, lr=1e-2)
    assert dump_recipe([tune]) == dump_recipe([gs.Tune(epochs=4, lr=1e-2)])  # it is no setting
    small = gs.compress(network().eval(), [gs.prune.Magnitude(sparsity=0.5), tune], data=batches)
    assert watch.checkpoints == 6
    assert watch.vog(small.dense()).checkpoints == 6


def test_sparse_training_is_watched_in_its_loop() -> None:
    inputs, targets = images()
    method = gs.train.SET(sparsity=0.5, steps=12, every=4)
    model = gs.train.sparsify(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier, watch = gs.train.Sparsifier(model, optimizer, method), VogCallback(inputs, targets, every=3)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        sparsifier.step()
        watch.step(model)
    found = watch.vog(model)
    assert found.checkpoints == 4
    assert float(found.raw.min()) > 0


def test_deciles_hold_all_examples_in_the_order_of_scores() -> None:
    scores = torch.tensor([float(i * 7 % 23) for i in range(23)])
    wrong = scores > 17
    rows = deciles(scores, wrong)
    assert sum(row.n for row in rows) == 23
    assert {row.n for row in rows} == {2, 3}
    assert sum(round(row.n * row.error) for row in rows) == int(wrong.sum())
    assert [row.error for row in rows[:7]] == [0.0] * 7
    assert rows[-1].error == 1.0
    for row in rows:
        assert 0 <= row.low <= row.error <= row.high <= 1


def test_intervals_are_those_of_wilson() -> None:
    # 10 wrong of 100: Wilson's 95% interval is 0.0552 to 0.1744.
    row = deciles(torch.zeros(1000), torch.arange(1000) % 10 == 0)[0]
    assert (row.n, row.error) == (100, 0.1)
    assert abs(row.low - 0.05523) < 1e-4
    assert abs(row.high - 0.17437) < 1e-4


def test_the_json_has_the_whole_curve_and_no_infinity() -> None:
    (model, saved), (inputs, targets) = trained(), images()
    told = vog(saved, model, inputs, targets).to_json()
    assert list(told) == ["logit", "checkpoints", "deciles", "top_over_bottom"]
    assert list(told["deciles"][0]) == ["decile", "n", "error", "low", "high"]
    assert [row["decile"] for row in told["deciles"]] == list(range(1, 11))
    found = vog(saved, model, inputs, model(inputs).argmax(1))
    assert found.top_over_bottom == 1.0  # no error anywhere
    right = model(inputs).argmax(1)
    right[int(found.scores.argmax())] = (right[int(found.scores.argmax())] + 1) % 4
    assert vog(saved, model, inputs, right).to_json()["top_over_bottom"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoints": []}, "found 0 checkpoints, expected at least 2"),
        ({"checkpoints": [{"weight": torch.zeros(1)}] * 2}, "checkpoint 1: found a state dict of another network"),
        ({"checkpoints": ["epoch1.pt", "epoch2.pt"]}, "checkpoint 1: found str, expected a network or a state dict"),
        ({"targets": torch.zeros(59, dtype=torch.int64)}, "found 60 inputs and 59 targets"),
        ({"targets": torch.zeros(60)}, "targets: found .* of torch.float32"),
        ({"targets": torch.full((60,), 4)}, "found targets 4 to 4, expected 0 to 3"),
        ({"inputs": torch.zeros(60, 1, 8, 8, dtype=torch.int64)}, "found"),
        ({"logit": "softmax"}, "logit: found 'softmax'"),
        ({"classes": 10}, "classes: found 10, expected the 4"),
        ({"batch": 0}, "batch: found 0"),
        ({"dtype": torch.float16}, "dtype: found torch.float16"),
    ],
)
def test_bad_requests_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    model, (inputs, targets) = network().eval(), images()
    if change.get("inputs") is not None:
        model = nn.Sequential(nn.Flatten(), nn.Embedding(3, 4), nn.Flatten(), nn.LazyLinear(4))
    given: dict[str, Any] = {"checkpoints": [model, model], "model": model, "inputs": inputs, "targets": targets}
    with pytest.raises(DataError, match=said):
        vog(**{**given, **change})


def test_a_network_without_gradients_or_with_broken_ones_is_refused() -> None:
    inputs, targets = images()

    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :4]

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).sqrt().flatten(1)[:, :4]

    with pytest.raises(DataError, match="checkpoint 1: found outputs without gradients"):
        vog([Frozen()] * 2, Frozen(), inputs, targets)
    with pytest.raises(DataError, match="checkpoint 1: found a gradient that is not finite"):
        vog([Broken()] * 2, Broken(), inputs, targets)
    with pytest.raises(DataError, match="logit: found 'final'"):
        VogCallback(inputs, targets, every=1, logit="final")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="every: found 0"):
        VogCallback(inputs, targets, every=0)
