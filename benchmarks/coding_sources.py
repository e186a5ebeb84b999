"""What `benchmarks.coding` codes: real networks, as they are, cast, and compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.pretrained import PRETRAINED
from gossamer.drive.recipe import Recipe

__all__ = ["LOSSLESS", "SYMBOLS", "Lossless", "Treated", "weights_of"]

_BLOCKS = "layers.*.weight"


@dataclass(frozen=True)
class Lossless:
    """Weights as they are, or cast.

    Args:
        network: key of `PRETRAINED`.
        dtype: which of PyTorch's.
    """

    network: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Network and dtype."""
        return f"{self.network} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Treated:
    """A compressed network.

    Args:
        network: key of `PRETRAINED`.
        treatment: for people.
        recipe: what was done.
    """

    network: str
    treatment: str
    recipe: Callable[[], Recipe]

    @property
    def name(self) -> str:
        """Network and treatment."""
        return f"{self.network} {self.treatment}"


def weights_of(network: nn.Module, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Its float tensors, each once, in a dtype."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach().to(dtype).contiguous()
    return found


LOSSLESS = (
    Lossless("minilm", torch.bfloat16),
    Lossless("minilm", torch.float16),
    Lossless("minilm", torch.float32),
    Lossless("smollm2-rotated", torch.bfloat16),
    Lossless("whisper", torch.float16),
    Lossless("lite0", torch.float32),
)


_CONVOLUTIONS = ("*conv*.weight", "_fc.weight")


def _rtn(bits: int, group: Any, only: str | tuple[str, ...] = "*.weight") -> gs.quantize.RoundToNearest:
    return gs.quantize.RoundToNearest(bits=bits, group=group, scale_dtype="float16", only=only)


_PRUNED = gs.prune.Magnitude(sparsity=0.8, only="encoder.*.weight", skip="*LayerNorm*")

SYMBOLS = (
    Treated("minilm", "rtn 4-bit", lambda: [_rtn(4, 64)]),
    Treated("minilm", "rtn 8-bit per channel", lambda: [_rtn(8, "channel")]),
    Treated("minilm", "rtn 8-bit per tensor", lambda: [_rtn(8, "tensor")]),
    Treated("minilm", "k-means 4-bit", lambda: [gs.share.KMeans(bits=4, only="*.weight", skip="*LayerNorm*")]),
    Treated("minilm", "80% + 8-bit per tensor", lambda: [_PRUNED, _rtn(8, "tensor")]),
    Treated("minilm", "80% + 4-bit", lambda: [_PRUNED, _rtn(4, "channel")]),
    Treated("whisper", "rtn 4-bit", lambda: [_rtn(4, 64)]),
    Treated("whisper", "rtn 8-bit per tensor", lambda: [_rtn(8, "tensor")]),
    Treated("lite0", "rtn 4-bit", lambda: [_rtn(4, "channel", _CONVOLUTIONS)]),
    Treated("lite0", "rtn 8-bit per tensor", lambda: [_rtn(8, "tensor", _CONVOLUTIONS)]),
    Treated("smollm2-rotated", "rtn 4-bit", lambda: [_rtn(4, 128, _BLOCKS)]),
    Treated("smollm2-rotated", "rtn 8-bit per channel", lambda: [_rtn(8, "channel", _BLOCKS)]),
)


def compressed(source: Treated, zoo: Zoo) -> gs.Compressed:
    """The network of a source."""
    return gs.compress(PRETRAINED[source.network](zoo).dense(), source.recipe())
