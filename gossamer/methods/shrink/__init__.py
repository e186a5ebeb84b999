"""Down-sizing: a smaller dense network for the same task."""

from gossamer.methods.shrink.blocks import Blocks
from gossamer.methods.shrink.channels import Channels
from gossamer.methods.shrink.heads import Heads
from gossamer.methods.shrink.narrow import NarrowEmbedding

__all__ = ["Blocks", "Channels", "Heads", "NarrowEmbedding"]
