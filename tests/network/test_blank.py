"""Networks that are built for other weights: no random numbers are drawn, and nothing else differs."""

from __future__ import annotations

import torch
from torch import nn

from gossamer.network.blank import blank


class Watched(nn.Module):
    """Uses its weights while it is built, and random numbers for a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Conv1d(7, 2, 1, dtype=torch.bfloat16))
        self.embedding = nn.Embedding(9, 5, padding_idx=0)
        self.recurrent = nn.GRU(3, 4)
        self.register_buffer("noise", torch.randn(6))
        with torch.no_grad():
            self.width = self.layers[1](self.layers[0](torch.ones(2, 5))).shape[1]
            assert torch.isfinite(self.layers[0].weight).all()


def test_a_blank_network_has_the_same_tensors_and_draws_nothing_for_parameters() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = blank(lambda: nn.Linear(500, 300))
    assert torch.equal(torch.get_rng_state(), before)
    assert made.weight.shape == (300, 500)
    assert not made.weight.any()
    assert made.weight.requires_grad


def test_constructors_may_use_weights_and_random_buffers() -> None:
    torch.manual_seed(0)
    made, known = blank(Watched), Watched()
    assert [(n, p.shape, p.dtype) for n, p in made.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in known.named_parameters()
    ]
    assert made.width == known.width
    assert made.noise.std() > 0
    assert (made.layers[1].weight == 1).all()
    assert torch.isfinite(made.recurrent(torch.ones(2, 1, 3))[0]).all()


def test_drawing_goes_on_as_before_afterwards() -> None:
    blank(Watched)
    assert nn.Linear(5, 7).weight.any()
