"""Causal language models decode with a cache as the dense network does; networks take arguments by keyword."""

from __future__ import annotations

import pytest
import torch
from runtime.clocks import sparse_wins, tiles_win
from runtime.decoders import Cache, Plain, Styled, StyledOutput, thinned
from torch import Tensor, nn

import gossamer as gs
from gossamer.runtime.arguments import difference, fresh, tensors_in
from gossamer.runtime.lower import Lowered

CLOCKS = {"rows": sparse_wins, "tiles": tiles_win}


def lowered(network: nn.Module, inputs: object, clock: str, monkeypatch: pytest.MonkeyPatch) -> Lowered:
    monkeypatch.setattr("gossamer.runtime.tuner.raced", CLOCKS[clock])
    fast: Lowered = gs.lower(network, inputs)  # type: ignore[operator]
    assert any(c.kernel != "dense" for c in fast.explain())
    return fast


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_and_steps_with_a_cache_are_those_of_the_dense_network(
    clock: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = thinned(Plain())
    fast = lowered(network, torch.randint(50, (1, 24)), clock, monkeypatch)
    assert (fast.captured is not None) == (clock == "tiles")
    with torch.inference_mode():
        for length in (24, 1, 7, 61):  # of the prompt, whatever it was lowered with
            prompt = torch.randint(50, (batch, length))
            found, cache = fast(prompt)
            expected, dense_cache = network(prompt)
            assert close(found, expected)
            for new in (1, 1, 5, 1):
                token = torch.randint(50, (batch, new))
                found, cache = fast(token, cache)
                expected, dense_cache = network(token, dense_cache)
                assert close(found, expected)
            assert all(close(*pair) for pair in zip(tensors_in(cache), tensors_in(dense_cache), strict=True))


def test_greedy_decoding_with_a_cache_is_decoding_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fast = lowered(thinned(Plain()), torch.randint(50, (1, 16)), "tiles", monkeypatch)
    text = torch.randint(50, (1, 16))
    scores, cache = fast(text)
    for _ in range(12):
        token = scores[:, -1:].argmax(-1)
        text = torch.cat((text, token), 1)
        whole, _ = fast(text)
        scores, cache = fast(token, cache)
        assert close(scores[:, -1], whole[:, -1])


def test_a_network_may_be_lowered_at_a_step_with_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = thinned(Plain())
    with torch.inference_mode():
        _, cache = network(torch.randint(50, (1, 20)))
        token = torch.randint(50, (1, 1))
        fast = lowered(network, (token, cache), "rows", monkeypatch)
        assert close(fast(token, cache)[0], network(token, cache)[0])
        assert close(fast(token)[0], network(token)[0])


@pytest.mark.parametrize("clock", CLOCKS)
def test_arguments_may_be_given_by_keyword(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = thinned(Plain())
    tokens = torch.randint(50, (1, 18))
    fast = lowered(network, {"tokens": tokens}, clock, monkeypatch)
    with torch.inference_mode():
        expected, cache = network(tokens)
        for found in (fast(tokens), fast(tokens=tokens), fast(tokens, past=None), fast(past=None, tokens=tokens)):
            assert close(found[0], expected)
        assert close(fast(tokens=tokens[:, :1], past=cache)[0], network(tokens[:, :1], cache)[0])
    with pytest.raises(TypeError, match="colour"):
        fast(tokens, colour=1)
    with pytest.raises(TypeError, match="tokens"):
        fast(past=None)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_cache_object_keywords_and_an_output_object_are_passed_on(
    clock: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = thinned(Styled())
    prompt = torch.randint(50, (1, 20))
    fast = lowered(network, {"input_ids": prompt, "use_cache": cached}, clock, monkeypatch)
    ours, theirs = Cache(), Cache()
    for tokens in (prompt, prompt[:, :1], prompt[:, :3], prompt[:, :1]):
        named = {"input_ids": tokens, "use_cache": True, "cache_position": None}
        found, expected = (n(past_key_values=c, **named) for n, c in ((fast, ours), (network, theirs)))
        assert isinstance(found, StyledOutput) and found.past_key_values is ours
        assert close(found.logits, expected.logits.detach())
    assert ours.kept[0][0].shape[2] == 25


def test_a_cache_object_among_the_example_inputs_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = thinned(Styled())
    cache = network(torch.randint(50, (1, 20)), use_cache=True).past_key_values
    before = [t.shape for t in tensors_in(cache)]
    inputs = {"input_ids": torch.randint(50, (1, 1)), "past_key_values": cache}
    lowered(network, inputs, "rows", monkeypatch)
    assert [t.shape for t in tensors_in(cache)] == before


def test_what_the_network_has_beside_forward_runs_on_the_faster_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Speaks(Plain):
        def generate(self, tokens: Tensor) -> Tensor:
            return self(tokens)[0].argmax(-1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network = thinned(Speaks())
    tokens = torch.randint(50, (1, 18))
    fast = lowered(network, tokens, "rows", monkeypatch)
    with torch.inference_mode():
        assert torch.equal(fast.network.generate(tokens), network.generate(tokens))  # type: ignore[operator]


def test_keywords_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(gs.DataError, match=r"found tokns, expected arguments of \(tokens, past\)"):
        gs.lower(thinned(Plain()), {"tokns": torch.zeros(1, 2, dtype=torch.long)})  # type: ignore[operator]


class Pair(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"a": x, "b": [x * self.factor, None]}


def test_every_tensor_of_an_output_is_compared() -> None:
    x = torch.ones(3)
    assert difference(Pair(2.0), (x,), Pair(2.0)(x)) == ""
    assert difference(Pair(2.1), (x,), Pair(2.0)(x)).startswith("is off by 1.0e-01")
    assert difference(Pair(2.0), (x,), x) == "returns dict, expected Tensor"
    assert difference(nn.Identity(), (x,), x[:2]) == "returns shape (3,), expected (2,)"


def test_only_objects_that_may_change_are_copied() -> None:
    x, cache = torch.ones(2), Cache()
    cache.kept.append((x, x))
    arguments = (x, None, (x, 3), [x], cache)
    copies = fresh(arguments)
    assert [a is b for a, b in zip(arguments, copies, strict=True)] == [True, True, True, False, False]
    cache.kept.append((x, x))
    assert len(copies[4].kept) == 1
