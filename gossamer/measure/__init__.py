"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.corruption import Corruption, Corruptions, corruptions
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of
from gossamer.measure.robustness import (
    APGD,
    FGSM,
    PGD,
    QUICK,
    STANDARD,
    Attack,
    Normalized,
    Robustness,
    Square,
    Worst,
    robustness,
)

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "QUICK",
    "STANDARD",
    "Accuracy",
    "Attack",
    "Corruption",
    "Corruptions",
    "Ledger",
    "Normalized",
    "Robustness",
    "Square",
    "TensorAccount",
    "Timing",
    "Worst",
    "accuracy",
    "corruptions",
    "interleaved",
    "ledger_of",
    "robustness",
]
