"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of

__all__ = ["Accuracy", "Ledger", "TensorAccount", "Timing", "accuracy", "interleaved", "ledger_of"]
