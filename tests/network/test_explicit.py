"""PyTorch's attention and transformer layers, written out, compute what PyTorch computes."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gossamer.network.attention import FewerHeads
from gossamer.network.explicit import spell_out

BATCH, TOKENS, WIDTH, HEADS = 3, 7, 12, 4


def spelled(module: nn.Module) -> nn.Module:
    network, new = spell_out(copy.deepcopy(module))
    assert new
    assert not any(isinstance(m, nn.MultiheadAttention) for m in network.modules())
    return network


def assert_same(ours: object, theirs: object) -> None:
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif theirs is None:
        assert ours is None
    else:
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def inputs(batch_first: bool, tokens: int = TOKENS, width: int = WIDTH) -> Tensor:
    x = torch.randn(BATCH, tokens, width)
    return x if batch_first else x.transpose(0, 1).contiguous()


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(TOKENS)


def padding(*lengths: int) -> Tensor:
    return torch.arange(TOKENS)[None] >= torch.tensor(lengths)[:, None]


MASKS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "none": dict,
    "float": lambda: {"attn_mask": causal()},
    "boolean": lambda: {"attn_mask": causal().isinf()},
    "per head": lambda: {"attn_mask": torch.randn(BATCH * HEADS, TOKENS, TOKENS)},
    "padding": lambda: {"key_padding_mask": padding(7, 3, 5)},
    "padding and boolean": lambda: {"attn_mask": causal().isinf(), "key_padding_mask": padding(7, 3, 5)},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_is_the_same_with_every_mask(batch_first: bool, weights: dict[str, bool], mask: str) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first).eval()
    nn.init.normal_(module.in_proj_bias)
    q, k, v = (inputs(batch_first) for _ in range(3))
    given = MASKS[mask]()
    with torch.no_grad():
        assert_same(spelled(module)(q, k, v, **weights, **given), module(q, k, v, **weights, **given))


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_without_a_batch_is_the_same(batch_first: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, bias=False).eval()
    x, y = torch.randn(TOKENS, WIDTH), torch.randn(5, WIDTH)
    with torch.no_grad():
        assert_same(spelled(module)(x, y, y), module(x, y, y))
        mask = padding(4)[0]
        given = {"key_padding_mask": mask, "attn_mask": torch.randn(HEADS, TOKENS, TOKENS) > 1}
        assert_same(spelled(module)(x, x, x, **given), module(x, x, x, **given))


def test_attention_of_keys_and_values_of_other_widths_is_the_same() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, kdim=5, vdim=6, batch_first=True).eval()
    q, k, v = inputs(True), inputs(True, 9, 5), inputs(True, 9, 6)
    with torch.no_grad():
        assert_same(spelled(module)(q, k, v), module(q, k, v))


def test_attention_that_lost_heads_is_the_same() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    kept = 2 * WIDTH // HEADS
    with torch.no_grad():
        module.in_proj_weight = nn.Parameter(torch.cat([w[:kept] for w in module.in_proj_weight.chunk(3)]))
        module.in_proj_bias = nn.Parameter(torch.randn(3 * kept))
        module.out_proj.weight = nn.Parameter(module.out_proj.weight[:, :kept].contiguous())
    FewerHeads.of(module, 2)
    x = inputs(True)
    with torch.no_grad():
        assert_same(spelled(module)(x, x, x), module(x, x, x))


def test_a_causal_hint_without_a_mask_is_refused_as_pytorch_does() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    x = inputs(True)
    for one in (module, spelled(module)):
        with pytest.raises(RuntimeError, match="attn_mask"):
            one(x, x, x, need_weights=False, is_causal=True)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_stacks_are_the_same(activation: str, batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such a stack has no fused call
        model = nn.Transformer(
            WIDTH, HEADS, 2, 2, 20, activation=activation, batch_first=batch_first, norm_first=norm_first
        ).eval()
    source, target = inputs(batch_first, 9), inputs(batch_first)
    explicit = spelled(model)
    with torch.no_grad():
        assert_same(explicit(source, target), model(source, target))
        padded = torch.zeros(BATCH, TOKENS).masked_fill(padding(7, 6, 3), float("-inf"))
        given = {"tgt_mask": causal(), "tgt_is_causal": True, "tgt_key_padding_mask": padded}
        assert_same(explicit(source, target, **given), model(source, target, **given))


@pytest.mark.parametrize("lengths", [(7, 3, 5), (7, 7, 7)])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_an_encoder_treats_padding_as_pytorch_does(
    norm: bool, nested: bool, holes: bool, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True)
    last = nn.LayerNorm(WIDTH) if norm else None
    model = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=nested).eval()
    mask = padding(*lengths)
    mask[1, 1] |= holes
    x = inputs(True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype, PyTorch says
        assert_same(spelled(model)(x, src_key_padding_mask=mask), model(x, src_key_padding_mask=mask))


def test_shared_modules_stay_shared_and_weights_are_not_copied() -> None:
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared, nn.Linear(2, 2)])}).eval()
    network, new = spell_out(model)
    assert network["a"] is network["b"][0]  # type: ignore[index]
    assert new == ("a.q_proj", "a.k_proj", "a.v_proj")
    assert network.get_submodule("a.q_proj").weight.data_ptr() == shared.in_proj_weight.data_ptr()  # type: ignore[operator, union-attr]


def test_what_may_do_other_things_is_left_alone() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    class Layer(nn.TransformerEncoderLayer):
        pass

    layer = Layer(WIDTH, HEADS, 20)
    for module in (
        Mine(WIDTH, HEADS),
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True),
    ):
        network, new = spell_out(nn.ModuleList([module]).eval())
        assert network[0] is module  # type: ignore[index]
        assert new == ()
    network, new = spell_out(nn.ModuleList([nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)]).eval())
    assert isinstance(network[0], nn.TransformerEncoder)  # type: ignore[index]
    assert new == ("0.layers.0.self_attn.q_proj", "0.layers.0.self_attn.k_proj", "0.layers.0.self_attn.v_proj")
