"""Parameter sharing: one stored value used many times."""

from gossamer.methods.share.denil import Denil
from gossamer.methods.share.hashing import Hashing
from gossamer.methods.share.kmeans import KMeans
from gossamer.methods.share.product import ProductQuantization
from gossamer.methods.share.tie import Tie
from gossamer.methods.share.translation import Translation

__all__ = ["Denil", "Hashing", "KMeans", "ProductQuantization", "Tie", "Translation"]
