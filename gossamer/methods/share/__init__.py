"""Parameter sharing: one stored value used many times."""

from gossamer.methods.share.kmeans import KMeans

__all__ = ["KMeans"]
