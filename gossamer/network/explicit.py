"""PyTorch's attention and transformer layers written out, so that each weight has a module that can be replaced.

`nn.MultiheadAttention` holds queries, keys and values in one weight that no Linear owns, and `nn.TransformerEncoder`
hands all weights of a layer to one fused call: neither can be captured, nor can a layer inside be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gossamer.network.attention import FewerHeads, additive, projections, score_bias
from gossamer.network.inspect import owner_of

__all__ = ["hides_weights", "spell_out"]

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


def spell_out(network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Replaces attention and transformer layers of ``torch.nn`` by the same in Linear layers, in place.

    Args:
        network: in eval mode; weights are shared, not copied. Subclasses are left alone, for they may do other
            things, and so is what has forward hooks.

    Returns:
        The network (another module if it was such a layer itself), and the names of the Linear layers that are new.

    Cost: none to speak of.

    Exact: up to the order of additions. As with PyTorch's fused call, a stack of encoder layers that is given a mask of
    padding at the end, and no other, returns zeros there before its last norm.

    Example:
        >>> network, names = spell_out(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval())
        >>> names[:2]
        ('0.self_attn.q_proj', '0.self_attn.k_proj')
    """
    made: dict[int, nn.Module] = {}
    places = [(name, m) for name, m in network.named_modules(remove_duplicate=False) if _written_out(m)]
    taken: list[str] = []
    for name, module in places:
        if any(name != outer and (not outer or name.startswith(f"{outer}.")) for outer in taken):
            continue  # its owner is replaced
        taken.append(name)
        if id(module) not in made:
            made[id(module)] = _explicit(module)
        if not name:
            network = made[id(module)]
            continue
        owner, key = owner_of(name)
        setattr(network.get_submodule(owner), key, made[id(module)])
    attentions = [(name, m) for name, m in network.named_modules() if isinstance(m, _Attending)]
    new = (f"{name}.{part}".lstrip(".") for name, m in attentions for part in m.projections)
    return network.eval(), tuple(new)


def hides_weights(network: nn.Module) -> bool:
    """Whether a network has attention or transformer layers that `spell_out` would replace."""
    return any(_written_out(module) for module in network.modules())


def _written_out(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks:  # whoever wants to be called must be
        return False
    if type(module) in (nn.MultiheadAttention, FewerHeads):
        attention = cast(nn.MultiheadAttention, module)
        return attention.bias_k is None and attention.bias_v is None and not attention.add_zero_attn
    if type(module) in _LAYERS:
        parts = (m for name, m in module.named_children() if name in ("self_attn", "multihead_attn"))
        return all(_written_out(part) for part in parts)
    if type(module) in _STACKS:
        return all(type(layer) in _LAYERS and _written_out(layer) for layer in cast(nn.ModuleList, module.layers))
    return False


def _explicit(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return _Attending(module)
    if isinstance(module, nn.TransformerEncoderLayer):
        return _EncoderLayer(module)
    if isinstance(module, nn.TransformerDecoderLayer):
        return _DecoderLayer(module)
    if isinstance(module, nn.TransformerEncoder):
        return _Encoder(module)
    assert isinstance(module, nn.TransformerDecoder)
    return _Decoder(module)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear layer that shares its tensors; a slice of a parameter becomes one of its own on the same memory."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    for name, tensor in (("weight", weight), ("bias", bias)):
        own = tensor if tensor is None or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), False)
        setattr(made, name, own)
    return made


@final
class _Attending(nn.Module):
    """`nn.MultiheadAttention` of a Linear each for queries, keys, values and outputs."""

    projections = ("q_proj", "k_proj", "v_proj")

    def __init__(self, module: nn.MultiheadAttention, *, batch_first: bool | None = None) -> None:
        super().__init__()
        self.num_heads = module.num_heads
        self.head_dim = module.head_dim
        self.batch_first = module.batch_first if batch_first is None else batch_first
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in projections(module))
        self.out_proj = _linear(module.out_proj.weight, module.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("attention: found is_causal without attn_mask, expected both")
        # Counted from behind, dimensions are the same with and without a batch; nothing asks how many there are, so
        # that a graph can be captured.
        whole = (query, key, value)
        q, k, v = whole if self.batch_first else (x.transpose(0, -2) for x in whole)
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2) for x in (q, k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        bias = None if causal else score_bias(q, k, key_padding_mask, attn_mask)
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5  # [.., heads, Q, d] @ [.., heads, d, K]
            weights = (scores if bias is None else scores + bias).softmax(-1)
        if weights is not None and not isinstance(query, fx.Proxy):
            mixed = weights @ v  # [.., heads, Q, K] @ [.., heads, K, d]
        else:  # in a captured graph both are written down, and weights that nobody reads are left out
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        outputs = self.out_proj(mixed.transpose(-3, -2).flatten(-2))  # [.., Q, heads · d] → [.., Q, embed]
        if weights is not None and average_attn_weights:
            weights = weights.mean(-3)
        return outputs if self.batch_first else outputs.transpose(0, -2), weights


class _Block(nn.Module):
    """What layers of encoders and decoders share."""

    def __init__(
        self, module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, *, batch_first: bool | None = None
    ) -> None:
        super().__init__()
        self.self_attn = _Attending(module.self_attn, batch_first=batch_first)
        self.linear1, self.linear2 = module.linear1, module.linear2
        self.norm1, self.norm2, self.norm_first = module.norm1, module.norm2, module.norm_first
        self.activation = module.activation

    def _feed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear2(self.activation(self.linear1(x))))


