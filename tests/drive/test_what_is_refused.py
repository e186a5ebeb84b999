"""Requests that would be done otherwise than meant are refused, and say what was found and expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.drive.recipe_file import parse_recipe


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches() -> list[torch.Tensor]:
    return [torch.randn(32, 8)]


def gptq(**settings: Any) -> gs.quantize.GPTQ:
    return gs.quantize.GPTQ(bits=4, group="channel", **settings)


@pytest.mark.parametrize("setting", [{"only": ("0.*", "zzz.*")}, {"skip": "foo.*"}, {"skip": ("0.*", "zzz.*")}])
def test_a_pattern_that_matches_no_tensor_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(gs.CompositionError, match=r"(zzz|foo)\.\*', which matches no tensor, expected names like 0\."):
        gs.compress(net(), [gs.prune.Magnitude(sparsity=0.5, **setting)])
    with pytest.raises(gs.CompositionError, match="which matches no tensor"):
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(**setting),))], data=batches())


def test_a_checkpoint_that_nothing_would_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gs.PlanError, match="found no BlockByBlock"):
        gs.compress(net(), [gptq()], data=batches(), checkpoint=tmp_path)
    with pytest.raises(gs.PlanError, match="found no checkpoint="):
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(),))], data=batches(), resume=True)


def test_another_recipe_is_told_where_it_differs(tmp_path: Path) -> None:
    data = batches()
    gs.compress(net(), [gs.BlockByBlock(methods=(gptq(),))], data=data, checkpoint=tmp_path)
    with pytest.raises(gs.PlanError, match=r"sweeps=1.*sweeps=2"):
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(sweeps=2),))], data=data, checkpoint=tmp_path, resume=True)
    with pytest.raises(gs.PlanError, match="found a run, expected none"):
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(),))], data=data, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [(torch.randn(4, 8), "expected a list of batches"), ([torch.randn(0, 8)], "found no rows, expected samples")],
)
def test_data_that_say_nothing_are_refused(data: Any, said: str) -> None:
    with pytest.raises(gs.DataError, match=said):
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(),))], data=data)


def test_too_few_rows_are_said_once() -> None:
    with pytest.warns(UserWarning, match="rows") as said:
        gs.compress(net(), [gs.BlockByBlock(methods=(gptq(),))], data=[torch.randn(2, 8)])
    assert len(said) == 1


def test_an_allocation_that_needs_no_search_is_refused() -> None:
    with pytest.raises(gs.PlanError, match="found 'uniform', expected 'global' or 'lamp'"):
        gs.allocate(net(), gs.prune.Magnitude(sparsity=0.5), None)


def test_an_unknown_method_inside_a_stage_is_told_the_names() -> None:
    with pytest.raises(gs.PlanError, match=r"found 'quantize.GPTQQ', expected one of .*quantize\.GPTQ"):
        parse_recipe([{"BlockByBlock": {"methods": [{"quantize.GPTQQ": {"bits": 4}}]}}])


def test_a_recipe_is_a_list() -> None:
    with pytest.raises(gs.PlanError, match="found BlockByBlock, expected a list"):
        gs.compress(net(), gs.BlockByBlock(methods=(gptq(),)), data=batches())  # type: ignore[arg-type]


def test_a_network_that_is_sparse_already_is_not_made_sparse_again() -> None:
    once = gs.train.sparsify(net(), gs.train.RigL(sparsity=0.5, steps=1000))  # type: ignore[attr-defined]
    with pytest.raises(gs.PlanError, match="live values only already, expected a dense layer"):
        gs.train.sparsify(once, gs.train.RigL(sparsity=0.9, steps=1000))  # type: ignore[attr-defined]


def test_a_file_for_another_network_names_what_differs(tmp_path: Path) -> None:
    gs.compress(net(), []).save(tmp_path / "n.gsm")
    with pytest.raises(gs.FormatError, match=r"lacks, '2\.bias', '2\.weight', expected a network with these"):
        gs.load(tmp_path / "n.gsm", into=nn.Sequential(nn.Linear(8, 16)))
