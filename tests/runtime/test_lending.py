"""Lowered networks share nothing with the original, though its weights are not copied before they are packed."""

from __future__ import annotations

import copy

import pytest
import torch
from clocks import sparse_wins
from torch import Tensor, nn

import gossamer as gs
from gossamer.runtime.lending import Loan


class Tied(nn.Module):
    """An embedding whose weight is a Linear's, a layer that stays dense, one that is read by name, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 32)
        self.thin, self.full, self.named = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.mix, self.norm = nn.Conv1d(32, 32, 3, padding=1), nn.LayerNorm(32)
        self.out = nn.Linear(32, 40)
        self.out.weight = self.words.weight
        with torch.no_grad():
            self.thin.weight.mul_(torch.rand(32, 32) < 0.1)
            self.mix.weight.mul_(torch.rand(32, 32, 3) < 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.full(self.norm(self.thin(self.words(x)))) @ self.named.weight
        out: Tensor = self.out(self.mix(y.transpose(1, 2)).transpose(1, 2))
        return out


@pytest.mark.parametrize("sparse", [True, False])
def test_training_the_original_on_changes_nothing_in_the_lowered_network(
    sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sparse:
        monkeypatch.setattr("gossamer.runtime.tuner.raced", sparse_wins)
    model, x = Tied(), torch.randint(40, (3, 20))
    kept = copy.deepcopy(model.state_dict())
    fast = gs.lower(model, x)  # type: ignore[operator]
    before = fast(x).clone()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    torch.testing.assert_close(before, model.eval()(x).detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(fast(x), before)


def test_ties_within_the_copy_survive() -> None:
    loan = Loan(Tied())
    copied = loan.copy()
    loan.settle(copied)
    assert isinstance(copied, Tied) and copied.out.weight is copied.words.weight