@final
class _EncoderLayer(_Block):
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As in `nn.TransformerEncoderLayer`."""

        def attended(x: Tensor) -> Tensor:
            out: Tensor = self.self_attn(
                x,
                x,
                x,
                key_padding_mask=src_key_padding_mask,
                need_weights=False,
                attn_mask=src_mask,
                is_causal=is_causal,
            )[0]
            return out

        if self.norm_first:
            x = src + attended(self.norm1(src))
            return x + self._feed(self.norm2(x))
        x = self.norm1(src + attended(src))
        return cast(Tensor, self.norm2(x + self._feed(x)))


@final
class _DecoderLayer(_Block):
    def __init__(self, module: nn.TransformerDecoderLayer, *, batch_first: bool | None = None) -> None:
        super().__init__(module, batch_first=batch_first)
        self.multihead_attn = _Attending(module.multihead_attn, batch_first=batch_first)
        self.norm3 = module.norm3

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As in `nn.TransformerDecoderLayer`."""

        def own(x: Tensor) -> Tensor:
            out: Tensor = self.self_attn(
                x, x, x, tgt_key_padding_mask, need_weights=False, attn_mask=tgt_mask, is_causal=tgt_is_causal
            )[0]
            return out

        def across(x: Tensor) -> Tensor:
            out: Tensor = self.multihead_attn(
                x,
                memory,
                memory,
                memory_key_padding_mask,
                need_weights=False,
                attn_mask=memory_mask,
                is_causal=memory_is_causal,
            )[0]
            return out

        if self.norm_first:
            x = tgt + own(self.norm1(tgt))
            x = x + across(self.norm2(x))
            return x + self._feed(self.norm3(x))
        x = self.norm1(tgt + own(tgt))
        x = self.norm2(x + across(x))
        return cast(Tensor, self.norm3(x + self._feed(x)))


class _Stack(nn.Module):
    """Layers one after another. Inside the batch comes first, whatever it is outside."""

    def __init__(self, layers: Iterator[_Block], norm: nn.Module | None, *, batch_first: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.batch_first = batch_first

    def _turned(self, x: Tensor) -> Tensor:
        return x if self.batch_first else x.transpose(0, -2)


@final
class _Encoder(_Stack):
    def __init__(self, module: nn.TransformerEncoder) -> None:
        layers = [cast(nn.TransformerEncoderLayer, layer) for layer in module.layers]
        turned = (_EncoderLayer(layer, batch_first=True) for layer in layers)
        super().__init__(turned, module.norm, batch_first=layers[0].self_attn.batch_first)
        self.clears_padding = bool(module.use_nested_tensor)
        self.checks_mask = bool(module.mask_check)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As in `nn.TransformerEncoder`."""
        x = self._turned(src)
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, bool(is_causal) and mask is not None)
        if src_key_padding_mask is not None and mask is None and self._clears(src, src_key_padding_mask):
            x = x.masked_fill(additive(src_key_padding_mask, x.dtype)[..., None] != 0, 0.0)
        if self.norm is not None:
            x = self.norm(x)
        return self._turned(x)

    def _clears(self, src: Tensor, padding: Tensor) -> bool:
        """Whether PyTorch would leave out what is padded, and return zeros for it."""
        if not self.clears_padding or src.dim() != 3 or torch.is_autocast_enabled():
            return False
        kept = (padding if padding.dtype == torch.bool else padding != 0).logical_not()
        return not self.checks_mask or bool((kept[:, 1:] <= kept[:, :-1]).all())


@final
class _Decoder(_Stack):
    def __init__(self, module: nn.TransformerDecoder) -> None:
        layers = [cast(nn.TransformerDecoderLayer, layer) for layer in module.layers]
        turned = (_DecoderLayer(layer, batch_first=True) for layer in layers)
        super().__init__(turned, module.norm, batch_first=layers[0].self_attn.batch_first)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As in `nn.TransformerDecoder`."""
        x, kept = self._turned(tgt), self._turned(memory)
        for layer in self.layers:
            x = layer(
                x,
                kept,
                tgt_mask,
                memory_mask,
                tgt_key_padding_mask,
                memory_key_padding_mask,
                bool(tgt_is_causal) and tgt_mask is not None,
                memory_is_causal,
            )
        if self.norm is not None:
            x = self.norm(x)
        return self._turned(x)
