"""Attention heads and residual blocks removed: the small network is the one without them, in the original's file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.shrinkable import IMAGE, SEQUENCE, Attending, Attention, batch, encoder, labelled, random_network
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.drive import run
from gossamer.drive.evidence import twin
from gossamer.encoding import Kept
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.shrink import Blocks, Channels, Heads
from gossamer.methods.shrink.blocks import residual_blocks
from gossamer.methods.shrink.measured import uses_of
from gossamer.network import attach, harvest, materialise
from gossamer.network.attention import FewerHeads, attention_parts
from gossamer.network.rebuild import Skipped


class SelfAttention(nn.Module):
    """Named as in BERT, the output projection beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 3, 12
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(x)), split(self.value(x)))
        return mixed.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size)


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = nn.Module()
        self.output.dense = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.dense(self.self(x))


ATTENTIONS: dict[str, Any] = {
    "torch": lambda: Attending(nn.MultiheadAttention(12, 4, batch_first=True)),
    "torch, other widths, no biases": lambda: Attending(
        nn.MultiheadAttention(12, 4, batch_first=True, bias=False, kdim=12, vdim=12)
    ),
    "separate": lambda: Attending(Attention()),
    "bert": lambda: Attending(Bert()),
    "encoder": encoder,
}


@pytest.mark.parametrize("name", ATTENTIONS)
@settings(max_examples=3)
@given(sparsity=st.sampled_from([0.25, 0.5, 1.0]), seed=st.integers(0, 3))
def test_without_heads_the_network_is_the_one_in_which_they_are_zero(name: str, sparsity: float, seed: int) -> None:
    net, x = random_network(ATTENTIONS[name], seed), batch(SEQUENCE)
    state = run(net, [Heads(sparsity=sparsity)], data=labelled(x))
    small = materialise(copy.deepcopy(net), state.specs, state.trees)
    masked = copy.deepcopy(net)
    masked.load_state_dict({n: t.to_dense() for n, t in state.trees.items()})
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    left = max(1, 4 - round(4 * sparsity))
    heads = [getattr(m, n) for m in small.modules() for n in ("num_heads", "num_attention_heads") if hasattr(m, n)]
    assert heads == [left]
    trainable = attach(copy.deepcopy(net), state.specs, state.trees)
    torch.testing.assert_close(trainable.eval()(x), small(x), rtol=1e-4, atol=1e-5)
    trainable.train()(x).sum().backward()
    again = harvest(trainable, state.specs, state.trees)
    assert all(torch.equal(again[n].to_dense(), t.to_dense()) for n, t in state.trees.items())


def test_the_weakest_heads_go_whole() -> None:
    net = random_network(ATTENTIONS["torch"], 0)
    weight = net.attention.in_proj_weight.detach()  # type: ignore[union-attr,operator]
    norms = weight.view(3, 4, 3, 12).square().sum((0, 2, 3))
    tree = run(net, [Heads(sparsity=0.5)]).trees["attention.in_proj_weight"]
    assert isinstance(tree, Kept)
    index = tree.kept_indices(0)
    assert index is not None
    best = sorted(norms.argsort(descending=True)[:2].tolist())
    assert index.tolist() == [block * 12 + h * 3 + i for block in range(3) for h in best for i in range(3)]


def test_influence_of_a_head_is_what_the_outputs_lose() -> None:
    net, x = random_network(ATTENTIONS["separate"], 1), batch(SEQUENCE)
    with torch.no_grad():
        net.attention.out_proj.weight[:, 3:6] = 0  # type: ignore[union-attr,index,operator]
        net.attention.q_proj.weight[3:6] *= 100  # type: ignore[union-attr,index,operator]
    tree = run(net, [Heads(sparsity=0.25, score="influence")], data=labelled(x)).trees["attention.out_proj.weight"]
    assert isinstance(tree, Kept)
    assert tree.kept_indices(1).tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "per head", "padding"])
