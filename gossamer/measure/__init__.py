"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.exemplars import (
    Audit,
    Changed,
    Curriculum,
    Pie,
    Vog,
    VogCallback,
    audit,
    changed,
    deciles,
    pie,
    saliency,
    sampling_weights,
    vog,
)
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of

__all__ = [
    "Accuracy",
    "Audit",
    "Changed",
    "Curriculum",
    "Ledger",
    "Pie",
    "TensorAccount",
    "Timing",
    "Vog",
    "VogCallback",
    "accuracy",
    "audit",
    "changed",
    "deciles",
    "interleaved",
    "ledger_of",
    "pie",
    "saliency",
    "sampling_weights",
    "vog",
]
