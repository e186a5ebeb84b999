"""Down-sizing: a smaller dense network for the same task."""

from gossamer.methods.shrink.channels import Channels

__all__ = ["Channels"]