def test_all_heads_kept_compute_what_torch_does(batch_first: bool, mask: str) -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(12, 4, batch_first=batch_first).eval()
    same = copy.deepcopy(net)
    FewerHeads.of(same, 4)
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    y = torch.randn(2, 6, 12) if batch_first else torch.randn(6, 2, 12)
    given: dict[str, Any] = {
        "none": {},
        "bool": {"attn_mask": torch.rand(5, 6) > 0.7},
        "float": {"attn_mask": torch.randn(5, 6)},
        "per head": {"attn_mask": torch.randn(8, 5, 6)},
        "padding": {"key_padding_mask": torch.arange(6).expand(2, 6) > 3},
    }[mask]
    for need in (True, False):
        expected, weights = net(x, y, y, need_weights=need, **given)
        found, ours = same(x, y, y, need_weights=need, **given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (weights is None) == (ours is None)
        if weights is not None:
            torch.testing.assert_close(ours, weights, rtol=1e-4, atol=1e-5)


def test_an_unbatched_sequence_works_too() -> None:
    net = nn.MultiheadAttention(12, 4).eval()
    same = copy.deepcopy(net)
    FewerHeads.of(same, 4)
    x = torch.randn(5, 12)
    for mine, theirs in zip(same(x, x, x), net(x, x, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_attentions_with_extra_keys_or_shared_ones_are_not_taken_for_plain() -> None:
    net = nn.ModuleDict({"a": nn.MultiheadAttention(12, 4, add_bias_kv=True), "b": Attention()})
    net["b"].k_proj = nn.Linear(12, 6)
    assert list(attention_parts(net)) == []
    with pytest.raises(CompositionError, match="Heads matches no layer"):
        run(nn.Sequential(nn.Linear(3, 2)), [Heads(sparsity=0.5)])


def test_heads_and_channels_and_saving_compose(tmp_path: Path) -> None:
    net, x = random_network(encoder, 0), batch(SEQUENCE)
    small = gs.compress(net, [Heads(sparsity=0.5), Channels(sparsity=0.5, only="*linear1*")], data=labelled(x))
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=encoder).dense()
    with torch.no_grad():
        torch.testing.assert_close(again(x), small.dense()(x), rtol=0, atol=0)
    assert again[1].linear1.out_features == 8  # type: ignore[index,union-attr]


class Grouped(nn.Module):
    """As in LLaMA: six query heads share three keys and values, no width or number of query heads is written down."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups = 2, 2
        if named:
            self.num_heads, self.num_key_value_heads = 6, 3
        self.q_proj, self.k_proj = nn.Linear(12, 12, bias=False), nn.Linear(12, 6, bias=False)
        self.v_proj, self.o_proj = nn.Linear(12, 6, bias=False), nn.Linear(12, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)

        k, v = (split(f(x)).repeat_interleave(self.num_key_value_groups, 1) for f in (self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(split(self.q_proj(x)), k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is [inputs, outputs]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 3), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"  # by which it is known


class Fused(nn.Module):
    """As in GPT-2, queries, keys and values one after the other, or as in GPT-NeoX, head by head."""

    def __init__(self, *, conv1d: bool, interleaved: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim, self.split_size = 12, 4, 3, 12
        self.interleaved = interleaved
        self.c_attn = Conv1D(36, 12) if conv1d else nn.Linear(12, 36)
        self.c_proj = Conv1D(12, 12) if conv1d else nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        made = self.c_attn(x)
        if self.interleaved:
            q, k, v = made.view(*x.shape[:2], self.num_heads, 3 * self.head_dim).chunk(3, -1)
        else:
            parts = made.split(self.split_size, dim=2)
            q, k, v = (y.view(*x.shape[:2], self.num_heads, self.head_dim) for y in parts)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.c_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


HUGGING: dict[str, tuple[Any, int]] = {
    "llama": (lambda: Attending(Grouped(named=True)), 3),
    "llama, only a width": (lambda: Attending(Grouped(named=False)), 3),
    "gpt-2": (lambda: Attending(Fused(conv1d=True, interleaved=False)), 4),
    "gpt-2 of Linear": (lambda: Attending(Fused(conv1d=False, interleaved=False)), 4),
    "gpt-neox": (lambda: Attending(Fused(conv1d=False, interleaved=True)), 4),
    "gpt-neox of Conv1D": (lambda: Attending(Fused(conv1d=True, interleaved=True)), 4),
}


@pytest.mark.parametrize("name", HUGGING)
@pytest.mark.parametrize("score", ["magnitude", "influence"])
def test_groups_of_heads_and_fused_heads_go_whole(name: str, score: Any, tmp_path: Path) -> None:
    make, units = HUGGING[name]
    net, x = random_network(make, 1), batch(SEQUENCE)
    made = gs.compress(net, [Heads(sparsity=0.5, score=score)], data=labelled(x))
    small, left = made.dense(), units - round(units / 2)
    masked = copy.deepcopy(net)
    masked.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    attention: Any = small.attention
    assert next(attention_parts(small)).heads == left
    if isinstance(attention, Grouped):
        assert attention.k_proj.weight.shape == (2 * left, 12)
        assert attention.q_proj.weight.shape == attention.o_proj.weight.T.shape == (4 * left, 12)
        assert getattr(attention, "num_heads", 2 * left) == 2 * left
        assert getattr(attention, "num_key_value_heads", left) == left
    else:
        assert (attention.num_heads, attention.split_size) == (left, 3 * left)
        assert attention.c_attn.weight.numel() == 12 * 9 * left
    made.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=make)
    torch.testing.assert_close(again.dense()(x), small(x), rtol=0, atol=0)
    again.trainable()(x).sum().backward()


def test_fused_heads_are_not_guessed_without_inputs() -> None:
    net = random_network(HUGGING["gpt-neox"][0], 1)
    with pytest.raises(CompositionError, match="has to be tried, expected data"):
        run(net, [Heads(sparsity=0.5)])


def test_multiplications_of_conv1d_count() -> None:
    net, x = random_network(HUGGING["gpt-2"][0], 1), batch(SEQUENCE)
    linear = random_network(HUGGING["gpt-2 of Linear"][0], 1)
    assert uses_of(net, x) == uses_of(linear, x)


# -- blocks --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.path = nn.Sequential(nn.Conv2d(out, out, 1), nn.ReLU(), nn.Conv2d(out, out, 1))
        self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(F.relu(self.norm(self.conv(x)))) + self.shortcut(x))


class Stage(nn.Module):
    """More than a container: it pools."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(6, 6), Block(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.two(self.one(x)), 2)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Sequential(Block(4, 4), Block(4, 4))
        self.wider = Block(4, 6)
        self.stage = Stage()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.wider(self.first(F.relu(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def skip(net: nn.Module, *blocks: str) -> nn.Module:
    made = copy.deepcopy(net)
    for block in blocks:
        owner, _, key = block.rpartition(".")
        setattr(made.get_submodule(owner), key, Skipped())
    return made


def test_blocks_are_the_innermost_modules_that_their_input_is_added_to() -> None:
    net = random_network(ResNet, 0)
    found, reasons = residual_blocks(net, batch(IMAGE))
    assert found == ("first.0", "first.1", "stage.one", "stage.two")
    assert "shape" in reasons["wider"]
    plain = nn.Sequential(nn.ModuleDict({"a": nn.Linear(5, 5)})["a"], nn.Linear(5, 5))
    assert residual_blocks(plain, batch((5,)))[0] == ()


def test_transformer_layers_are_blocks() -> None:
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), 3, enable_nested_tensor=False
    ).eval()
    x = batch((4, 12))
    assert residual_blocks(layers, x)[0] == ("layers.0", "layers.1", "layers.2")
    state = run(layers, [Blocks(sparsity=0.34)], data=labelled(x))
    small = materialise(copy.deepcopy(layers), state.specs, state.trees).eval()
    assert sum(isinstance(m, Skipped) for m in small.layers) == 1  # type: ignore[union-attr]
    assert "without the block the network fails" in state.skipped["layers.0"]  # torch reads its attributes
    assert small(x).shape == x.shape


class Layer(nn.Module):
    """As in transformers: the hidden states are the first of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return hidden + torch.tanh(self.fc(hidden)), mask


class Undeclared(Layer):
    def forward(self, hidden, mask=None):  # type: ignore[no-untyped-def]
        return super().forward(hidden, mask)


class Layers(nn.Module):
    def __init__(self, kind: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.layers, self.fc = nn.ModuleList([kind() for _ in range(3)]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x, mask=None)
        return self.fc(x)


def test_blocks_that_return_tuples_go_and_pass_their_input_as_the_first(tmp_path: Path) -> None:
    net, x = random_network(Layers, 0), batch((6,))
    assert residual_blocks(net, x)[0] == ("layers.0", "layers.1", "layers.2")
    small = gs.compress(net, [Blocks(sparsity=0.34)], data=labelled(x))
    gone = [f"layers.{i}" for i in range(3) if not bool(small.trees[f"layers.{i}.fc.weight"].to_dense().any())]
    assert len(gone) == 1
    expected = copy.deepcopy(net)
    expected.layers = nn.ModuleList(m for i, m in enumerate(net.layers) if f"layers.{i}" not in gone)  # type: ignore[arg-type]
    torch.testing.assert_close(small.dense()(x), expected(x))
    small.save(tmp_path / "small.gsm")
    torch.testing.assert_close(gs.load(tmp_path / "small.gsm", into=Layers).dense()(x), expected(x))


def test_removed_blocks_stay_as_they_are_when_the_rest_is_quantized(tmp_path: Path) -> None:
    net, x = random_network(Layers, 0), batch((6,))
    recipe = [Blocks(sparsity=0.34), gs.quantize.RoundToNearest(bits=8, group="channel")]
    small = gs.compress(net, recipe, data=labelled(x))
    assert list(small.skipped.values()) == ["RoundToNearest: found shape (0, 6), expected at least one weight"]
    small.save(tmp_path / "small.gsm")
    torch.testing.assert_close(gs.load(tmp_path / "small.gsm", into=Layers).dense()(x), small.dense()(x))


def test_a_block_whose_tuple_is_not_declared_stays() -> None:
    net = random_network(lambda: Layers(Undeclared), 0)
    found, reasons = residual_blocks(net, batch((6,)))
    assert found == ()
    assert "it returns a tuple, expected what its forward is declared to return" in reasons["layers.0"]


@pytest.mark.parametrize("hint", [Tensor, tuple[Tensor, ...], tuple[Tensor, None] | tuple[Tensor], None, "Nowhere"])
def test_what_stands_for_a_block_returns_what_the_block_declares(hint: Any) -> None:
    block = nn.Identity()
    block.forward = lambda x: x  # type: ignore[method-assign,assignment]
    if hint is not None:
        block.forward.__annotations__ = {"return": hint}
    x = torch.zeros(2)
    expected = {tuple[Tensor, ...]: (x,), tuple[Tensor, None] | tuple[Tensor]: (x, None)}.get(hint, x)
    found = Skipped.instead_of(block)(x, 1, key=2)
    assert type(found) is type(expected)
    assert found[0] is x if isinstance(found, tuple) else found is x
    assert not isinstance(expected, tuple) or len(found) == len(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_rebuilt_network_is_the_one_in_which_the_blocks_are_skipped(count: int, tmp_path: Path) -> None:
    net, x = random_network(ResNet, count), batch(IMAGE)
    small = gs.compress(net, [Blocks(sparsity=count / 4)], data=labelled(x))
    found = residual_blocks(net, x)[0]
    gone = [b for b in found if not bool(small.trees[f"{b}.conv.weight"].to_dense().any())]
    assert len(gone) == min(count, 3)  # the stage keeps one of its blocks
    expected = skip(net, *gone)(x)
    torch.testing.assert_close(small.dense()(x), expected)
    small.save(tmp_path / "small.gsm")
    again = gs.load(tmp_path / "small.gsm", into=ResNet)
    torch.testing.assert_close(again.dense()(x), expected)
    assert all(again.trees[s.name].dense_shape() == s.shape for s in again.specs)
    trained = again.trainable()
    torch.testing.assert_close(trained.eval()(x), expected)
    trained(x).sum().backward()
    harvested = again.harvest(trained)
    torch.testing.assert_close(harvested.dense()(x), expected)
    if count == 2:
        torch.testing.assert_close(again.lower(x)(x), expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_block_that_changes_the_outputs_least_goes_first() -> None:
    net, x = random_network(ResNet, 1), batch(IMAGE)
    before = net(x).detach()
    blocks = residual_blocks(net, x)[0]
    changes = {b: float((skip(net, b)(x).detach() - before).square().sum()) for b in blocks}
    state = run(net, [Blocks(sparsity=0.25)], data=labelled(x))
    gone = {b for b in blocks if not bool(state.trees[f"{b}.conv.weight"].to_dense().any())}
    assert gone == {min(changes, key=changes.__getitem__)}


@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_blocks_go_until_the_target_is_met(unit: str) -> None:
    net, x = random_network(ResNet, 1), batch(IMAGE)
    small = gs.compress(net, [Blocks(**{unit: 0.8})], data=labelled(x)).dense()  # type: ignore[arg-type]
    assert any(isinstance(m, Skipped) for m in small.modules())
    if unit == "parameters":
        assert sum(p.numel() for p in small.parameters()) <= 0.8 * sum(p.numel() for p in net.parameters())
    with pytest.raises(PlanError, match="with all removed that can be"):
        run(net, [Blocks(parameters=0.01)], data=labelled(x))


def test_blocks_then_channels_compose_and_without_data_blocks_are_refused() -> None:
    net, x = random_network(ResNet, 1), batch(IMAGE)
    state = run(net, [Blocks(sparsity=0.5), Channels(sparsity=0.5, only="wider.conv.weight")], data=labelled(x))
    assert state.network().eval()(x).shape == (3, 3)
    with pytest.raises(PlanError, match="Blocks: found no inputs to measure with"):
        run(net, [Blocks(sparsity=0.5)])


class PostNorm(nn.Module):
    """Normalised after the sum: a block of zeros would put out zeros, not its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 12), nn.Linear(12, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.relu(self.up(x))))


@pytest.mark.parametrize(
    "method",
    [
        Channels(sparsity=0.5, score="reconstruction", multiple=1),
        gs.prune.SparseGPT(sparsity=0.5),
        gs.BlockByBlock(methods=(gs.prune.SparseGPT(sparsity=0.5),)),
    ],
    ids=["channels", "sparsegpt", "block-by-block"],
)
def test_what_follows_removed_blocks_sees_the_network_without_them(method: Any) -> None:
    torch.manual_seed(0)
    head = (nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    net, x = nn.Sequential(*(PostNorm() for _ in range(3)), *head).eval(), torch.randn(200, 6)
    before = gs.compress(net, [Blocks(sparsity=0.34)], data=labelled(x)).dense()
    assert sum(isinstance(m, Skipped) for m in before) == 1  # type: ignore[attr-defined]
    apart = gs.compress(before, [method], data=labelled(x))
    together = gs.compress(net, [Blocks(sparsity=0.34), method], data=labelled(x))
    torch.testing.assert_close(together.dense()(x), apart.dense()(x))


def test_hooks_of_removed_blocks_are_gone_with_them_where_evidence_is_gathered() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(PostNorm() for _ in range(3))).eval(), torch.randn(20, 6)
    for block in net:
        block.register_forward_hook(lambda _module, _inputs, out: out * 2)
    state = run(net, [Blocks(sparsity=0.34)], data=labelled(x))
    small = materialise(copy.deepcopy(net), state.specs, state.trees).eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(net, state.specs, state.trees)(x), small(x))
        assert net[0]._forward_hooks  # the network itself stays as it is
        assert not torch.allclose(net(x), small(x))


def test_a_block_tied_to_something_outside_stays() -> None:
    net, x = random_network(ResNet, 1), batch(IMAGE)
    net.first[0].conv.weight = net.first[1].conv.weight  # type: ignore[index,union-attr]
    state = run(net, [Blocks(sparsity=1.0)], data=labelled(x))
    assert bool(state.trees["first.0.conv.weight"].to_dense().any())
    assert "tied" in state.skipped["first.0.conv.weight"]
