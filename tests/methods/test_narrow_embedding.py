"""`NarrowEmbedding` keeps the function, and sees by running the network what may not be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.errors import CompositionError, DataError, PlanError

TOKENS = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Embedding, a layer that reads it, outputs."""

    def __init__(self, layer: nn.Module, **embedding: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 10, **embedding)
        self.layer = layer
        self.out = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.layer(self.tokens(tokens))
        return self.out(read[0] if isinstance(read, tuple) else read)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(10, 8),
    "gru": lambda: nn.GRU(10, 8, batch_first=True),
    "lstm-two-levels": lambda: nn.LSTM(10, 8, 2, batch_first=True),
    "rnn-both-ways": lambda: nn.RNN(10, 4, bidirectional=True, batch_first=True),
}


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def _narrow(network: nn.Module, *more: object, example: object = TOKENS) -> gs.Compressed:
    return gs.compress(network, [gs.shrink.NarrowEmbedding(), *more], data=[(example, torch.zeros(3))])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_function_stays_and_the_network_becomes_narrower(layer: str, tmp_path: Path) -> None:
    network = _seeded(lambda: Tagger(LAYERS[layer]()))
    small = _narrow(network)
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=lambda: Tagger(LAYERS[layer]())).dense()
    torch.testing.assert_close(again(TOKENS), network(TOKENS))
    torch.testing.assert_close(small.lower(TOKENS)(TOKENS), network(TOKENS), rtol=1e-4, atol=1e-5)
    assert torch.equal(again.tokens.weight, torch.eye(6))
    assert {w.shape[1] for n, w in again.layer.named_parameters() if n in ("weight", "weight_ih_l0")} == {6}
    assert not any(p is again.tokens.weight for p in small.trainable().parameters())


def test_cells_and_keywords_of_the_network_are_understood() -> None:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(6, 10)
            self.cell = nn.GRUCell(10, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            state = torch.zeros(len(tokens), 8)
            for t in range(tokens.shape[1]):
                state = self.cell(self.tokens(tokens[:, t]), state)
            return state

    network = _seeded(Stepping)
    small = _narrow(network, example={"tokens": TOKENS}).dense()
    assert small.cell.weight_ih.shape == (24, 6)
    torch.testing.assert_close(small(TOKENS), network(TOKENS))


def test_rows_of_zeros_take_no_column_and_stay_zero() -> None:
    network = _seeded(lambda: Tagger(nn.Linear(10, 8), padding_idx=0))
    small = _narrow(network)
    assert small.dense().layer.weight.shape == (8, 5)
    assert not small.dense().tokens.weight[0].any()
    torch.testing.assert_close(small.dense()(TOKENS), network(TOKENS))


def test_what_is_left_can_be_trained_pruned_and_quantized() -> None:
    network = _seeded(lambda: Tagger(nn.GRU(10, 8, batch_first=True)))
    more = (gs.prune.Magnitude(sparsity=0.5, only="layer.weight_ih_l0"), gs.quantize.GPTQ(bits=4, group="channel"))
    small = _narrow(network, *more)
    weight = small.dense().layer.weight_ih_l0
    assert weight.shape == (24, 6)
    assert int((weight != 0).sum()) <= 72


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(6, 10), nn.Linear(10, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return x + self.layer(x)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(6, 10), nn.Linear(10, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(self.tokens(tokens))))


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(6, 10), nn.Linear(10, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(nn.functional.layer_norm(self.tokens(tokens), (10,)))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer, self.out = nn.Embedding(6, 10), nn.Linear(10, 10), nn.Linear(10, 6, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layer(self.tokens(tokens)))


class _TiedInCode(_Tied):
    def __init__(self) -> None:
        super().__init__()
        del self.out

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(self.layer(self.tokens(tokens)), self.tokens.weight)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Residual, "something beside layer reads"),
        (_Twice, "layer reads something else too"),
        (_Normed, "no Linear or recurrent layer"),
        (_Tied, "is used elsewhere too"),
        (_TiedInCode, "is used elsewhere too"),
        (lambda: Tagger(nn.Linear(10, 8), max_norm=1), "no plain embedding"),
    ],
)
def test_an_embedding_that_may_not_be_changed_is_refused_with_the_reason(
    make: Callable[[], nn.Module], reason: str
) -> None:
    with pytest.raises(CompositionError, match=reason):
        _narrow(_seeded(make))


def test_an_embedding_with_as_many_rows_as_columns_is_left_alone_and_others_are_not() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.tokens = nn.Embedding(10, 10), nn.Embedding(6, 10)
            self.one, self.two = nn.Linear(10, 4), nn.Linear(10, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.one(self.wide(tokens)) + self.two(self.tokens(tokens))

    network = _seeded(Two)
    small = _narrow(network)
    assert "no fewer than columns" in small.skipped["wide.weight"]
    assert small.dense().two.weight.shape == (4, 6)
    torch.testing.assert_close(small.dense()(TOKENS), network(TOKENS))
    with pytest.raises(CompositionError, match="no fewer than columns"):
        gs.compress(network, [gs.shrink.NarrowEmbedding(skip="tokens.weight")], data=[(TOKENS, torch.zeros(3))])


def test_without_data_it_says_what_it_needs() -> None:
    with pytest.raises(PlanError, match="expected data="):
        gs.compress(_seeded(lambda: Tagger(nn.Linear(10, 8))), [gs.shrink.NarrowEmbedding()])


@dataclass
class _Out:
    scores: Tensor


class _InDataclass(nn.Module):
    """Something beside the layer reads the embedding, and the outputs are fields of an object."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer, self.out = nn.Embedding(6, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> _Out:
        read = self.tokens(tokens)
        return _Out(self.out(read + self.layer(read)))


class _Masked(_TiedInCode):
    def forward(self, tokens: Tensor) -> Tensor:
        scores = super().forward(tokens).clone()
        scores[..., 0] = -torch.inf
        return scores


class _Classes(_TiedInCode):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).argmax(-1)


@pytest.mark.parametrize("kind", [_InDataclass, _Masked, _Classes])
def test_what_outputs_do_not_plainly_show_is_not_believed(kind: Callable[[], nn.Module]) -> None:
    with pytest.raises(CompositionError, match="NarrowEmbedding matches no layer"):
        _narrow(_seeded(kind))


def test_batches_that_the_network_rejects_are_named() -> None:
    with pytest.raises(DataError, match="batch 0: found inputs that the network rejects"):
        _narrow(_seeded(lambda: Tagger(nn.Linear(10, 8))), example=torch.zeros(3, 5))
